"""The penalty is +beta·KL(old || new), and the controllers hold their target."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.testing import assert_close

from snippets.lab.mdp import advantages, small_problem, visitation
from snippets.algorithms.trust_region.ppo_penalty import (
    MODULAR_RL,
    PAPER,
    RLLIB,
    adapt_coefficient,
    penalty_loss,
)

PROBLEM = small_problem(torch.float64)
CONTROLLERS = st.sampled_from([PAPER, MODULAR_RL, RLLIB])
ACTIONS = torch.arange(3)


@st.composite
def logits(draw):
    """Logits of a policy for the small problem, away from its corners."""
    row = st.lists(st.floats(-2, 2), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3)


def divergence(old, new):
    """KL(old || new) of each state, summed over the actions."""
    p, q = old.softmax(-1), new.softmax(-1)
    return sum(p[:, a] * (p[:, a] / q[:, a]).log() for a in range(3))


def mean_loss(old, new, beta):
    """The loss averaged over every state and action of the old policy."""
    p = old.softmax(-1)
    gained = advantages(PROBLEM, p)
    each = torch.stack(
        [
            penalty_loss(old, new, ACTIONS[a].expand(3), gained[:, a], beta)
            for a in range(3)
        ],
        -1,
    )
    return (visitation(PROBLEM, p)[:, None] * p * each).sum()


@given(logits(), logits(), st.floats(0, 10))
def test_the_penalty_is_beta_times_the_sum_over_actions(old, new, beta):
    nothing = torch.zeros(3, dtype=torch.float64)
    loss = penalty_loss(old, new, ACTIONS, nothing, beta)
    assert_close(loss, beta * divergence(old, new), atol=1e-12, rtol=1e-7)


@given(logits(), logits())
def test_without_penalty_the_mean_is_the_surrogate(old, new):
    p, q = old.softmax(-1), new.softmax(-1)
    expected = visitation(PROBLEM, p) @ (q * advantages(PROBLEM, p)).sum(-1)
    # A sum of nine terms of order 1 in which most cancels.
    assert_close(mean_loss(old, new, 0.0), -expected, atol=1e-12, rtol=1e-7)


@given(logits(), st.floats(0.5, 5))
def test_descent_stops_sooner_with_a_larger_penalty(old, beta):
    states, moved = visitation(PROBLEM, old.softmax(-1)), []
    for coefficient in (beta, 2 * beta):
        new = old.clone().requires_grad_()
        optimiser = torch.optim.SGD([new], lr=0.5)
        for _ in range(50):
            optimiser.zero_grad()
            mean_loss(old, new, coefficient).backward()
            optimiser.step()
        moved.append(states @ divergence(old, new.detach()))
    assert moved[1] < moved[0]


@given(logits())
def test_at_the_old_policy_the_penalty_has_neither_value_nor_gradient(old):
    new = old.clone().requires_grad_()
    loss = penalty_loss(old, new, ACTIONS, torch.zeros(3), 1.0)
    loss.sum().backward()
    assert (loss == 0).all()
    # Differences of two probabilities.
    assert_close(new.grad, torch.zeros_like(old), atol=1e-15, rtol=0)


def test_the_old_policy_receives_no_gradient():
    old = torch.zeros(1, 3, requires_grad=True)
    new = torch.ones(1, 3, requires_grad=True)
    penalty_loss(old, new, tensor([0]), tensor([1.0]), 1.0).sum().backward()
    assert old.grad is None


def test_a_masked_action_is_as_good_as_absent():
    old, new = tensor([[0.0, 1, -inf]]), tensor([[1.0, 0, -inf]]).requires_grad_()
    loss = penalty_loss(old, new, tensor([0]), tensor([1.0]), 0.5)
    free = penalty_loss(old[:, :2], new[:, :2], tensor([0]), tensor([1.0]), 0.5)
    assert_close(loss, free)
    loss.sum().backward()
    assert new.grad.isfinite().all()


def test_float32_and_batches():
    old, new = torch.zeros(4, 5, 3), torch.ones(4, 5, 3)
    actions = torch.zeros(4, 5, dtype=torch.int64)
    loss = penalty_loss(old, new, actions, torch.ones(4, 5), 1.0)
    assert loss.shape == (4, 5)
    assert loss.dtype == torch.float32


@given(CONTROLLERS, st.floats(0.001, 0.1), st.floats(0.001, 100))
def test_on_target_nothing_changes(controller, target, beta):
    assert adapt_coefficient(beta, target, target, controller) == beta


@given(CONTROLLERS, st.floats(0.001, 0.1), st.floats(0.001, 100))
def test_too_far_raises_and_too_near_lowers(controller, target, beta):
    assert adapt_coefficient(beta, 3 * target, target, controller) > beta
    assert adapt_coefficient(beta, target / 3, target, controller) < beta


@given(CONTROLLERS)
def test_a_system_whose_divergence_falls_with_beta_settles_in_the_band(controller):
    # A quadratic objective: the update's KL is proportional to 1 / beta².
    beta, target = 0.2, 0.01
    for _ in range(60):
        beta = adapt_coefficient(beta, 0.02 / beta**2, target, controller)
    # One change moves the KL by at most a factor of four, so it is at most that
    # far outside; the paper's factors leave no more.
    assert controller.low / 4 <= 0.02 / beta**2 / target <= controller.high * 4


def test_ten_updates_far_above_the_target():
    grown = []
    for controller in (PAPER, MODULAR_RL, RLLIB):
        beta = 1.0
        for _ in range(10):
            beta = adapt_coefficient(beta, 1.0, 0.01, controller)
        grown.append(beta)
    assert grown == [2.0**10, 1.5**10, 1.5**10]


@pytest.mark.parametrize("divergence", [nan, inf, -inf])
def test_refuses_a_divergence_that_is_not_finite(divergence):
    with pytest.raises(ValueError, match="no coefficient answers"):
        adapt_coefficient(1.0, divergence, 0.01, PAPER)


def test_refuses_a_target_of_zero():
    with pytest.raises(ValueError, match="target is 0"):
        adapt_coefficient(1.0, 0.01, 0.0, PAPER)


def test_refuses_a_negative_coefficient():
    with pytest.raises(ValueError, match="rewards divergence"):
        penalty_loss(
            torch.zeros(1, 3), torch.zeros(1, 3), tensor([0]), tensor([1.0]), -1.0
        )
