"""Checks the terms of distillation by listing tokens and answers."""

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from snippets.algorithms.language_models.distillation import (
    forward_divergence,
    generalised_jensen_shannon,
    sequence_advantages,
    token_advantages,
)
from snippets.lab.enumeration import every_sequence, prefixes, token_log_probs
from snippets.estimate.sequences import token_mean
from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.neighbours import jensen_shannon

ANSWERS = every_sequence(2, 3)
WHOLE = torch.ones(ANSWERS.shape, dtype=torch.bool)
numbers = st.floats(-2, 2)


@st.composite
def pairs(draw, shape=(4,)):
    """Logits of a teacher and a student."""
    count = torch.Size(shape).numel()
    rows = [draw(st.lists(numbers, min_size=count, max_size=count)) for _ in range(2)]
    teacher, student = (torch.tensor(row).double().reshape(shape) for row in rows)
    return teacher, student.requires_grad_()


def divergence(p, q):
    return (p * (p / q).log()).sum(-1)


@given(pairs())
def test_the_forward_divergence_is_the_sum_over_tokens(pair):
    teacher, student = pair
    exact = divergence(teacher.softmax(-1), student.softmax(-1))
    assert_close(forward_divergence(*pair, 1.0), exact)


@given(pairs(), st.floats(0.5, 4))
def test_a_temperature_softens_both_and_keeps_the_scale(pair, temperature):
    soft = [(x / temperature).softmax(-1) for x in pair]
    exact = temperature**2 * divergence(*soft)
    assert_close(forward_divergence(*pair, temperature), exact)


@given(pairs())
def test_without_the_square_a_temperature_shrinks_the_gradient(pair):
    teacher, student = pair
    hot = forward_divergence(*pair, 1e3) - forward_divergence(*pair, 2e3)
    (drift,) = torch.autograd.grad(hot, student)
    soft = kl_divergence_logits(teacher / 1e3, student / 1e3)
    (shrunk,) = torch.autograd.grad(soft, student)
    # Logits of at most 2: the gradient with its factor is at most 4, and moves by the
    # next order, logits / temperature.
    assert drift.norm() < 4 * 4 / 1e3
    assert shrunk.norm() <= 4 / 1e6


@given(pairs())
def test_at_high_temperature_the_gradient_is_that_of_squared_centred_logits(pair):
    teacher, student = pair
    (found,) = torch.autograd.grad(forward_divergence(*pair, 1e4), student)
    centred = [x - x.mean() for x in (student, teacher)]
    exact = (centred[0] - centred[1]) / len(student)
    # The next order is smaller by logits / temperature = 4e-4.
    assert_close(found, exact.detach(), rtol=1e-3, atol=1e-3)


@given(pairs(), st.floats(0.01, 0.99))
def test_the_divergence_is_the_mean_to_the_mixture(pair, beta):
    teacher, student = (x.softmax(-1) for x in pair)
    mixture = beta * teacher + (1 - beta) * student
    exact = beta * divergence(teacher, mixture)
    exact = exact + (1 - beta) * divergence(student, mixture)
    assert_close(generalised_jensen_shannon(*pair, beta), exact)


@given(pairs())
def test_half_and_half_is_jensen_shannon(pair):
    assert_close(generalised_jensen_shannon(*pair, 0.5), jensen_shannon(*pair))


def to_fifty_digits(teacher, student, beta):
    """The divergence to the mixture, from the definition."""
    with mpmath.workdps(50):
        p, q = ([mpmath.exp(x) for x in row.tolist()] for row in (teacher, student))
        p, q = ([x / sum(row) for x in row] for row in (p, q))
        beta = mpmath.mpf(beta)
        rows = [(x, y, beta * x + (1 - beta) * y) for x, y in zip(p, q, strict=True)]
        found = sum(
            beta * x * mpmath.log(x / m) + (1 - beta) * y * mpmath.log(y / m)
            for x, y, m in rows
        )
        return float(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.3, 3.0, 100.0])
@pytest.mark.parametrize("beta", [1e-7, 1e-4, 0.5, 0.9999, 1 - 1e-7])
def test_no_digits_are_lost_near_the_ends_or_far_apart(dtype, scale, beta):
    generator = torch.Generator().manual_seed(0)
    pair = scale * torch.randn(2, 5, generator=generator, dtype=torch.float64)
    pair = pair.to(dtype)
    exact = torch.tensor(to_fifty_digits(*pair, beta), dtype=torch.float64)
    # 1 - 1e-7 is itself rounded by 1e-16, a billionth of what is left of it.
    digits = 1e-5 if dtype == torch.float32 else 1e-8
    found = generalised_jensen_shannon(*pair, beta).double()
    assert_close(found, exact, rtol=digits, atol=0.0)


@given(pairs())
def test_divided_by_its_small_share_it_goes_to_the_divergence(pair):
    teacher, student = pair
    near = 1e-7
    low = generalised_jensen_shannon(*pair, near) / near
    high = generalised_jensen_shannon(*pair, 1 - near) / near
    # The next order is near times a χ² below e^8 = 3000. Differences of probabilities
    # are rounded at 1e-16.
    close = {"rtol": 0, "atol": 1e-3}
    assert_close(low, kl_divergence_logits(teacher, student), **close)
    assert_close(high, kl_divergence_logits(student, teacher), **close)


def sequences(*policies):
    """The probability of each answer under each policy."""
    return [token_log_probs(x, ANSWERS).sum(-1).exp() for x in policies]


def mean(values, chance):
    """The mean over answers of the sum of the values at their prefixes."""
    return chance @ values[prefixes(ANSWERS, 2)].sum(-1)


@given(pairs((7, 2)))
def test_on_the_teachers_prefixes_forward_sums_to_that_of_whole_answers(pair):
    p, q = sequences(*pair)
    # Eight terms of order one, some of which cancel.
    close = {"atol": 1e-12, "rtol": 1e-7}
    assert_close(mean(forward_divergence(*pair, 1.0), p), divergence(p, q), **close)


@given(pairs((7, 2)))
def test_on_the_students_prefixes_reverse_sums_to_that_of_whole_answers(pair):
    p, q = sequences(*pair)
    found = mean(kl_divergence_logits(*pair[::-1]), q)
    assert_close(found, divergence(q, p), atol=1e-12, rtol=1e-7)


def at_every_prefix(chance):
    """The probability that an answer passes each prefix."""
    states = prefixes(ANSWERS, 2).flatten()
    return torch.zeros(7).double().index_add(0, states, chance.repeat_interleave(3))


@given(pairs((7, 2)), st.floats(0.05, 0.95))
def test_that_of_whole_answers_needs_the_posterior_share_at_each_prefix(pair, beta):
    p, q = sequences(*pair)
    both = beta * p + (1 - beta) * q
    exact = beta * divergence(p, both) + (1 - beta) * divergence(q, both)
    shares = beta * at_every_prefix(p) / at_every_prefix(both)
    rows = zip(*pair, shares.tolist(), strict=True)
    each = torch.stack([generalised_jensen_shannon(*row) for row in rows])
    assert_close(at_every_prefix(both) @ each, exact, atol=1e-12, rtol=1e-7)


def test_with_a_fixed_share_the_sum_over_tokens_passes_the_bound_of_one_choice():
    sure = torch.tensor([4.0, -4.0]).double().expand(7, 2)
    fixed = generalised_jensen_shannon(sure, -sure, 0.5)
    # Which of two wrote the answer is one bit, however long the answer is.
    assert mean(fixed, sequences(sure)[0]) > 2.5 * torch.tensor(2.0).log()


def gradient(advantages, student):
    """The mean push on the student over its own answers."""
    log_probs = token_log_probs(student, ANSWERS)
    chance = log_probs.sum(-1).exp().detach()
    return torch.autograd.grad(chance @ (advantages * log_probs).sum(-1), student)[0]


def advantages_of(function, teacher, student):
    return function(
        token_log_probs(student, ANSWERS), token_log_probs(teacher, ANSWERS), WHOLE
    )


@given(pairs((7, 2)))
def test_with_what_follows_the_gradient_is_that_of_whole_answers(pair):
    teacher, student = pair
    log_ratio = token_log_probs(student, ANSWERS) - token_log_probs(teacher, ANSWERS)
    chance = token_log_probs(student, ANSWERS).sum(-1).exp()
    (exact,) = torch.autograd.grad(-(chance @ log_ratio.sum(-1)), student)
    found = gradient(advantages_of(sequence_advantages, teacher, student), student)
    assert_close(found, exact)


@given(pairs((7, 2)))
def test_without_what_follows_the_prefixes_are_held_fixed(pair):
    teacher, student = pair
    chance = token_log_probs(student, ANSWERS).sum(-1).exp().detach()
    each = kl_divergence_logits(student, teacher)[prefixes(ANSWERS, 2)]
    (exact,) = torch.autograd.grad(-(chance @ each.sum(-1)), student)
    found = gradient(advantages_of(token_advantages, teacher, student), student)
    assert_close(found, exact)


def test_a_token_that_one_of_the_two_masks_is_finite():
    teacher = torch.tensor([0.0, 1.0, -torch.inf])
    student = torch.tensor([0.0, -torch.inf, 1.0], requires_grad=True)
    found = generalised_jensen_shannon(teacher, student, 0.5)
    assert 0 < found < torch.tensor(2.0).log()
    assert forward_divergence(teacher, student, 1.0) == torch.inf


def test_what_stands_under_the_mask_is_not_read():
    student = torch.tensor([[-1.0, torch.nan]])
    teacher = torch.tensor([[-3.0, torch.nan]])
    mask = torch.tensor([[True, False]])
    for function in (token_advantages, sequence_advantages):
        found = function(student, teacher, mask)
        assert_close(found, torch.tensor([[-2.0, 0.0]]))


def test_the_teacher_gets_no_gradient():
    teacher, student = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    teacher.requires_grad_()
    student.requires_grad_()
    forward_divergence(teacher, student, 2.0).backward()
    generalised_jensen_shannon(teacher, student, 0.3).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_batches_and_types(dtype):
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    other = logits.roll(1, -1)
    for function, last in (
        (forward_divergence, 2.0),
        (generalised_jensen_shannon, 0.1),
    ):
        found = function(logits, other, last)
        assert found.shape == (2, 3)
        assert found.dtype == dtype
        assert_close(found[1], function(logits[1], other[1], last))
        assert (function(logits, logits, last) == 0).all()


def test_half_precision_is_rounded_once():
    pair = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = generalised_jensen_shannon(*pair.float(), 0.3)
    assert generalised_jensen_shannon(*pair, 0.3) == exact.bfloat16()


def test_padding_changes_neither_value_nor_gradient():
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 1, 3, 4, generator=generator)
    mask = torch.tensor([[True, True, False]])
    for function, last in (
        (forward_divergence, 2.0),
        (generalised_jensen_shannon, 0.1),
    ):
        pushes = []
        for filling in (0.0, 50.0):
            filled = student.clone()
            filled[:, 2, 0] = filling
            filled.requires_grad_()
            token_mean(function(teacher, filled, last), mask).backward()
            pushes.append(filled.grad)
        assert_close(pushes[0], pushes[1])
        assert (pushes[0][:, 2] == 0).all()


def test_advantages_of_a_batch_are_those_of_its_rows():
    generator = torch.Generator().manual_seed(0)
    student, teacher = -torch.rand(2, 2, 3, 4, generator=generator)
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    for function in (token_advantages, sequence_advantages):
        found = function(student, teacher, mask)
        assert found.dtype == torch.float32
        for i in range(2):
            assert_close(found[i], function(student[i], teacher[i], mask[i]))


def test_advantages_are_constants():
    student = torch.zeros(1, 2, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    for function in (token_advantages, sequence_advantages):
        assert not function(student, student - 1, mask).requires_grad


def test_unusable_arguments_are_named():
    two = torch.zeros(2)
    for temperature in (0.0, -1.0, torch.nan):
        with pytest.raises(ValueError, match="temperature is"):
            forward_divergence(two, two, temperature)
    for beta in (0.0, 1.0, 1e-17, -0.5, 1.5, torch.nan):
        with pytest.raises(ValueError, match="beta is"):
            generalised_jensen_shannon(two, two, beta)
    for mask in (torch.ones(2), torch.ones(3, dtype=torch.bool)):
        for function in (token_advantages, sequence_advantages):
            with pytest.raises(ValueError, match="mask must be boolean"):
                function(two, two, mask)
