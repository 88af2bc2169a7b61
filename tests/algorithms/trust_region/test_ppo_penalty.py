"""The penalty is +beta·KL(old || new), and the controllers hold their target."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.testing import assert_close

from snippets.algorithms.trust_region.ppo_penalty import (
    MODULAR_RL,
    PAPER,
    RLLIB,
    adapt_coefficient,
    penalty_loss,
)
from snippets.exact.categorical import kl_divergence_logits
from snippets.lab.mdp import advantages, occupancy, small_problem
from tests.strategies import logits, numbers

PROBLEM = small_problem(torch.float64)
POLICIES = logits(3, 3, largest=2.0)
CONTROLLERS = st.sampled_from([PAPER, MODULAR_RL, RLLIB])
ACTIONS = torch.arange(3)


def loss_of(old, new, actions, advantages, beta):
    return penalty_loss(
        new_logits=new,
        old_logits=old,
        actions=actions,
        advantages=advantages,
        beta=beta,
    )


def mean_loss(old, new, beta):
    """The loss averaged over every state and action of the old policy."""
    p = old.softmax(-1)
    adv = advantages(PROBLEM, p)
    each = torch.stack(
        [loss_of(old, new, ACTIONS[a].expand(3), adv[:, a], beta) for a in range(3)],
        -1,
    )
    return (occupancy(PROBLEM, p)[:, None] * p * each).sum()


@given(POLICIES, POLICIES, st.floats(0, 10))
def test_the_penalty_is_beta_times_the_sum_over_actions(old, new, beta):
    nothing = torch.zeros(3, dtype=torch.float64)
    loss = loss_of(old, new, ACTIONS, nothing, beta)
    assert_close(loss, beta * kl_divergence_logits(old, new), atol=1e-12, rtol=1e-7)


@given(POLICIES, POLICIES)
def test_without_penalty_the_mean_is_the_surrogate(old, new):
    p, q = old.softmax(-1), new.softmax(-1)
    expected = occupancy(PROBLEM, p) @ (q * advantages(PROBLEM, p)).sum(-1)
    # A sum of nine terms of order 1 in which most cancels.
    assert_close(mean_loss(old, new, 0.0), -expected, atol=1e-12, rtol=1e-7)


@settings(max_examples=15)  # each is a hundred steps
@given(POLICIES, st.floats(0.5, 3))
def test_descent_stops_sooner_with_a_larger_penalty(old, beta):
    states, moved = occupancy(PROBLEM, old.softmax(-1)), []
    for coefficient in (beta, 2 * beta):
        new = old.clone().requires_grad_()
        optimiser = torch.optim.SGD([new], lr=0.2)  # more oscillates at 2 * beta
        for _ in range(50):
            optimiser.zero_grad()
            mean_loss(old, new, coefficient).backward()
            optimiser.step()
        moved.append(states @ kl_divergence_logits(old, new.detach()))
    assert moved[1] < moved[0]


@given(POLICIES)
def test_at_the_old_policy_the_penalty_has_neither_value_nor_gradient(old):
    new = old.clone().requires_grad_()
    loss = loss_of(old, new, ACTIONS, torch.zeros(3).double(), 1.0)
    loss.sum().backward()
    assert (loss == 0).all()
    # Differences of two probabilities.
    assert_close(new.grad, torch.zeros_like(old), atol=1e-15, rtol=0)


def test_the_old_policy_receives_no_gradient():
    old = torch.zeros(1, 3, requires_grad=True)
    new = torch.ones(1, 3, requires_grad=True)
    loss_of(old, new, tensor([0]), tensor([1.0]), 1.0).sum().backward()
    assert old.grad is None


def test_a_masked_action_is_as_good_as_absent():
    old, new = tensor([[0.0, 1, -inf]]), tensor([[1.0, 0, -inf]]).requires_grad_()
    loss = loss_of(old, new, tensor([0]), tensor([1.0]), 0.5)
    free = loss_of(old[:, :2], new[:, :2], tensor([0]), tensor([1.0]), 0.5)
    assert_close(loss, free)
    loss.sum().backward()
    assert new.grad.isfinite().all()


def test_float32_and_batches():
    old, new = torch.zeros(4, 5, 3), torch.ones(4, 5, 3)
    actions = torch.zeros(4, 5, dtype=torch.int64)
    loss = loss_of(old, new, actions, torch.ones(4, 5), 1.0)
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
    with pytest.raises(ValueError, match="no coefficient mends"):
        adapt_coefficient(1.0, divergence, 0.01, PAPER)


def test_refuses_a_target_of_zero():
    with pytest.raises(ValueError, match="target is 0"):
        adapt_coefficient(1.0, 0.01, 0.0, PAPER)


def test_refuses_a_negative_coefficient():
    with pytest.raises(ValueError, match="rewards divergence"):
        loss_of(torch.zeros(1, 3), torch.zeros(1, 3), tensor([0]), torch.ones(1), -1.0)


@given(POLICIES, POLICIES, numbers(3, largest=50.0), st.floats(0, 5))
def test_the_loss_is_the_ratio_times_the_advantage_and_the_divergence(
    old, new, adv, beta
):
    p, q = old.softmax(-1), new.softmax(-1)
    index = tensor([2, 0, 1])
    ratio = (q / p).gather(-1, index[:, None])[:, 0]
    kl = sum(p[:, a] * (p[:, a] / q[:, a]).log() for a in range(3))
    found = loss_of(old, new, index, adv, beta)
    # Terms of order 100 that cancel.
    assert_close(found, beta * kl - ratio * adv, atol=1e-11, rtol=1e-7)


def test_the_advantages_get_no_gradient():
    adv = torch.ones(1, requires_grad=True)
    new = torch.zeros(1, 3, requires_grad=True)
    loss_of(torch.zeros(1, 3), new, tensor([0]), adv, 1.0).sum().backward()
    assert new.grad is not None
    assert adv.grad is None


def test_an_action_masked_now_that_the_old_policy_hardly_took_adds_nothing():
    old, new = tensor([[0.0, -200.0]]), tensor([[0.0, -inf]]).requires_grad_()
    loss = loss_of(old, new, tensor([0]), torch.zeros(1), 1.0)
    loss.sum().backward()
    assert loss == 0
    assert (new.grad == 0).all()


def test_many_actions_in_half_precision():
    torch.manual_seed(0)
    old = torch.randn(1, 50_000).bfloat16()
    new = (old.float() + 0.1 * torch.randn(1, 50_000)).bfloat16()
    exact = kl_divergence_logits(old.double(), new.double())
    loss = loss_of(old, new, tensor([0]), torch.zeros(1).bfloat16(), 1.0)
    # One rounding to the eight bits of bfloat16.
    assert_close(loss.double(), exact, rtol=2**-8, atol=0)


def test_without_a_coefficient_a_kl_of_infinity_does_not_count():
    old, new = torch.zeros(1, 2), tensor([[0.0, -inf]])
    assert loss_of(old, new, tensor([0]), torch.ones(1), 0.0) == -2
    assert loss_of(old, new, tensor([0]), torch.ones(1), 0.1) == inf


@pytest.mark.parametrize("actions", [torch.zeros(3, 1).long(), torch.zeros(3)])
def test_refuses_actions_that_are_no_index_per_state(actions):
    with pytest.raises(ValueError, match=r"actions (is|must)"):
        loss_of(torch.zeros(3, 2), torch.zeros(3, 2), actions, torch.zeros(3), 1.0)


@pytest.mark.parametrize(
    ("controller", "high", "low", "raised", "lowered"),
    [
        (PAPER, 1.5, 1 / 1.5, 2.0, 1 / 2),  # section 4 of the paper
        (MODULAR_RL, 1.3, 0.7, 1.5, 1 / 1.5),  # ppo.py of joschu/modular_rl
        (RLLIB, 2.0, 0.5, 1.5, 1 / 2),  # ppo_torch_learner.py of ray
    ],
)
@pytest.mark.parametrize("beta", [0.2, 7.0])
def test_the_thresholds_and_factors_are_those_of_the_source(
    controller, high, low, raised, lowered, beta
):
    target = 0.25
    for times, factor in ((1.01 * high, raised), (0.99 * low, lowered)):
        found = adapt_coefficient(beta, times * target, target, controller)
        assert found == pytest.approx(beta * factor, rel=1e-15)
    for times in (0.99 * high, 1.01 * low):
        assert adapt_coefficient(beta, times * target, target, controller) == beta
    for edge in (controller.high * target, controller.low * target):
        assert adapt_coefficient(beta, edge, target, controller) == beta


def test_a_coefficient_that_is_halved_often_enough_becomes_zero():
    beta, halvings = 1.0, 0
    while beta > 0:
        beta = adapt_coefficient(beta, 0.0, 0.01, PAPER)
        halvings += 1
    # 2^-1074 is the smallest positive number in double precision.
    assert halvings == 1075
    with pytest.raises(ValueError, match="beta is 0"):
        adapt_coefficient(beta, 1.0, 0.01, PAPER)
