"""Five KLs from a head: which sign, bias and minimiser each has, by enumeration."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.testing import assert_close

from snippets.estimate.sequences import reward_to_go
from snippets.exact.categorical import kl_divergence_logits
from snippets.lab.enumeration import every_sequence, prefixes, token_log_probs
from snippets.scale.top_k import (
    bucket_kl,
    generalised_head_kl,
    head_and_token_kl,
    raw_head_kl,
)
from tests.strategies import two_log_policies

P = tensor([0.4, 0.3, 0.1, 0.1, 0.1], dtype=torch.float64).log()
HEAD = 2
many = two_log_policies(fewest=2, most=7)


def head_of(policies, k):
    """The k most likely words of P, of both policies, and the places of the words."""
    log_p, log_q = policies
    places = log_p.topk(min(k, len(log_p))).indices
    return log_p[places], log_q[places], places


heads = st.integers(1, 6)


@given(many, heads)
def test_the_raw_sum_is_the_sum_of_its_terms(policies, k):
    log_p, log_q, _ = head_of(policies, k)
    expected = sum(p.exp() * (p - q) for p, q in zip(log_p, log_q, strict=True))
    assert_close(raw_head_kl(log_p, log_q), expected)


@given(many, heads)
def test_bucket_and_generalised_are_lower_bounds_and_never_negative(policies, k):
    head, whole = head_of(policies, k)[:2], kl_divergence_logits(*policies)
    generalised, bucket = generalised_head_kl(*head), bucket_kl(*head)
    # Each is a sum of up to six terms of order 1, rounded at 1e-16.
    assert 0 <= generalised <= bucket + 1e-12
    assert bucket <= whole + 1e-12


@given(many, heads)
def test_they_differ_by_what_the_masses_say(policies, k):
    """The bucket adds the tail's own term, with its p - q."""
    log_p, log_q, _ = head_of(policies, k)
    head = raw_head_kl(log_p, log_q)
    mass_p, mass_q = log_p.exp().sum(), log_q.exp().sum()
    assert_close(generalised_head_kl(log_p, log_q), head - mass_p + mass_q)
    if k < len(policies[0]):
        tail = (1 - mass_p) * ((1 - mass_p) / (1 - mass_q)).log()
        # 1 - mass has lost digits in this line, not in the function.
        assert_close(bucket_kl(log_p, log_q), head + tail, rtol=1e-8, atol=1e-10)


@given(many, heads)
def test_head_and_token_is_unbiased_and_never_negative(policies, k):
    log_p, log_q, places = head_of(policies, k)
    words = torch.arange(len(policies[0]))
    rows = [x.expand(len(words), -1) for x in (log_p, log_q)]
    each = head_and_token_kl(*rows, *policies, torch.isin(words, places))
    assert (each >= 0).all()
    assert_close(policies[0].exp() @ each, kl_divergence_logits(*policies))


@given(many)
def test_with_every_word_in_the_head_all_are_the_kl(policies):
    whole = kl_divergence_logits(*policies)
    for function in (raw_head_kl, generalised_head_kl, bucket_kl):
        assert_close(function(*policies), whole, rtol=1e-6, atol=1e-12)


def slope(function, logits):
    """The gradient in the logits of Q, for the head of the five words."""
    logits = logits.clone().requires_grad_()
    value = function(P[:HEAD], logits.log_softmax(-1)[:HEAD])
    return torch.autograd.grad(value, logits)[0]


def test_the_raw_sum_is_not_stationary_at_the_teacher():
    found = slope(raw_head_kl, P)
    mass = P[:HEAD].exp().sum()
    in_head = tensor([1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert_close(found, mass * P.exp() - in_head * P.exp())
    assert found.abs().max() > 0.05


@pytest.mark.parametrize(
    "function", [generalised_head_kl, bucket_kl, kl_divergence_logits]
)
def test_the_others_are_stationary_at_the_teacher(function):
    assert_close(slope(function, P), torch.zeros_like(P))


def descend(function):
    logits = torch.zeros_like(P)
    for _ in range(4000):
        logits = logits - 2 * slope(function, logits)
    return logits.softmax(-1)


def test_the_raw_sum_ends_at_the_renormalised_head():
    # Its tail falls like 1 / steps: 4000 of them leave less than 1e-3.
    expected = tensor([4 / 7, 3 / 7, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert_close(descend(raw_head_kl), expected, rtol=0, atol=1e-3)
    least = raw_head_kl(P[:HEAD], expected[:HEAD].log())
    assert_close(least, 0.7 * tensor(0.7, dtype=torch.float64).log())


@pytest.mark.parametrize("function", [generalised_head_kl, bucket_kl])
def test_bucket_and_generalised_end_at_the_teachers_head(function):
    assert_close(descend(function)[:HEAD], P[:HEAD].exp(), rtol=1e-6, atol=0)


def with_every_token(log_q):
    """Head and token, for each of the five words as the sampled one."""
    heads = [x[:HEAD].expand(5, HEAD) for x in (P, log_q)]
    return head_and_token_kl(*heads, P, log_q, torch.arange(5) < HEAD)


def test_head_and_token_is_stationary_at_the_teacher_whatever_was_sampled():
    for token in range(5):
        logits = P.clone().requires_grad_()
        value = with_every_token(logits.log_softmax(-1))[token]
        (found,) = torch.autograd.grad(value, logits)
        assert_close(found, torch.zeros_like(P))


def test_head_and_token_ends_at_the_teacher_in_the_tail_too():
    logits = tensor([0.0, 0.0, 1.0, 0.0, -1.0], dtype=torch.float64)
    for _ in range(400):
        leaf = logits.clone().requires_grad_()
        mean = P.exp() @ with_every_token(leaf.log_softmax(-1))
        logits = logits - 2 * torch.autograd.grad(mean, leaf)[0]
    assert_close(logits.softmax(-1), P.exp())


def test_raw_and_renormalised_may_be_above_or_below_the_whole_kl():
    agree = tensor([[0.3, 0.2, 0.5], [0.2, 0.3, 0.5]]).double().log()
    assert kl_divergence_logits(*agree[:, :2]) > 1.9 * kl_divergence_logits(*agree)
    short = tensor([[0.4, 0.3, 0.3], [0.2, 0.15, 0.65]]).double().log()
    assert raw_head_kl(*short[:, :2]) > 1.5 * kl_divergence_logits(*short)
    assert kl_divergence_logits(*short[:, :2]) < 1e-12
    assert raw_head_kl(*short.flip(0)[:, :2]) < 0


@pytest.mark.parametrize("function", [raw_head_kl, generalised_head_kl, bucket_kl])
def test_a_kl_at_a_prefix_is_a_reward_of_the_tokens_before_it_and_not_of_the_next(
    function,
):
    """By all 27 texts of three words: as reward-to-go it completes the gradient."""
    noise = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 13, 3, generator=noise, dtype=torch.float64)
    student.requires_grad_()
    texts = every_sequence(3, 3)
    log_probs = token_log_probs(student, texts)
    head = teacher.log_softmax(-1).topk(2)
    known = student.log_softmax(-1).gather(-1, head.indices)
    kls = function(head.values, known)[prefixes(texts, 3)]
    chance = log_probs.sum(-1).exp()

    def gradient(per_text):
        return torch.autograd.grad(per_text, student, retain_graph=True)[0]

    exact = gradient(chance @ kls.sum(-1))
    own, fixed = kls.detach(), chance.detach()
    later = reward_to_go(own, torch.ones(27, 3, dtype=torch.bool)) - own
    assert_close(gradient(fixed @ (own * log_probs).sum(-1)), torch.zeros_like(exact))
    assert gradient((own * log_probs).sum(-1)[0]).norm() > 0.1  # of one text: noise
    as_loss = gradient(fixed @ kls.sum(-1))
    assert (as_loss - exact).norm() > 0.1 * exact.norm()
    assert_close(as_loss + gradient(fixed @ (later * log_probs).sum(-1)), exact)


def test_the_renormalised_head_does_not_see_how_much_is_on_it():
    q = tensor([0.004, 0.003, 0.331, 0.331, 0.331], dtype=torch.float64).log()
    assert kl_divergence_logits(P[:HEAD], q[:HEAD]) < 1e-12
    assert kl_divergence_logits(P, q) > 2.8
    assert bucket_kl(P[:HEAD], q[:HEAD]) > 2.8


def test_a_word_that_p_never_takes_and_one_that_q_never_gives():
    p, q = tensor([0.5, 0.0]).log(), tensor([0.25, 0.25]).log()
    expected = 0.5 * tensor(2.0).log() - 0.5 + 0.5
    assert_close(generalised_head_kl(p, q), expected)
    assert_close(raw_head_kl(p, q), 0.5 * tensor(2.0).log())
    assert (
        generalised_head_kl(tensor([0.5, 0.1]).log(), tensor([0.5, 0.0]).log()) == inf
    )


def test_a_head_of_everything_has_no_tail_however_it_was_rounded():
    over = tensor([0.5, 0.5 + 1e-6]).log()
    assert over.logsumexp(-1) > 0
    for p, q in ((over, over), (over, over - 1e-6)):
        p, q = p.clone().requires_grad_(), q.clone().requires_grad_()
        kl = bucket_kl(p, q)
        kl.backward()
        assert 0 <= kl < 1e-6
        assert p.grad.isfinite().all()
        assert q.grad.isfinite().all()


def test_shapes_that_do_not_fit_are_refused_by_name():
    head, token = torch.zeros(3, 2), torch.zeros(3)
    one = torch.ones(1, dtype=torch.bool)
    with pytest.raises(ValueError, match="in_head"):
        head_and_token_kl(head, head, token[:1], token[:1], one)
    with pytest.raises(ValueError, match="log_head_q"):
        bucket_kl(head, head[:, :1])


@pytest.mark.parametrize("rare", [-90.0, -120.0, -inf])
@pytest.mark.parametrize("other", [-0.1, -200.0, -inf])
def test_a_word_that_underflows_in_p_is_as_good_as_never_taken(rare, other):
    p = tensor([-0.1, rare], requires_grad=True)
    q = tensor([-0.2, other], requires_grad=True)
    alone = p[:1].detach(), q[:1].detach()
    assert_close(raw_head_kl(p, q), raw_head_kl(*alone))
    found = generalised_head_kl(p, q)
    assert_close(found, generalised_head_kl(*alone) + q[1].detach().exp())
    found.backward()
    assert p.grad.isfinite().all()
    assert q.grad.isfinite().all()
