"""Checks the terms of distillation by listing tokens and completions."""

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from snippets.algorithms.language_models.distillation import (
    forward_kl,
    generalised_jensen_shannon,
    sequence_advantages,
    token_advantages,
)
from snippets.estimate.sequences import token_mean
from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.neighbours import jensen_shannon
from snippets.lab.enumeration import every_sequence, prefixes, token_log_probs
from tests.strategies import logits

COMPLETIONS = every_sequence(2, 3)
WHOLE = torch.ones(COMPLETIONS.shape, dtype=torch.bool)


@st.composite
def pairs(draw, shape=(4,)):
    """Logits of a teacher and a student."""
    teacher, student = (draw(logits(*shape, largest=2)) for _ in range(2))
    return teacher, student.requires_grad_()


def forward(teacher, student, temperature=1.0):
    both = {"teacher_logits": teacher, "student_logits": student}
    return forward_kl(**both, temperature=temperature)


def gkd(teacher, student, beta):
    both = {"teacher_logits": teacher, "student_logits": student}
    return generalised_jensen_shannon(**both, beta=beta)


def plain_kl(p, q):
    return (p * (p / q).log()).sum(-1)


@given(pairs())
def test_the_forward_kl_is_the_sum_over_tokens(pair):
    teacher, student = pair
    exact = plain_kl(teacher.softmax(-1), student.softmax(-1))
    assert_close(forward(*pair), exact)


@given(pairs(), st.floats(0.5, 4))
def test_a_temperature_softens_both_and_keeps_the_scale(pair, temperature):
    soft = [(x / temperature).softmax(-1) for x in pair]
    exact = temperature**2 * plain_kl(*soft)
    assert_close(forward(*pair, temperature), exact)


@given(pairs())
def test_without_the_square_a_temperature_shrinks_the_gradient(pair):
    teacher, student = pair
    hot = forward(*pair, 1e3) - forward(*pair, 2e3)
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
    (found,) = torch.autograd.grad(forward(*pair, 1e4), student)
    centred = [x - x.mean() for x in (student, teacher)]
    exact = (centred[0] - centred[1]) / len(student)
    # The next order is smaller by logits / temperature = 4e-4.
    assert_close(found, exact.detach(), rtol=1e-3, atol=1e-3)


@given(pairs(), st.floats(0.01, 0.99))
def test_the_divergence_is_the_mean_to_the_mixture(pair, beta):
    teacher, student = (x.softmax(-1) for x in pair)
    mixture = beta * teacher + (1 - beta) * student
    exact = beta * plain_kl(teacher, mixture)
    exact = exact + (1 - beta) * plain_kl(student, mixture)
    assert_close(gkd(*pair, beta), exact)


@given(pairs())
def test_half_and_half_is_jensen_shannon(pair):
    assert_close(gkd(*pair, 0.5), jensen_shannon(*pair))


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
    found = gkd(*pair, beta).double()
    assert_close(found, exact, rtol=digits, atol=0.0)


@given(pairs())
def test_divided_by_its_small_share_it_goes_to_the_divergence(pair):
    teacher, student = pair
    near = 1e-7
    low = gkd(*pair, near) / near
    high = gkd(*pair, 1 - near) / near
    # The next order is near times a χ² below e^8 = 3000. Differences of probabilities
    # are rounded at 1e-16.
    close = {"rtol": 0, "atol": 1e-3}
    assert_close(low, kl_divergence_logits(teacher, student), **close)
    assert_close(high, kl_divergence_logits(student, teacher), **close)


def sequences(*policies):
    """The probability of each completion under each policy."""
    return [token_log_probs(x, COMPLETIONS).sum(-1).exp() for x in policies]


def mean(values, chance):
    """The mean over completions of the sum of the values at their prefixes."""
    return chance @ values[prefixes(COMPLETIONS, 2)].sum(-1)


@given(pairs((7, 2)))
def test_on_the_teachers_prefixes_forward_sums_to_that_of_whole_completions(pair):
    p, q = sequences(*pair)
    # Eight terms of order one, some of which cancel.
    close = {"atol": 1e-12, "rtol": 1e-7}
    assert_close(mean(forward(*pair), p), plain_kl(p, q), **close)


@given(pairs((7, 2)))
def test_on_the_students_prefixes_reverse_sums_to_that_of_whole_completions(pair):
    p, q = sequences(*pair)
    found = mean(kl_divergence_logits(*pair[::-1]), q)
    assert_close(found, plain_kl(q, p), atol=1e-12, rtol=1e-7)


def at_every_prefix(chance):
    """The probability that an completion passes each prefix."""
    states = prefixes(COMPLETIONS, 2).flatten()
    return torch.zeros(7).double().index_add(0, states, chance.repeat_interleave(3))


@given(pairs((7, 2)), st.floats(0.05, 0.95))
def test_that_of_whole_completions_needs_the_posterior_share_at_each_prefix(pair, beta):
    p, q = sequences(*pair)
    both = beta * p + (1 - beta) * q
    exact = beta * plain_kl(p, both) + (1 - beta) * plain_kl(q, both)
    shares = beta * at_every_prefix(p) / at_every_prefix(both)
    rows = zip(*pair, shares.tolist(), strict=True)
    each = torch.stack([gkd(*row) for row in rows])
    assert_close(at_every_prefix(both) @ each, exact, atol=1e-12, rtol=1e-7)


def test_with_a_fixed_share_the_sum_over_tokens_passes_the_bound_of_one_choice():
    sure = torch.tensor([4.0, -4.0]).double().expand(7, 2)
    fixed = gkd(sure, -sure, 0.5)
    # Which of two wrote the completion is one bit, however long the completion is.
    assert mean(fixed, sequences(sure)[0]) > 2.5 * torch.tensor(2.0).log()


def gradient(advantages, student):
    """The mean push on the student over its own completions."""
    log_probs = token_log_probs(student, COMPLETIONS)
    chance = log_probs.sum(-1).exp().detach()
    return torch.autograd.grad(chance @ (advantages * log_probs).sum(-1), student)[0]


def advantages_of(function, teacher, student):
    return function(
        student_log_probs=token_log_probs(student, COMPLETIONS),
        teacher_log_probs=token_log_probs(teacher, COMPLETIONS),
        mask=WHOLE,
    )


@given(pairs((7, 2)))
def test_with_what_follows_the_gradient_is_that_of_whole_completions(pair):
    teacher, student = pair
    log_ratio = token_log_probs(student, COMPLETIONS) - token_log_probs(
        teacher, COMPLETIONS
    )
    chance = token_log_probs(student, COMPLETIONS).sum(-1).exp()
    (exact,) = torch.autograd.grad(-(chance @ log_ratio.sum(-1)), student)
    found = gradient(advantages_of(sequence_advantages, teacher, student), student)
    assert_close(found, exact)


@given(pairs((7, 2)))
def test_without_what_follows_the_prefixes_are_held_fixed(pair):
    teacher, student = pair
    chance = token_log_probs(student, COMPLETIONS).sum(-1).exp().detach()
    each = kl_divergence_logits(student, teacher)[prefixes(COMPLETIONS, 2)]
    (exact,) = torch.autograd.grad(-(chance @ each.sum(-1)), student)
    found = gradient(advantages_of(token_advantages, teacher, student), student)
    assert_close(found, exact)


def test_a_token_that_one_of_the_two_masks_is_finite():
    teacher = torch.tensor([0.0, 1.0, -torch.inf])
    student = torch.tensor([0.0, -torch.inf, 1.0], requires_grad=True)
    found = gkd(teacher, student, 0.5)
    assert 0 < found < torch.tensor(2.0).log()
    assert forward(teacher, student, 1.0) == torch.inf


def advantages(function, student, teacher, mask):
    return function(student_log_probs=student, teacher_log_probs=teacher, mask=mask)


BOTH = pytest.mark.parametrize("function", [token_advantages, sequence_advantages])


@BOTH
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf])
def test_what_stands_under_the_mask_is_not_read(function, junk):
    student = torch.tensor([[-1.0, junk, -2.0]])
    teacher = torch.tensor([[-3.0, junk, -2.0]])
    found = advantages(function, student, teacher, torch.tensor([[True, False, True]]))
    assert found.tolist() == [[-2.0, 0.0, 0.0]]


@BOTH
def test_a_token_that_one_of_the_two_cannot_give_is_infinite_as_documented(function):
    student, teacher = torch.tensor([[-torch.inf, -1.0]]), torch.tensor([[-1.0, -1.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert advantages(function, student, teacher, mask)[0, 0] == torch.inf
    assert advantages(function, teacher, student, mask)[0, 0] == -torch.inf


def test_the_teacher_gets_no_gradient():
    teacher, student = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    teacher.requires_grad_()
    student.requires_grad_()
    forward(teacher, student, 2.0).backward()
    gkd(teacher, student, 0.3).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_batches_and_types(dtype):
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    other = logits.roll(1, -1)
    for function, last in (
        (forward, 2.0),
        (gkd, 0.1),
    ):
        found = function(logits, other, last)
        assert found.shape == (2, 3)
        assert found.dtype == dtype
        assert_close(found[1], function(logits[1], other[1], last))
        assert (function(logits, logits, last) == 0).all()


def test_half_precision_is_rounded_once():
    pair = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = gkd(*pair.float(), 0.3)
    assert gkd(*pair, 0.3) == exact.bfloat16()


def test_padding_changes_neither_value_nor_gradient():
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 1, 3, 4, generator=generator)
    mask = torch.tensor([[True, True, False]])
    for function, last in (
        (forward, 2.0),
        (gkd, 0.1),
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


@BOTH
def test_advantages_of_a_batch_are_those_of_its_rows(function):
    generator = torch.Generator().manual_seed(0)
    student, teacher = -torch.rand(2, 2, 3, 4, generator=generator)
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    found = advantages(function, student, teacher, mask)
    assert found.dtype == torch.float32
    for i in range(2):
        assert_close(found[i], advantages(function, student[i], teacher[i], mask[i]))


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_of_advantages_is_rounded_once(function, dtype):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (-5 * torch.rand(2, 3, 100, generator=generator)).to(dtype)
    mask = torch.ones(3, 100, dtype=torch.bool)
    wide = advantages(function, student.float(), teacher.float(), mask)
    assert torch.equal(advantages(function, student, teacher, mask), wide.to(dtype))


@BOTH
def test_advantages_are_constants(function):
    student = torch.zeros(1, 2, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert not advantages(function, student, student - 1, mask).requires_grad


def test_unusable_arguments_are_named():
    two = torch.zeros(2)
    for temperature in (0.0, -1.0, torch.nan):
        with pytest.raises(ValueError, match="temperature is"):
            forward(two, two, temperature)
    for beta in (0.0, 1.0, 1e-17, -0.5, 1.5, torch.nan):
        with pytest.raises(ValueError, match="beta is"):
            gkd(two, two, beta)
    for wrong in (torch.zeros(1), torch.zeros(1, 2), torch.zeros(2).long()):
        for function in (forward, gkd):
            with pytest.raises(ValueError, match="student_logits"):
                function(two, wrong, 0.5)
    for mask in (torch.ones(2), torch.ones(3, dtype=torch.bool)):
        for function in (token_advantages, sequence_advantages):
            with pytest.raises(ValueError, match="mask"):
                advantages(function, two, two, mask)
