"""Sums, rewards to go, and three means that padding does not move."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.testing import assert_close

from snippets.estimate.estimators import k3
from snippets.estimate.gradients import weighted_k3_loss
from snippets.estimate.sequences import (
    reward_to_go,
    seq_mean_token_mean,
    seq_mean_token_sum,
    sequence_gradient_loss,
    sequence_k3,
    sequence_log_prob,
    token_gradient_loss,
    token_mean,
    weighted_token_loss,
)
from snippets.lab.enumeration import every_sequence, moments, token_log_probs
from tests.strategies import padded

MEANS = (token_mean, seq_mean_token_mean, seq_mean_token_sum)
OF_VALUES = (sequence_log_prob, reward_to_go, *MEANS)
LOSSES = (sequence_gradient_loss, token_gradient_loss)


@given(padded())
def test_sums_and_means_are_those_of_the_unpadded_lists(case):
    rows, values, mask = case
    sums = [sum(row) for row in rows]
    means = [sum(row) / len(row) for row in rows]
    expected = {
        token_mean: sum(sums) / sum(len(row) for row in rows),
        seq_mean_token_mean: sum(means) / len(rows),
        seq_mean_token_sum: sum(sums) / len(rows),
    }
    for average, number in expected.items():
        assert average(values, mask).item() == pytest.approx(number, abs=1e-9)
    found = sequence_log_prob(values, mask)
    assert_close(found, tensor(sums, dtype=torch.float64), rtol=0, atol=1e-9)


@given(padded())
def test_rewards_to_go_are_those_of_the_unpadded_lists(case):
    rows, values, mask = case
    expected = [sum(row[t:]) for row in rows for t in range(len(row))]
    found = reward_to_go(values, mask)[mask]
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
        if function in LOSSES:
            junk = torch.zeros_like(values).masked_fill(~mask, -inf)
            result = function(new_log_probs=leaf, ref_log_probs=junk, mask=mask)
        else:
            result = function(leaf, mask)
        result.sum().backward()
        assert (leaf.grad[~mask] == 0).all()
        assert leaf.grad.isfinite().all()


def three_steps():
    """Every sequence of 3 actions out of 3, under a policy and a reference."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 13, 3, dtype=torch.float64, generator=generator)
    policy.requires_grad_()
    sequences = every_sequence(3, 3)
    new, ref = (token_log_probs(x, sequences) for x in (policy, reference))
    return policy, sequences, new, ref


def stop_masks(sequences):
    """All tokens, or those up to and with the first action 0."""
    ended = (sequences == 0).cumsum(-1) - (sequences == 0).long()
    return torch.ones_like(sequences, dtype=torch.bool), ended == 0


@pytest.mark.parametrize("stops", [0, 1])
def test_the_full_loss_has_the_gradient_of_the_kl(stops):
    policy, sequences, new, ref = three_steps()
    mask = stop_masks(sequences)[stops]
    ratio = (new - ref).masked_fill(~mask, 0.0)
    # What follows a stop adds up to one: weights of whole sequences will do.
    kl = new.sum(-1).exp() @ ratio.sum(-1)
    (right,) = torch.autograd.grad(kl, policy, retain_graph=True)
    losses = sequence_gradient_loss(new_log_probs=new, ref_log_probs=ref, mask=mask)
    found = moments(new.sum(-1), losses, policy).gradient
    assert_close(found, right, rtol=0, atol=1e-10)


@pytest.mark.parametrize("stops", [0, 1])
def test_the_token_loss_has_the_gradient_at_given_prefixes(stops):
    policy, sequences, new, ref = three_steps()
    mask = stop_masks(sequences)[stops]
    part = 0.0
    for t in range(3):  # E[ KL of token t given its prefix ], the prefix held fixed
        before = new[:, :t].sum(-1).detach().exp() * new[:, t:].sum(-1).exp()
        kl_t = (before * (new - ref)[:, t])[mask[:, t]].sum()
        part = part + torch.autograd.grad(kl_t, policy, retain_graph=True)[0]
    losses = token_gradient_loss(new_log_probs=new, ref_log_probs=ref, mask=mask)
    found = moments(new.sum(-1), losses, policy).gradient
    assert_close(found, part, rtol=0, atol=1e-10)


def test_for_one_token_both_losses_have_the_same_gradient():
    policy = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    new = token_log_probs(policy, every_sequence(4, 1))
    ref, mask = torch.randn(4, 1).double(), torch.ones(4, 1, dtype=torch.bool)
    full, part = (
        moments(
            new.sum(-1), loss(new_log_probs=new, ref_log_probs=ref, mask=mask), policy
        ).gradient
        for loss in LOSSES
    )
    assert_close(full, part, rtol=0, atol=1e-12)


def test_only_the_mean_of_sums_estimates_the_kl():
    _, sequences, new, ref = three_steps()
    _, mask = stop_masks(sequences)
    copies = (new.sum(-1).exp() * 100_000).round().long()  # a batch without noise
    batch = (new - ref).detach().repeat_interleave(copies, 0)
    kept = mask.repeat_interleave(copies, 0)
    ratio = (new - ref).masked_fill(~mask, 0.0)
    kl = (new.sum(-1).exp() @ ratio.sum(-1)).item()
    # Rounding to whole copies moves a mean of order 1 by 27 halves in 100,000.
    assert seq_mean_token_sum(batch, kept).item() == pytest.approx(kl, abs=1e-3)
    assert abs(token_mean(batch, kept).item() - kl) > 0.1
    assert abs(seq_mean_token_mean(batch, kept).item() - kl) > 0.1


def test_a_reference_that_is_not_detached_gets_no_gradient():
    new, ref = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3).requires_grad_()
    mask = torch.ones(2, 3, dtype=torch.bool)
    for loss in LOSSES:
        loss(new_log_probs=new, ref_log_probs=ref, mask=mask).sum().backward()
    assert ref.grad is None


def test_an_empty_sequence_has_a_sum_and_no_mean():
    values, mask = torch.ones(2, 3), tensor([[True] * 3, [False] * 3])
    assert sequence_log_prob(values, mask).tolist() == [3, 0]
    assert seq_mean_token_sum(values, mask) == 1.5
    assert seq_mean_token_mean(values, mask).isnan()
    assert token_mean(values, mask) == 1


@pytest.mark.parametrize("function", OF_VALUES)
@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.ones(3, dtype=torch.bool)])
def test_refuses_a_mask_that_is_not_boolean_or_would_broadcast(function, mask):
    with pytest.raises(ValueError, match=r"mask (must be boolean|is \[3\])"):
        function(torch.zeros(2, 3), mask)


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.ones(3, dtype=torch.bool)])
def test_losses_refuse_such_a_mask(function, mask):
    given = dict.fromkeys(("new_log_probs", "ref_log_probs"), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"mask (must be boolean|is \[3\])"):
        function(**given, mask=mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_policies_give_exactly_zero(dtype):
    same, mask = torch.randn(2, 3, dtype=dtype), torch.ones(2, 3, dtype=torch.bool)
    for loss in LOSSES:
        found = loss(new_log_probs=same, ref_log_probs=same, mask=mask)
        assert found.dtype == dtype
        assert torch.equal(found, torch.zeros(2, dtype=dtype))


@pytest.mark.parametrize("stops", [0, 1])
def test_the_sum_of_k3_over_tokens_has_the_sequence_kl_as_mean(stops):
    _, sequences, new, ref = three_steps()
    mask = stop_masks(sequences)[stops]
    kl = new.sum(-1).exp() @ (new - ref).masked_fill(~mask, 0.0).sum(-1)
    values = sequence_k3(new, ref, mask)
    assert_close(new.sum(-1).exp() @ values, kl)
    assert (values >= 0).all()
    assert_close(values, k3(new, ref).masked_fill(~mask, 0.0).sum(-1))


def test_the_sum_over_tokens_has_less_variance_than_the_whole_sequence():
    _, sequences, new, ref = three_steps()
    mask = torch.ones_like(sequences, dtype=torch.bool)
    weights = new.sum(-1).exp()
    tokens, whole = sequence_k3(new, ref, mask), k3(new.sum(-1), ref.sum(-1))
    spread = [(weights @ x.square() - (weights @ x).square()) for x in (tokens, whole)]
    assert spread[0] < spread[1] / 3


@pytest.mark.parametrize("stops", [0, 1])
def test_a_weight_per_token_corrects_the_token_and_not_its_prefix(stops):
    """Value and gradient are those of each next-token KL, at the prefixes of old."""
    policy, sequences, new, ref = three_steps()
    mask = stop_masks(sequences)[stops]
    generator = torch.Generator().manual_seed(1)
    shift = torch.randn(13, 3, dtype=torch.float64, generator=generator)
    old = token_log_probs((policy + 0.4 * shift).detach(), sequences)
    mean = 0.0
    for t in range(3):  # token t from new, the tokens before it from old
        before = old[:, :t].sum(-1).exp() * new[:, t:].sum(-1).exp()
        mean = mean + (before * (new - ref)[:, t])[mask[:, t]].sum()
    (right,) = torch.autograd.grad(mean, policy, retain_graph=True)
    losses = weighted_token_loss(
        new_log_probs=new, old_log_probs=old, ref_log_probs=ref, mask=mask
    )
    found = moments(old.sum(-1), losses, policy)
    assert_close(found.mean, mean.detach(), rtol=0, atol=1e-10)
    assert_close(found.gradient, right, rtol=0, atol=1e-10)


def test_a_weight_per_token_is_applied_token_by_token():
    new, old, ref = -torch.rand(3, 2, 4)
    mask = tensor([[True] * 4, [True, True, False, False]])
    each = weighted_k3_loss(new_log_probs=new, old_log_probs=old, ref_log_probs=ref)
    found = weighted_token_loss(
        new_log_probs=new, old_log_probs=old, ref_log_probs=ref, mask=mask
    )
    assert_close(found, torch.stack([each[0].sum(), each[1, :2].sum()]))


@given(padded(), st.integers(1, 3))
def test_micro_batches_with_the_whole_count_add_up_to_the_whole_mean(case, at):
    _, values, mask = case
    count = mask.sum()
    parts = [
        token_mean(x, kept, count=count)
        for x, kept in zip(values.split(at), mask.split(at), strict=True)
    ]
    assert_close(sum(parts), token_mean(values, mask))


def test_a_mean_of_means_of_unequal_micro_batches_is_another_number():
    """Two ranks: one token of value 9, and two of 1 each; 11 / 3, not 5."""
    values, mask = tensor([[9.0, 0.0], [1.0, 1.0]]), tensor([[True, False], [True] * 2])
    ranks = list(zip(values.split(1), mask.split(1), strict=True))
    of_means = sum(token_mean(*rank) for rank in ranks) / 2
    whole = sum(token_mean(*rank, count=3) for rank in ranks)
    assert of_means == 5
    assert_close(whole, tensor(11 / 3))
    assert_close(token_mean(values, mask), tensor(11 / 3))


@pytest.mark.parametrize("count", [0, -1, float("nan")])
def test_refuses_a_count_that_is_not_positive(count):
    with pytest.raises(ValueError, match="count is"):
        token_mean(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), count=count)


@pytest.mark.parametrize("average", MEANS)
@pytest.mark.parametrize("function", [k3, lambda new, ref: (new - ref).square() / 2])
def test_junk_under_the_mask_stays_out_of_a_mean_if_it_is_filled_before(
    average, function
):
    """A mean masks its values; what computed them must have been given no junk."""
    mask = tensor([[True, True, False]])
    new = tensor([[-1.0, -2.0, -inf]], requires_grad=True)
    ref = tensor([[-1.5, -1.0, nan]])
    filled = [x.masked_fill(~mask, 0.0) for x in (new, ref)]
    average(function(*filled), mask).backward()
    assert new.grad.isfinite().all()
    new.grad = None
    average(function(new, ref), mask).backward()
    assert new.grad[0, 2].isnan()  # 0 * nan: the mask came too late


def test_a_kept_token_that_the_sampler_cannot_give_is_no_number():
    """After top-k filtering the sampler may have -inf where its token was."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    never, one = tensor([[-inf]]), tensor([[-1.0]])
    assert not sequence_k3(never, one, mask).isfinite().any()
    weighted = weighted_token_loss(
        new_log_probs=one, old_log_probs=never, ref_log_probs=one, mask=mask
    )
    assert not weighted.isfinite().any()
