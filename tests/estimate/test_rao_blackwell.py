"""Exact next tokens: torch's values, the right gradient, their own variance."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from snippets.lab.enumeration import (
    every_sequence,
    moments,
    prefixes,
    token_log_probs,
)
from snippets.estimate.rao_blackwell import (
    rao_blackwell_kl,
    rao_blackwell_loss,
    token_kl,
)


@st.composite
def logits(draw):
    """Logits of two policies, `(2, time, vocab)`, up to 4 tokens of up to 6 words."""
    steps, words = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    number = st.floats(-8, 8)
    size = 2 * steps * words
    flat = draw(st.lists(number, min_size=size, max_size=size))
    return tensor(flat, dtype=torch.float64).reshape(2, steps, words)


@given(logits())
def test_each_token_agrees_with_torch(policies):
    new, ref = policies
    expected = kl_divergence(Categorical(logits=new), Categorical(logits=ref))
    assert_close(token_kl(new, ref), expected)


@given(logits())
def test_the_sequence_is_the_sum_over_the_mask(policies):
    new, ref = policies
    mask = torch.arange(new.shape[0]) % 2 == 0
    expected = sum(token_kl(new, ref)[t] for t in range(len(mask)) if mask[t])
    assert_close(rao_blackwell_kl(new, ref, mask), expected)


@given(logits())
def test_is_never_negative_and_exactly_zero_for_equal_policies(policies):
    new, ref = policies
    assert (token_kl(new, ref) >= -1e-14).all()  # rounding of a sum of order 1
    assert (token_kl(new, new) == 0).all()


@given(logits())
def test_a_masked_word_has_no_gradient_and_spoils_none(policies):
    new, ref = (
        torch.cat([x, torch.full_like(x[..., :1], -inf)], -1).requires_grad_()
        for x in policies
    )
    total = token_kl(new, ref).sum()
    total.backward()
    assert_close(total, token_kl(*policies).sum())
    assert new.grad.isfinite().all()
    assert ref.grad.isfinite().all()


def test_a_word_that_only_the_reference_excludes_costs_infinity():
    free, masked = tensor([[0.0, 0.0]]), tensor([[0.0, -inf]])
    assert token_kl(free, masked) == inf
    assert_close(token_kl(masked, free), tensor([2.0]).log())


def test_is_finite_where_torch_underflows():
    new, ref = tensor([[0.0, 0.0]]), tensor([[0.0, -120.0]])
    assert_close(token_kl(new, ref), 60 - tensor([2.0]).log())


def enumerated(steps, words):
    """All sequences with their log-probabilities and logits at each prefix."""
    states = sum(words**t for t in range(steps))
    generator = torch.Generator().manual_seed(0)
    policy, ref = torch.randn(
        2, states, words, dtype=torch.float64, generator=generator
    )
    policy.requires_grad_()
    sequences = every_sequence(words, steps)
    rows = prefixes(sequences, words)
    log_probs = [token_log_probs(x, sequences) for x in (policy, ref)]
    return policy, sequences, policy[rows], ref[rows], *log_probs


@pytest.mark.parametrize("stopping", [False, True])
def test_the_loss_has_value_and_gradient_of_the_kl(stopping):
    policy, sequences, new_logits, ref_logits, new, ref = enumerated(3, 4)
    ended = (sequences == 0).cumsum(-1) - (sequences == 0).long()
    mask = (ended == 0) | (not stopping)
    kl = new.sum(-1).exp() @ (new - ref).masked_fill(~mask, 0.0).sum(-1)
    (right,) = torch.autograd.grad(kl, policy, retain_graph=True)
    losses = rao_blackwell_loss(new_logits, ref_logits, new, mask)
    found = moments(new.sum(-1), losses, policy)
    assert_close(found.mean, kl.detach(), rtol=0, atol=1e-10)
    assert_close(found.gradient, right, rtol=0, atol=1e-10)
    assert_close(losses, rao_blackwell_kl(new_logits, ref_logits, mask))


def test_without_later_tokens_the_gradient_is_another():
    policy, sequences, new_logits, ref_logits, new, ref = enumerated(3, 4)
    kl = new.sum(-1).exp() @ (new - ref).sum(-1)
    (right,) = torch.autograd.grad(kl, policy, retain_graph=True)
    mask = torch.ones_like(sequences, dtype=torch.bool)
    losses = rao_blackwell_kl(new_logits, ref_logits, mask)
    part = moments(new.sum(-1), losses, policy).gradient
    assert (part - right).norm() > 0.1 * right.norm()


def test_one_token_has_no_variance():
    policy, sequences, new_logits, ref_logits, new, _ = enumerated(1, 5)
    mask = torch.ones_like(sequences, dtype=torch.bool)
    losses = rao_blackwell_loss(new_logits, ref_logits, new, mask)
    found = moments(new.sum(-1), losses, policy)
    assert found.variance < 1e-28
    assert found.gradient_variance < 1e-28  # the last token pays for nothing later


def test_the_exact_term_is_the_mean_of_the_sampled_one_at_each_prefix():
    _, sequences, new_logits, ref_logits, new, ref = enumerated(3, 3)
    exact = token_kl(new_logits, ref_logits)
    for t in range(3):
        weights = new.detach()[:, t].exp()
        for first in range(0, 27, 3 ** (3 - t)):  # sequences that share a prefix
            block = slice(first, first + 3 ** (3 - t), 3 ** (2 - t))
            mean = weights[block] @ (new - ref).detach()[block, t]
            assert_close(mean, exact.detach()[first, t])
    assert len(sequences) == 27


def test_over_a_sequence_the_variance_can_be_larger_than_that_of_k1():
    first_p, first_q = tensor([0.5, 0.5]), tensor([0.2, 0.8])
    first = (first_p / first_q).log()
    second = -tensor([1.0, 0.25]).log()  # certain under P
    sampled, exact = first + second, first_p @ first + second
    assert_close(first_p @ sampled, first_p @ exact)
    assert_close(sampled[0], sampled[1])
    assert_close((exact[1] - exact[0]).abs(), tensor(4.0).log())


@pytest.mark.parametrize("function", [rao_blackwell_kl, rao_blackwell_loss])
@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.ones(3, dtype=torch.bool)])
def test_refuses_a_mask_that_is_not_boolean_or_would_broadcast(function, mask):
    both, more = torch.zeros(2, 2, 3, 5), [torch.zeros(2, 3)]
    with pytest.raises(ValueError, match="mask must be boolean"):
        function(*both, *(more if function is rao_blackwell_loss else []), mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_keeps_dtype_and_batch_shape(dtype):
    both = torch.zeros(2, 4, 2, 3, 5, dtype=dtype)
    mask = torch.ones(4, 2, 3, dtype=torch.bool)
    assert token_kl(*both).shape == (4, 2, 3)
    found = rao_blackwell_loss(*both, torch.zeros(4, 2, 3, dtype=dtype), mask)
    assert found.shape == rao_blackwell_kl(*both, mask).shape == (4, 2)
    assert found.dtype == dtype
