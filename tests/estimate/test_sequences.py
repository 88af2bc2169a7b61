"""Sums, rewards to go, and three means that padding does not move."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nan, tensor
from torch.testing import assert_close

from snippets.lab.enumeration import every_sequence, moments, token_log_probs
from snippets.estimate.sequences import (
    full_gradient_loss,
    mean_of_means,
    mean_of_sums,
    sequence_log_prob,
    to_go,
    token_gradient_loss,
    token_mean,
)

MEANS = (token_mean, mean_of_means, mean_of_sums)
OF_VALUES = (sequence_log_prob, to_go, *MEANS)
LOSSES = (full_gradient_loss, token_gradient_loss)


@st.composite
def padded(draw):
    """Values and mask of 1 to 4 sequences of 1 to 5 tokens, padded on the right."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    mask = torch.arange(max(lengths)) < tensor(lengths).unsqueeze(-1)
    number = st.floats(-10, 10)
    rows = [draw(st.lists(number, min_size=n, max_size=n)) for n in lengths]
    values = torch.full(mask.shape, nan, dtype=torch.float64)
    values[mask] = tensor([x for row in rows for x in row], dtype=torch.float64)
    return rows, values, mask


@given(padded())
def test_sums_and_means_are_those_of_the_unpadded_lists(case):
    rows, values, mask = case
    sums = [sum(row) for row in rows]
    means = [sum(row) / len(row) for row in rows]
    expected = {
        token_mean: sum(sums) / sum(len(row) for row in rows),
        mean_of_means: sum(means) / len(rows),
        mean_of_sums: sum(sums) / len(rows),
    }
    for average, number in expected.items():
        assert average(values, mask).item() == pytest.approx(number, abs=1e-9)
    found = sequence_log_prob(values, mask)
    assert_close(found, tensor(sums, dtype=torch.float64), rtol=0, atol=1e-9)


@given(padded())
def test_rewards_to_go_are_those_of_the_unpadded_lists(case):
    rows, values, mask = case
    expected = [sum(row[t:]) for row in rows for t in range(len(row))]
    found = to_go(values, mask)[mask]
    assert_close(found, tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


@given(padded(), st.integers(1, 4))
def test_more_padding_changes_nothing(case, more):
    _, values, mask = case
    longer = torch.nn.functional.pad(values, (0, more), value=nan)
    longer_mask = torch.nn.functional.pad(mask, (0, more), value=False)
    for average in MEANS:
        assert_close(average(longer, longer_mask), average(values, mask))


@given(padded())
def test_a_mean_over_padding_is_diluted_by_its_share(case):
    _, values, mask = case
    filled = values.masked_fill(~mask, 0.0)
    share = mask.double().mean()
    assert_close(filled.mean(), token_mean(values, mask) * share)


@given(padded())
def test_gradients_under_the_mask_are_zero(case):
    _, values, mask = case
    for function in (*OF_VALUES, *LOSSES):
        leaf = values.clone().requires_grad_()
        others = (torch.zeros_like(values),) if function in LOSSES else ()
        function(leaf, *others, mask).sum().backward()
        assert (leaf.grad[~mask] == 0).all()
        assert leaf.grad.isfinite().all()


def three_steps():
    """Every sequence of 3 actions out of 3, under a policy and a reference."""
    generator = torch.Generator().manual_seed(0)
    policy, ref = torch.randn(2, 13, 3, dtype=torch.float64, generator=generator)
    policy.requires_grad_()
    sequences = every_sequence(3, 3)
    new, anchor = (token_log_probs(x, sequences) for x in (policy, ref))
    return policy, sequences, new, anchor


def stop_masks(sequences):
    """All tokens, or those up to and with the first action 0."""
    ended = (sequences == 0).cumsum(-1) - (sequences == 0).long()
    return torch.ones_like(sequences, dtype=torch.bool), ended == 0


@pytest.mark.parametrize("stops", [0, 1])
def test_the_full_loss_has_the_gradient_of_the_kl(stops):
    policy, sequences, new, anchor = three_steps()
    mask = stop_masks(sequences)[stops]
    ratio = (new - anchor).masked_fill(~mask, 0.0)
    # What follows a stop adds up to one: weights of whole sequences will do.
    kl = new.sum(-1).exp() @ ratio.sum(-1)
    (right,) = torch.autograd.grad(kl, policy, retain_graph=True)
    losses = full_gradient_loss(new, anchor, mask)
    found = moments(new.sum(-1), losses, policy).gradient
    assert_close(found, right, rtol=0, atol=1e-10)


@pytest.mark.parametrize("stops", [0, 1])
def test_the_token_loss_has_the_gradient_at_given_prefixes(stops):
    policy, sequences, new, anchor = three_steps()
    mask = stop_masks(sequences)[stops]
    part = 0.0
    for t in range(3):  # E[ KL of token t given its prefix ], the prefix held fixed
        before = new[:, :t].sum(-1).detach().exp() * new[:, t:].sum(-1).exp()
        kl_t = (before * (new - anchor)[:, t])[mask[:, t]].sum()
        part = part + torch.autograd.grad(kl_t, policy, retain_graph=True)[0]
    losses = token_gradient_loss(new, anchor, mask)
    found = moments(new.sum(-1), losses, policy).gradient
    assert_close(found, part, rtol=0, atol=1e-10)


def test_for_one_token_both_losses_have_the_same_gradient():
    policy = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    new = token_log_probs(policy, every_sequence(4, 1))
    anchor, mask = torch.randn(4, 1).double(), torch.ones(4, 1, dtype=torch.bool)
    full, part = (
        moments(new.sum(-1), loss(new, anchor, mask), policy).gradient
        for loss in LOSSES
    )
    assert_close(full, part, rtol=0, atol=1e-12)


def test_only_the_mean_of_sums_estimates_the_kl():
    _, sequences, new, anchor = three_steps()
    _, mask = stop_masks(sequences)
    copies = (new.sum(-1).exp() * 100_000).round().long()  # a batch without noise
    batch = (new - anchor).detach().repeat_interleave(copies, 0)
    kept = mask.repeat_interleave(copies, 0)
    ratio = (new - anchor).masked_fill(~mask, 0.0)
    kl = (new.sum(-1).exp() @ ratio.sum(-1)).item()
    # Rounding to whole copies moves a mean of order 1 by 27 halves in 100,000.
    assert mean_of_sums(batch, kept).item() == pytest.approx(kl, abs=1e-3)
    assert abs(token_mean(batch, kept).item() - kl) > 0.1
    assert abs(mean_of_means(batch, kept).item() - kl) > 0.1


def test_a_reference_that_is_not_detached_gets_no_gradient():
    new, ref = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3).requires_grad_()
    mask = torch.ones(2, 3, dtype=torch.bool)
    for loss in LOSSES:
        loss(new, ref, mask).sum().backward()
    assert ref.grad is None


def test_an_empty_sequence_has_a_sum_and_no_mean():
    values, mask = torch.ones(2, 3), tensor([[True] * 3, [False] * 3])
    assert sequence_log_prob(values, mask).tolist() == [3, 0]
    assert mean_of_sums(values, mask) == 1.5
    assert mean_of_means(values, mask).isnan()
    assert token_mean(values, mask) == 1


@pytest.mark.parametrize("function", OF_VALUES)
@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.ones(3, dtype=torch.bool)])
def test_refuses_a_mask_that_is_not_boolean_or_would_broadcast(function, mask):
    with pytest.raises(ValueError, match="mask must be boolean, with the shape of"):
        function(torch.zeros(2, 3), mask)


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.ones(3, dtype=torch.bool)])
def test_losses_refuse_such_a_mask(function, mask):
    with pytest.raises(ValueError, match="with the shape of new_log_probs"):
        function(torch.zeros(2, 3), torch.zeros(2, 3), mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_policies_give_exactly_zero(dtype):
    same, mask = torch.randn(2, 3, dtype=dtype), torch.ones(2, 3, dtype=torch.bool)
    for loss in LOSSES:
        found = loss(same, same, mask)
        assert found.dtype == dtype
        assert torch.equal(found, torch.zeros(2, dtype=dtype))
