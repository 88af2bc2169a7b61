"""V-MPO weights the better half, and its dual bounds the KL of those weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from snippets.lab.mdp import advantages, small_problem, visitation
from snippets.algorithms.regularised.vmpo import (
    policy_loss,
    sample_weights,
    step_divergence,
    temperature_loss,
    top_half,
    weight_divergence,
)

PROBLEM = small_problem(torch.float64)


@st.composite
def batches(draw):
    """Advantages of two rows of samples, and which samples are present."""
    width = draw(st.integers(1, 9))
    floats = st.lists(st.floats(-3, 3), min_size=2 * width, max_size=2 * width)
    flags = st.lists(st.booleans(), min_size=2 * width, max_size=2 * width)
    mask = tensor(draw(flags)).reshape(2, width)
    mask[:, 0] = True
    return tensor(draw(floats), dtype=torch.float64).reshape(2, width), mask


etas = st.floats(0.1, 10).map(lambda x: tensor(x, dtype=torch.float64))


@given(batches())
def test_the_kept_are_the_higher_half_of_those_present(batch):
    scores, mask = batch
    kept = top_half(scores, mask)
    assert not (kept & ~mask).any()
    assert kept.sum(-1).tolist() == [math.ceil(n / 2) for n in mask.sum(-1).tolist()]
    for row, taken, present in zip(scores, kept, mask, strict=True):
        left = row[present & ~taken]
        assert left.numel() == 0 or left.max() <= row[taken].min()


@given(batches(), etas)
def test_the_divergence_of_the_weights_is_torchs(batch, eta):
    scores, mask = batch
    kept = top_half(scores, mask)
    weights = sample_weights(scores, kept, eta)
    for row, taken, value in zip(
        weights, kept, weight_divergence(weights, kept), strict=True
    ):
        chosen = Categorical(row[taken])
        uniform = Categorical(torch.ones_like(row[taken]))
        # Both cancel near zero.
        expected = kl_divergence(chosen, uniform)
        assert_close(value, expected, atol=1e-12, rtol=1e-7)


@given(batches(), etas, st.floats(0.01, 1))
def test_the_slope_of_the_dual_is_epsilon_less_the_divergence(batch, eta, epsilon):
    scores, mask = batch
    kept = top_half(scores, mask)
    eta.requires_grad_()
    loss = temperature_loss(scores, kept, eta, epsilon).sum()
    (slope,) = torch.autograd.grad(loss, eta)
    weights = sample_weights(scores, kept, eta)
    expected = (epsilon - weight_divergence(weights, kept)).sum()
    # Scores of order 30.
    assert_close(slope, expected.detach(), atol=1e-12, rtol=1e-7)


@given(etas)
def test_choosing_half_costs_log_two_against_the_whole_batch(eta):
    # Every state and action of the small problem is a sample with its own weight.
    scores = advantages(PROBLEM, torch.full((3, 3), 1 / 3, dtype=torch.float64))
    even = scores.flatten()[:8]
    kept = top_half(even, torch.ones(8, dtype=torch.bool))
    weights = sample_weights(even, kept, eta)
    against_all = (weights[kept] * (weights[kept] * 8).log()).sum()
    expected = weight_divergence(weights, kept) + math.log(2)
    assert_close(against_all, expected)


def test_the_loss_is_the_weighted_likelihood():
    old = torch.zeros(3, 3, dtype=torch.float64)
    scores = advantages(PROBLEM, old.softmax(-1))
    new = torch.randn(3, 3, dtype=torch.float64).log_softmax(-1)
    kept = top_half(scores.flatten(), torch.ones(9, dtype=torch.bool))
    weights = sample_weights(scores.flatten(), kept, tensor(1.0))
    summed = -sum(weights[3 * s + a] * new[s, a] for s in range(3) for a in range(3))
    assert_close(policy_loss(weights, new.flatten()), summed)


@given(st.integers(0, 2**31))
def test_the_divergence_is_the_sum_over_actions(seed):
    torch.manual_seed(seed)
    old, new = torch.randn(2, 3, 3, dtype=torch.float64)
    p, q = old.softmax(-1), new.softmax(-1)
    summed = sum(p[:, a] * (p[:, a] / q[:, a]).log() for a in range(3))
    assert_close(step_divergence(old, new), summed)
    over_states = visitation(PROBLEM, p) @ step_divergence(old, new)
    assert over_states > 0


def test_equal_advantages_keep_the_earlier_half():
    kept = top_half(torch.zeros(5), torch.ones(5, dtype=torch.bool))
    assert kept.tolist() == [True, True, True, False, False]


def test_an_absent_sample_changes_nothing():
    scores = tensor([[1.0, 2.0, 3.0, 99.0]])
    mask = tensor([[True, True, True, False]])
    kept, short = top_half(scores, mask), top_half(scores[:, :3], mask[:, :3])
    assert kept.tolist() == [[False, True, True, False]]
    eta = tensor(0.5)
    weights = sample_weights(scores, kept, eta)
    assert_close(weights[:, :3], sample_weights(scores[:, :3], short, eta))
    assert_close(
        temperature_loss(scores, kept, eta, 0.1),
        temperature_loss(scores[:, :3], short, eta, 0.1),
    )
    log_probs = tensor([[-1.0, -2.0, -3.0, -inf]], requires_grad=True)
    loss = policy_loss(weights, log_probs)
    loss.sum().backward()
    assert loss.isfinite()
    assert log_probs.grad.isfinite().all()


def test_nothing_changed_is_exactly_zero():
    logits = torch.randn(100, 5)
    assert (step_divergence(logits, logits) == 0).all()
    kept = torch.ones(8, dtype=torch.bool)
    assert weight_divergence(torch.full((8,), 1 / 8), kept) == 0


def test_masked_actions_keep_the_gradient():
    old = torch.randn(4, 3)
    masked = torch.cat([old, torch.full((4, 1), -inf)], -1)
    new = torch.cat([torch.randn(4, 3), torch.full((4, 1), -inf)], -1).requires_grad_()
    value = step_divergence(masked, new)
    assert_close(value, step_divergence(old, new[:, :3]))
    value.sum().backward()
    assert new.grad.isfinite().all()


def test_batches_and_float32():
    scores = torch.randn(4, 5, 8)
    kept = top_half(scores, torch.ones(4, 5, 8, dtype=torch.bool))
    weights = sample_weights(scores, kept, tensor(0.5))
    assert weights.dtype == torch.float32
    assert_close(weights.sum(-1), torch.ones(4, 5))
    assert weight_divergence(weights, kept).shape == (4, 5)
    assert temperature_loss(scores, kept, tensor(0.5), 0.1).shape == (4, 5)
    assert policy_loss(weights, scores).shape == (4, 5)


def test_a_row_without_samples_is_refused():
    with pytest.raises(ValueError, match="mask leaves a row without samples"):
        top_half(torch.zeros(2, 3), tensor([[True] * 3, [False] * 3]))
