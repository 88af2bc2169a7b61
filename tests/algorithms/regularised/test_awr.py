"""AWR's regression is a projection of the optimum, weighted by Z of the state."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from snippets.algorithms.regularised.awr import (
    batch_weights,
    clipped_weights,
    constraint_divergence,
    improved_policy,
    projection_divergence,
    regression_loss,
)
from snippets.lab.mdp import advantages, expected_return, small_problem

PROBLEM = small_problem(torch.float64)


@st.composite
def tables(draw):
    """Logits or advantages for three states and three actions."""
    row = st.lists(st.floats(-3, 3), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3)


betas = st.floats(0.1, 10)
WIDE = 1e30  # above every weight of these tests: nothing is clipped


@given(tables(), tables())
def test_both_divergences_are_sums_over_actions(optimum, other):
    p, q = optimum.softmax(-1), other.softmax(-1)
    summed = sum(p[:, a] * (p[:, a] / q[:, a]).log() for a in range(3))
    for function in (constraint_divergence, projection_divergence):
        # Terms of order 1 cancel where the policies are alike.
        assert_close(function(optimum, other), summed, atol=1e-14, rtol=1e-7)


@given(tables(), tables(), tables(), betas)
def test_no_policy_earns_more_at_this_price(new, behaviour, gains, beta):
    def worth(logits):
        spent = kl_divergence(Categorical(logits=logits), Categorical(logits=behaviour))
        return (logits.softmax(-1) * gains).sum(-1) - beta * spent

    # Rounding of numbers of order 30.
    best = improved_policy(behaviour, gains, beta)
    assert (worth(new) <= worth(best) + 1e-12).all()


@given(tables(), tables(), tables(), betas)
def test_the_regression_is_the_projection_times_z(behaviour, gains, new, beta):
    mu, best = behaviour.softmax(-1), improved_policy(behaviour, gains, beta)
    weights = clipped_weights(gains, beta, WIDE)
    loss = (mu * regression_loss(weights, new.log_softmax(-1))).sum(-1)
    z = (mu * weights).sum(-1)
    entropy = Categorical(logits=best).entropy()
    assert_close(loss, z * (projection_divergence(best, new) + entropy))


@given(tables(), betas)
def test_the_improved_policy_returns_more(behaviour, beta):
    gains = advantages(PROBLEM, behaviour.softmax(-1))
    better = improved_policy(behaviour, gains, beta).softmax(-1)
    before = expected_return(PROBLEM, behaviour.softmax(-1))
    # Policy improvement, up to rounding of returns of order 10.
    assert expected_return(PROBLEM, better) >= before - 1e-12


def test_fitting_all_the_data_ends_at_the_optimum():
    behaviour = torch.zeros(3, 3, dtype=torch.float64)
    gains = advantages(PROBLEM, behaviour.softmax(-1))
    best = improved_policy(behaviour, gains, 1.0).requires_grad_()
    weights = clipped_weights(gains, 1.0, WIDE)
    loss = behaviour.softmax(-1) * regression_loss(weights, best.log_softmax(-1))
    (slope,) = torch.autograd.grad(loss.sum(), best)
    # Differences of probabilities times weights of order 1.
    assert_close(slope, torch.zeros_like(slope), atol=1e-14, rtol=0)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9), st.floats(0.5, 100))
def test_weights_are_clipped_and_never_overflow(gains, limit):
    at = tensor(gains)
    weights = clipped_weights(at, 0.01, limit)  # exponents up to 5000
    assert weights.isfinite().all()
    # exp(log(limit)) in single precision.
    assert (weights <= limit * (1 + 1e-5)).all()
    gentle = clipped_weights(at / 100, 1.0, 1e4)
    assert_close(gentle, (at / 100).exp())


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=9), betas)
def test_batch_weights_average_to_one_and_stay_below_their_number(gains, beta):
    at = tensor(gains, dtype=torch.float64)
    weights = batch_weights(at, torch.ones_like(at, dtype=torch.bool), beta)
    assert_close(weights.mean(), tensor(1.0, dtype=torch.float64))
    assert (weights <= len(gains) * (1 + 1e-12)).all()
    # So the KL that a batch can express is bounded by the log of its size.
    spent = (weights * weights.log()).mean()
    assert spent <= math.log(len(gains)) + 1e-12


def test_an_absent_sample_changes_nothing():
    gains, mask = tensor([1.0, 2.0, 99.0]), tensor([True, True, False])
    weights = batch_weights(gains, mask, 1.0)
    assert_close(weights[:2], batch_weights(gains[:2], mask[:2], 1.0))
    log_probs = tensor([-1.0, -2.0, -inf], requires_grad=True)
    loss = regression_loss(weights, log_probs)
    assert loss[2] == 0
    loss.sum().backward()
    assert log_probs.grad.isfinite().all()


def test_the_weights_carry_no_gradient():
    gains = torch.randn(3, requires_grad=True)
    assert not clipped_weights(gains, 1.0, 20.0).requires_grad
    every = torch.ones(3, dtype=torch.bool)
    assert not batch_weights(gains, every, 1.0).requires_grad


def test_a_masked_action_is_as_good_as_absent():
    behaviour, gains = torch.randn(2, 4, 3)
    masked = torch.cat([behaviour, torch.full((4, 1), -inf)], -1)
    extra = torch.cat([gains, torch.full((4, 1), 9.0)], -1)
    best = improved_policy(masked, extra, 1.0)
    narrow = improved_policy(behaviour, gains, 1.0)
    assert_close(best[:, :3], narrow)
    value = constraint_divergence(best, masked)
    assert_close(value, constraint_divergence(narrow, behaviour))
    new = masked.clone().requires_grad_()
    projection_divergence(best, new).sum().backward()
    assert new.grad.isfinite().all()


def test_nothing_changed_is_exactly_zero():
    logits = torch.randn(100, 5)
    assert (constraint_divergence(logits, logits) == 0).all()
    assert (projection_divergence(logits, logits) == 0).all()


def test_batches_and_float32():
    behaviour, gains, new = torch.randn(3, 4, 5, 6)
    best = improved_policy(behaviour, gains, 0.5)
    assert best.dtype == torch.float32
    assert constraint_divergence(best, behaviour).shape == (4, 5)
    assert projection_divergence(best, new).shape == (4, 5)
    assert clipped_weights(gains, 0.5, 20.0).shape == (4, 5, 6)


def test_a_limit_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"limit is 0\.0, not positive"):
        clipped_weights(torch.zeros(2), 1.0, 0.0)
