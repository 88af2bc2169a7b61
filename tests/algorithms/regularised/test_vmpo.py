"""V-MPO weights the better half, and its dual bounds the KL of those weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from snippets.algorithms.regularised.awr import regression_loss
from snippets.algorithms.regularised.mpo import solve_temperature
from snippets.algorithms.regularised.vmpo import (
    kept_logits,
    sample_log_weights,
    top_half,
    vmpo_temperature_loss,
)
from snippets.exact.categorical import kl_divergence_logits
from snippets.lab.mdp import advantages, small_problem

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


def weigh(scores, kept, eta):
    """Log-weights, and their KL to uniform over the kept samples."""
    log_weights = sample_log_weights(advantages=scores, kept=kept, eta=eta)
    return log_weights, kl_divergence_logits(log_weights, kept_logits(kept))


@given(batches())
def test_the_kept_are_the_higher_half_of_those_present(batch):
    scores, mask = batch
    kept = top_half(advantages=scores, mask=mask)
    assert not (kept & ~mask).any()
    assert kept.sum(-1).tolist() == [math.ceil(n / 2) for n in mask.sum(-1).tolist()]
    for row, taken, present in zip(scores, kept, mask, strict=True):
        left = row[present & ~taken]
        assert left.numel() == 0 or left.max() <= row[taken].min()


@given(batches(), etas)
def test_the_divergence_of_the_weights_is_torchs(batch, eta):
    scores, mask = batch
    kept = top_half(advantages=scores, mask=mask)
    log_weights, kl = weigh(scores, kept, eta)
    rows = zip(scores, log_weights.exp(), kept, kl, strict=True)
    for score, row, taken, value in rows:
        chosen = Categorical(row[taken])
        uniform = Categorical(torch.ones_like(row[taken]))
        # Both cancel near zero.
        expected = kl_divergence(chosen, uniform)
        assert_close(value, expected, atol=1e-12, rtol=1e-7)
        assert_close(row[taken], (score[taken] / eta).softmax(-1))


@given(batches(), etas, st.floats(0.01, 1))
def test_the_slope_of_the_dual_is_epsilon_less_the_divergence(batch, eta, epsilon):
    scores, mask = batch
    kept = top_half(advantages=scores, mask=mask)
    eta.requires_grad_()
    loss = vmpo_temperature_loss(
        advantages=scores, kept=kept, eta=eta, epsilon=epsilon
    ).sum()
    (slope,) = torch.autograd.grad(loss, eta)
    expected = (epsilon - weigh(scores, kept, eta)[1]).sum()
    # Scores of order 30.
    assert_close(slope, expected.detach(), atol=1e-12, rtol=1e-7)


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1.0, 1e4, 1e9])
def test_mpos_solver_finds_the_temperature_of_the_weights(scale):
    torch.manual_seed(0)
    scores = scale * torch.randn(1, 64)
    kept = top_half(advantages=scores, mask=torch.ones(1, 64, dtype=torch.bool))
    eta = solve_temperature(
        old_logits=kept_logits(kept), action_values=scores, epsilon=0.02
    )
    # Single precision of the log-weights, of order 5, beside steps of order 0.2.
    assert_close(weigh(scores, kept, eta)[1], tensor([0.02]), atol=0, rtol=1e-4)


@given(etas)
def test_choosing_half_is_log_two_against_the_whole_batch(eta):
    # Every state and action of the small problem is a sample with its own weight.
    scores = advantages(PROBLEM, torch.full((3, 3), 1 / 3, dtype=torch.float64))
    even = scores.flatten()[:8]
    kept = top_half(advantages=even, mask=torch.ones(8, dtype=torch.bool))
    log_weights, kl = weigh(even, kept, eta)
    against_all = kl_divergence_logits(log_weights, torch.zeros_like(even))
    assert_close(against_all, kl + math.log(2))


def test_the_loss_is_the_weighted_likelihood():
    old = torch.zeros(3, 3, dtype=torch.float64)
    scores = advantages(PROBLEM, old.softmax(-1)).flatten()
    new = torch.randn(3, 3, dtype=torch.float64).log_softmax(-1)
    kept = top_half(advantages=scores, mask=torch.ones(9, dtype=torch.bool))
    weights = weigh(scores, kept, tensor(0.6))[0].exp()
    summed = -sum(weights[3 * s + a] * new[s, a] for s in range(3) for a in range(3))
    loss = regression_loss(weights=weights, new_log_probs=new.flatten()).sum()
    assert_close(loss, summed)


@given(st.integers(0, 2**31))
def test_the_divergence_of_the_step_is_the_sum_over_actions(seed):
    torch.manual_seed(seed)
    old, new = torch.randn(2, 3, 3, dtype=torch.float64)
    p, q = old.softmax(-1), new.softmax(-1)
    summed = sum(p[:, a] * (p[:, a] / q[:, a]).log() for a in range(3))
    assert_close(kl_divergence_logits(old, new), summed)


def test_equal_advantages_keep_the_earlier_half():
    every = torch.ones(5, dtype=torch.bool)
    kept = top_half(advantages=torch.zeros(5), mask=every)
    assert kept.tolist() == [True, True, True, False, False]
    # A sort that is not told to be stable shuffles equal numbers in longer rows.
    levels = torch.arange(5000.0).remainder(3)
    kept = top_half(advantages=levels, mask=torch.ones(5000, dtype=torch.bool))
    middle = kept[levels == 1]
    assert middle.int().diff().max() <= 0  # first those kept, then those not
    assert middle.any() > middle.all()


@pytest.mark.parametrize("junk", [99.0, inf, -inf, nan])
def test_an_absent_sample_changes_nothing(junk):
    scores = tensor([[1.0, 2.0, 3.0, junk]])
    mask = tensor([[True, True, True, False]])
    kept = top_half(advantages=scores, mask=mask)
    short = top_half(advantages=scores[:, :3], mask=mask[:, :3])
    assert kept.tolist() == [[False, True, True, False]]
    eta = tensor(0.5, requires_grad=True)
    log_weights, _ = weigh(scores, kept, eta)
    assert_close(log_weights[:, :3], weigh(scores[:, :3], short, eta)[0])
    loss = vmpo_temperature_loss(advantages=scores, kept=kept, eta=eta, epsilon=0.1)
    expected = vmpo_temperature_loss(
        advantages=scores[:, :3], kept=short, eta=eta, epsilon=0.1
    )
    assert_close(loss, expected)
    (slope,) = torch.autograd.grad(loss.sum(), eta)
    assert slope.isfinite()
    log_probs = tensor([[-1.0, -2.0, -3.0, junk]], requires_grad=True)
    fit = regression_loss(weights=log_weights.exp(), new_log_probs=log_probs).sum()
    fit.backward()
    assert fit.isfinite()
    assert log_probs.grad.isfinite().all()


def test_a_row_without_samples_keeps_none_and_is_nan():
    mask = tensor([[True] * 3, [False] * 3])
    kept = top_half(advantages=torch.zeros(2, 3), mask=mask)
    assert kept.sum(-1).tolist() == [2, 0]
    log_weights, kl = weigh(torch.zeros(2, 3), kept, tensor(1.0))
    assert log_weights.isnan().all(-1).tolist() == [False, True]
    assert kl.isnan().tolist() == [False, True]
    loss = vmpo_temperature_loss(
        advantages=torch.zeros(2, 3), kept=kept, eta=tensor(1.0), epsilon=0.1
    )
    assert loss.isnan().tolist() == [False, True]


def test_top_half_runs_under_vmap_and_compile():
    scores, mask = torch.randn(4, 8), torch.rand(4, 8) > 0.3

    def half(scores, mask):
        return top_half(advantages=scores, mask=mask)

    expected = half(scores, mask)
    assert_close(torch.vmap(half)(scores, mask), expected)
    whole = torch.compile(half, fullgraph=True, backend="eager")
    assert_close(whole(scores, mask), expected)


def test_nothing_changed_is_exactly_zero():
    kept = torch.ones(8, dtype=torch.bool)
    log_weights, kl = weigh(torch.full((8,), 0.3), kept, tensor(0.1))
    assert kl == 0
    assert_close(log_weights.exp(), torch.full((8,), 1 / 8))


@pytest.mark.parametrize("mask", [-inf, -1e4, -1e8, torch.finfo(torch.float32).min])
def test_masked_actions_keep_the_gradient_of_the_step(mask):
    old, new = torch.randn(2, 4, 3)
    masked = torch.cat([old, torch.full((4, 1), mask)], -1)
    new = torch.cat([new, torch.full((4, 1), -inf)], -1).requires_grad_()
    value = kl_divergence_logits(masked, new)
    assert_close(value, kl_divergence_logits(old, new[:, :3]))
    value.sum().backward()
    assert new.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype):
    scores = torch.randn(64).to(dtype)
    kept = top_half(advantages=scores, mask=torch.ones(64, dtype=torch.bool))
    named = {"kept": kept, "eta": tensor(0.5), "epsilon": 0.1}
    half = vmpo_temperature_loss(advantages=scores, **named)
    wide = vmpo_temperature_loss(advantages=scores.float(), **named)
    assert_close(half, wide.to(dtype), atol=0, rtol=0)


def test_batches_and_float32():
    scores = torch.randn(4, 5, 8)
    kept = top_half(advantages=scores, mask=torch.ones(4, 5, 8, dtype=torch.bool))
    log_weights, kl = weigh(scores, kept, tensor(0.5))
    assert log_weights.dtype == torch.float32
    assert_close(log_weights.exp().sum(-1), torch.ones(4, 5))
    assert kl.shape == (4, 5)
    loss = vmpo_temperature_loss(
        advantages=scores, kept=kept, eta=tensor(0.5), epsilon=0.1
    )
    assert loss.shape == (4, 5)
    assert loss.dtype == torch.float32


def test_the_advantages_get_no_gradient():
    scores = torch.randn(4, requires_grad=True)
    kept = top_half(advantages=scores, mask=torch.ones(4, dtype=torch.bool))
    eta = tensor(0.5, requires_grad=True)
    assert not sample_log_weights(advantages=scores, kept=kept, eta=eta).requires_grad
    vmpo_temperature_loss(advantages=scores, kept=kept, eta=eta, epsilon=0.1).backward()
    assert scores.grad is None


def test_a_mask_of_numbers_is_refused():
    with pytest.raises(ValueError, match="mask must be boolean"):
        top_half(advantages=torch.zeros(3), mask=torch.ones(3))
