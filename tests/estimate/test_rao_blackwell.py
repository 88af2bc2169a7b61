"""Exact next tokens: torch's values, the right gradient, their own variance."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from snippets.estimate.rao_blackwell import rao_blackwell_kl, rao_blackwell_loss
from snippets.exact.categorical import kl_divergence_logits
from snippets.lab.enumeration import (
    every_sequence,
    moments,
    prefixes,
    token_log_probs,
)
from tests.strategies import logits, masks

LENGTHS = tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])


def call(function, new, ref, log_probs, mask):
    """Either function of the module."""
    more = {} if function is rao_blackwell_kl else {"new_log_probs": log_probs}
    return function(new_logits=new, ref_logits=ref, mask=mask, **more)


BOTH = pytest.mark.parametrize("function", [rao_blackwell_kl, rao_blackwell_loss])


@given(logits(2, 3, 4, 5, largest=8), masks(3, 4))
def test_a_sequence_is_the_sum_of_torchs_kls_at_its_kept_tokens(policies, mask):
    new, ref = policies
    each = kl_divergence(Categorical(logits=new), Categorical(logits=ref))
    expected = each.where(mask, 0.0).sum(-1)
    found = rao_blackwell_kl(new_logits=new, ref_logits=ref, mask=mask)
    assert_close(found, expected)


@BOTH
@given(logits(2, 3, 4, 5), st.floats(1e-8, 1e-2))
def test_is_never_negative_in_float32_however_close_the_policies(
    function, policies, step
):
    new, ref = (x.float() for x in (policies[0], policies[0] + step * policies[1]))
    log_probs = torch.zeros(3, 4)
    assert (call(function, new, ref, log_probs, LENGTHS) >= 0).all()
    assert (call(function, new, new, log_probs, LENGTHS) == 0).all()


def test_keeps_its_digits_where_the_plain_sum_is_negative():
    generator = torch.Generator().manual_seed(0)
    new = torch.randn(200, 4, 6, generator=generator)
    ref = new + 1e-4 * torch.randn(200, 4, 6, generator=generator)
    log_new, log_ref = new.log_softmax(-1), ref.log_softmax(-1)
    plain = (log_new.exp() * (log_new - log_ref)).sum((-1, -2))
    assert (plain < 0).float().mean() > 0.2
    mask = torch.ones(200, 4, dtype=torch.bool)
    found = rao_blackwell_kl(new_logits=new, ref_logits=ref, mask=mask)
    exact = kl_divergence_logits(new.double(), ref.double()).sum(-1)
    # The logits carry 1e-7, each difference of 1e-4 therefore 1e-3; four of them.
    assert_close(found.double(), exact, rtol=5e-3, atol=0)


@pytest.mark.parametrize("junk", [nan, inf, -inf])
@pytest.mark.parametrize("whose", ["new", "ref", "both"])
@BOTH
def test_junk_at_padding_reaches_no_gradient_of_a_linear_head(function, junk, whose):
    """One row without a finite number at one padded position, in either policy."""

    def run(spoil):
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(3, 4, 7, generator=generator)
        head = torch.randn(7, 5, generator=generator).requires_grad_()
        bias, ref_bias = torch.zeros(2, 3, 4, 5)
        if spoil:
            bias[1, 2] = junk if whose != "ref" else 0.0
            ref_bias[1, 2] = junk if whose != "new" else 0.0
        new = hidden @ head + bias
        ref = torch.randn(3, 4, 5, generator=generator) + ref_bias
        log_probs = (hidden @ head).log_softmax(-1)[..., 0]  # gathered before padding
        value = call(function, new, ref, log_probs, LENGTHS)
        return value, torch.autograd.grad(value.sum(), head)[0]

    for spoiled, clean in zip(run(True), run(False), strict=True):
        assert torch.equal(spoiled, clean)


@pytest.mark.parametrize("hidden", [-inf, -1e4, -1e8, torch.finfo(torch.float32).min])
@BOTH
def test_a_masked_word_has_no_gradient_and_spoils_none(function, hidden):
    generator = torch.Generator().manual_seed(0)
    policies = torch.randn(2, 3, 4, 5, generator=generator)
    log_probs, bare = torch.zeros(3, 4), []
    for extra in (0, 1):
        leaves = [x.clone().requires_grad_() for x in policies]
        if extra:
            word = torch.full((3, 4, 1), hidden)
            new, ref = (torch.cat([x, word], -1) for x in leaves)
        else:
            new, ref = leaves
        value = call(function, new, ref, log_probs, LENGTHS)
        bare.append([value, *torch.autograd.grad(value.sum(), leaves)])
    for with_it, without in zip(bare[1], bare[0], strict=True):
        assert_close(with_it, without)


@BOTH
def test_a_word_that_the_reference_excludes_makes_it_infinite_or_nan(function):
    new, ref = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    ref[0, 1, 0] = -inf
    mask = torch.ones(1, 2, dtype=torch.bool)
    found = call(function, new, ref, torch.zeros(1, 2), mask)
    assert not found.isfinite().any()
    padded = call(function, new, ref, torch.zeros(1, 2), tensor([[True, False]]))
    assert padded == 0
    other = call(function, ref, new, torch.zeros(1, 2), mask)
    assert_close(other, tensor([2.0]).log())


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
    losses = rao_blackwell_loss(
        new_logits=new_logits, ref_logits=ref_logits, new_log_probs=new, mask=mask
    )
    found = moments(new.sum(-1), losses, policy)
    assert_close(found.mean, kl.detach(), rtol=0, atol=1e-10)
    assert_close(found.gradient, right, rtol=0, atol=1e-10)
    values = rao_blackwell_kl(new_logits=new_logits, ref_logits=ref_logits, mask=mask)
    assert_close(losses, values)


def test_without_later_tokens_the_gradient_is_another():
    policy, sequences, new_logits, ref_logits, new, ref = enumerated(3, 4)
    kl = new.sum(-1).exp() @ (new - ref).sum(-1)
    (right,) = torch.autograd.grad(kl, policy, retain_graph=True)
    mask = torch.ones_like(sequences, dtype=torch.bool)
    losses = rao_blackwell_kl(new_logits=new_logits, ref_logits=ref_logits, mask=mask)
    part = moments(new.sum(-1), losses, policy).gradient
    assert (part - right).norm() > 0.1 * right.norm()


def test_one_token_has_no_variance():
    policy, sequences, new_logits, ref_logits, new, _ = enumerated(1, 5)
    mask = torch.ones_like(sequences, dtype=torch.bool)
    losses = rao_blackwell_loss(
        new_logits=new_logits, ref_logits=ref_logits, new_log_probs=new, mask=mask
    )
    found = moments(new.sum(-1), losses, policy)
    assert found.variance < 1e-28
    assert found.gradient_variance < 1e-28  # nothing comes after the last token


def test_the_exact_term_is_the_mean_of_the_sampled_one_at_each_prefix():
    _, sequences, new_logits, ref_logits, new, ref = enumerated(3, 3)
    exact = kl_divergence_logits(new_logits, ref_logits)
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


def test_the_gradient_of_a_token_counts_only_what_comes_after_it():
    """And no digits are lost where the token's own KL is far larger."""
    new = torch.zeros(1, 3, 2)
    ref = tensor([[[0.0, 80.0], [0.0, 0.0], [0.0, 1e-2]]])
    log_probs = torch.zeros(1, 3, requires_grad=True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    rao_blackwell_loss(
        new_logits=new, ref_logits=ref, new_log_probs=log_probs, mask=mask
    ).sum().backward()
    last = kl_divergence_logits(new, ref)[0, 2]
    # Multiplying by a score is exact; the sum of what comes later has one term.
    assert_close(
        log_probs.grad, torch.stack([last, last, last * 0])[None], rtol=1e-6, atol=0
    )


@BOTH
@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.ones(3, dtype=torch.bool)])
def test_refuses_a_mask_that_is_not_boolean_or_would_broadcast(function, mask):
    with pytest.raises(ValueError, match=r"mask (must be boolean|is \[3\])"):
        call(function, *torch.zeros(2, 2, 3, 5), torch.zeros(2, 3), mask)


@BOTH
def test_an_empty_sequence_has_no_kl(function):
    mask = torch.zeros(2, 0, dtype=torch.bool)
    found = call(function, *torch.zeros(2, 2, 0, 5), torch.zeros(2, 0), mask)
    assert found.tolist() == [0, 0]
