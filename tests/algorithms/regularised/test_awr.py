"""AWR's regression is a projection of the optimum, weighted by Z of the state."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from snippets.algorithms.regularised.awr import (
    batch_weights,
    clipped_weights,
    regression_loss,
)
from snippets.algorithms.regularised.optimal_policy import optimal_policy
from snippets.exact.categorical import kl_divergence_logits
from snippets.lab.mdp import advantages, expected_return, small_problem

PROBLEM = small_problem(torch.float64)


@st.composite
def tables(draw):
    """Logits or advantages for three states and three actions."""
    row = st.lists(st.floats(-3, 3), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3)


betas = st.floats(0.1, 10)
WIDE = 1e30  # above every weight of these tests: nothing is clipped


def improved(behaviour, gains, beta):
    """The optimal policy for a KL to the data."""
    return optimal_policy(ref_logits=behaviour, rewards=gains, beta=beta)


@given(tables(), tables(), tables(), betas)
def test_no_policy_earns_more_at_this_coefficient(new, behaviour, gains, beta):
    def worth(logits):
        kl = kl_divergence_logits(logits, behaviour)
        torchs = kl_divergence(
            Categorical(logits=logits), Categorical(logits=behaviour)
        )
        assert_close(kl, torchs, atol=1e-12, rtol=1e-7)  # terms of order 10 cancel
        return (logits.softmax(-1) * gains).sum(-1) - beta * kl

    # Rounding of numbers of order 30.
    best = improved(behaviour, gains, beta)
    assert (worth(new) <= worth(best) + 1e-12).all()


@given(tables(), tables(), tables(), betas)
def test_the_regression_is_the_projection_times_z(behaviour, gains, new, beta):
    mu, best = behaviour.softmax(-1), improved(behaviour, gains, beta)
    weights = clipped_weights(advantages=gains, beta=beta, limit=WIDE)
    each = regression_loss(weights=weights, new_log_probs=new.log_softmax(-1))
    loss = (mu * each).sum(-1)
    z = (mu * weights).sum(-1)
    entropy = Categorical(logits=best).entropy()
    assert_close(loss, z * (kl_divergence_logits(best, new) + entropy))


@given(tables(), betas)
def test_the_improved_policy_returns_more(behaviour, beta):
    gains = advantages(PROBLEM, behaviour.softmax(-1))
    better = improved(behaviour, gains, beta).softmax(-1)
    before = expected_return(PROBLEM, behaviour.softmax(-1))
    # Policy improvement, up to rounding of returns of order 10.
    assert expected_return(PROBLEM, better) >= before - 1e-12


def test_fitting_all_the_data_ends_at_the_optimum():
    behaviour = torch.zeros(3, 3, dtype=torch.float64)
    gains = advantages(PROBLEM, behaviour.softmax(-1))
    best = improved(behaviour, gains, 0.7).requires_grad_()
    weights = clipped_weights(advantages=gains, beta=0.7, limit=WIDE)
    each = regression_loss(weights=weights, new_log_probs=best.log_softmax(-1))
    (slope,) = torch.autograd.grad((behaviour.softmax(-1) * each).sum(), best)
    # Differences of probabilities times weights of order 1.
    assert_close(slope, torch.zeros_like(slope), atol=1e-14, rtol=0)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9), st.floats(0.5, 100))
def test_weights_are_clipped_and_never_overflow(gains, limit):
    at = tensor(gains)
    weights = clipped_weights(advantages=at, beta=0.01, limit=limit)  # up to exp(5000)
    assert weights.isfinite().all()
    # exp(log(limit)) in single precision.
    assert (weights <= limit * (1 + 1e-5)).all()
    gentle = clipped_weights(advantages=at / 100, beta=2.0, limit=1e4)
    assert_close(gentle, (at / 200).exp())


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=9), betas)
def test_batch_weights_average_to_one_and_stay_below_their_number(gains, beta):
    at = tensor(gains, dtype=torch.float64)
    every = torch.ones_like(at, dtype=torch.bool)
    weights = batch_weights(advantages=at, mask=every, beta=beta)
    assert_close(weights.mean(), tensor(1.0, dtype=torch.float64))
    assert_close(weights, len(gains) * (at / beta).softmax(-1))
    assert (weights <= len(gains) * (1 + 1e-12)).all()
    # So the KL that a batch can express is bounded by the log of its size.
    spent = (weights * weights.log()).mean()
    assert spent <= math.log(len(gains)) + 1e-12


@pytest.mark.parametrize("junk", [99.0, inf, -inf, nan])
def test_an_absent_sample_changes_nothing(junk):
    gains = tensor([1.0, 2.0, junk])
    mask = tensor([True, True, False])
    weights = batch_weights(advantages=gains, mask=mask, beta=0.5)
    short = batch_weights(advantages=gains[:2], mask=mask[:2], beta=0.5)
    assert_close(weights[:2], short)
    log_probs = tensor([-1.0, -2.0, junk], requires_grad=True)
    loss = regression_loss(weights=weights, new_log_probs=log_probs)
    assert loss[2] == 0
    loss.sum().backward()
    assert_close(log_probs.grad, -weights)


def test_a_batch_without_samples_is_nan():
    nobody = torch.zeros(2, dtype=torch.bool)
    weights = batch_weights(advantages=torch.zeros(2), mask=nobody, beta=1.0)
    assert weights.isnan().all()


def test_the_weights_carry_no_gradient():
    gains = torch.randn(3, requires_grad=True)
    every = torch.ones(3, dtype=torch.bool)
    weights = batch_weights(advantages=gains, mask=every, beta=1.0)
    assert not weights.requires_grad
    assert not clipped_weights(advantages=gains, beta=1.0, limit=20.0).requires_grad
    learned = weights.clone().requires_grad_()
    log_probs = torch.zeros(3, requires_grad=True)
    regression_loss(weights=learned, new_log_probs=log_probs).sum().backward()
    assert learned.grad is None


def test_a_masked_action_is_as_good_as_absent():
    behaviour, gains = torch.randn(2, 4, 3)
    masked = torch.cat([behaviour, torch.full((4, 1), -inf)], -1)
    extra = torch.cat([gains, torch.full((4, 1), 9.0)], -1)
    best, narrow = improved(masked, extra, 1.0), improved(behaviour, gains, 1.0)
    assert_close(best[:, :3], narrow)
    value = kl_divergence_logits(best, masked)
    assert_close(value, kl_divergence_logits(narrow, behaviour))
    new = masked.clone().requires_grad_()
    kl_divergence_logits(best, new).sum().backward()
    assert new.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype):
    gains = torch.randn(300).to(dtype)
    every = torch.ones(300, dtype=torch.bool)
    half = batch_weights(advantages=gains, mask=every, beta=0.3)
    wide = batch_weights(advantages=gains.float(), mask=every, beta=0.3)
    assert_close(half, wide.to(dtype), atol=0, rtol=0)


def test_batches_and_float32():
    gains, new = torch.randn(2, 4, 5, 6)
    weights = clipped_weights(advantages=gains, beta=0.5, limit=20.0)
    assert weights.shape == (4, 5, 6)
    assert weights.dtype == torch.float32
    assert regression_loss(weights=weights, new_log_probs=new).shape == (4, 5, 6)
    some = torch.rand(4, 5, 6) > 0.3
    rows = batch_weights(advantages=gains, mask=some, beta=0.5)
    one = batch_weights(advantages=gains[1, 2], mask=some[1, 2], beta=0.5)
    assert_close(rows[1, 2], one)


@pytest.mark.parametrize("number", [0.0, -1.0, nan])
def test_a_number_that_is_not_positive_is_refused(number):
    zeros, every = torch.zeros(2), torch.ones(2, dtype=torch.bool)
    with pytest.raises(ValueError, match="limit is"):
        clipped_weights(advantages=zeros, beta=1.0, limit=number)
    with pytest.raises(ValueError, match="beta is"):
        clipped_weights(advantages=zeros, beta=number, limit=1.0)
    with pytest.raises(ValueError, match="beta is"):
        batch_weights(advantages=zeros, mask=every, beta=number)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="new_log_probs is"):
        regression_loss(weights=torch.ones(3), new_log_probs=torch.ones(3, 1))
    every = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="mask is"):
        batch_weights(advantages=torch.ones(1, 3), mask=every, beta=1.0)
