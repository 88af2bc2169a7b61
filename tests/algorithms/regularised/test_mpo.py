"""MPO's dual has its minimum where the KL is epsilon; its projection is a KL."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.distributions import Categorical, Normal, kl_divergence
from torch.testing import assert_close

from snippets.lab.mdp import action_values, expected_return, small_problem
from snippets.algorithms.regularised.mpo import (
    constraint_losses,
    decoupled_divergences,
    improved_policy,
    improvement_divergence,
    projection_loss,
    solve_temperature,
    temperature_dual,
)

PROBLEM = small_problem(torch.float64)


@st.composite
def tables(draw):
    """Logits or values for three states and three actions."""
    row = st.lists(st.floats(-3, 3), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3)


@st.composite
def gaussians(draw):
    """Mean and log standard deviation of old and new, four dimensions."""
    row = st.lists(st.floats(-2, 2), min_size=16, max_size=16)
    return tensor(draw(row), dtype=torch.float64).reshape(4, 4)


# No action above 0.79, so the greedy policy is 0.24 nats away in every state.
open_minded = tables().map(lambda logits: logits / 3)
temperatures = st.floats(0.1, 10).map(lambda x: tensor(x, dtype=torch.float64))


@given(tables(), tables())
def test_the_improvement_is_the_sum_over_actions(target, old):
    p, q = target.softmax(-1), old.softmax(-1)
    summed = sum(p[:, a] * (p[:, a] / q[:, a]).log() for a in range(3))
    # Sums of terms of order 1 that cancel where the policies are alike.
    assert_close(improvement_divergence(target, old), summed, atol=1e-14, rtol=1e-7)


@given(tables(), tables(), temperatures, st.floats(0.01, 1))
def test_the_slope_of_the_dual_is_epsilon_less_the_divergence(old, q, eta, epsilon):
    eta.requires_grad_()
    (slope,) = torch.autograd.grad(temperature_dual(old, q, eta, epsilon).mean(), eta)
    target = improved_policy(old, q, eta.detach())
    expected = epsilon - improvement_divergence(target, old).mean()
    # Q / eta is of order 30, and its rounding is the tolerance.
    assert_close(slope, expected, atol=1e-12, rtol=1e-7)


@given(open_minded, st.floats(0.01, 0.2))
def test_the_solved_temperature_meets_the_constraint(old, epsilon):
    q = action_values(PROBLEM, old.softmax(-1))
    eta = solve_temperature(old, q, epsilon)
    reached = improvement_divergence(improved_policy(old, q, eta), old).mean()
    # The bisection ends at neighbouring floats of log eta; the KL changes by less
    # than 100 times that.
    assert_close(reached, tensor(epsilon, dtype=torch.float64), atol=1e-12, rtol=0)
    around = torch.stack([eta * 0.99, eta, eta * 1.01])
    dual = [temperature_dual(old, q, x, epsilon).mean() for x in around]
    assert dual[1] < min(dual[0], dual[2])


@given(open_minded, tables(), st.floats(0.02, 0.2))
def test_no_policy_within_epsilon_has_a_higher_mean_value(old, q, epsilon):
    q = q + tensor([0.0, 7.0, 14.0])  # so that greedy is far from every old policy
    new = torch.randn(200, 3, 3, dtype=torch.float64)
    near = old.lerp(new, 0.2)
    within = improvement_divergence(near, old).mean(-1) <= epsilon
    eta = solve_temperature(old, q, epsilon)
    best = (improved_policy(old, q, eta).exp() * q).sum(-1).mean()
    reached = (near.softmax(-1) * q).sum(-1).mean(-1)[within]
    assert (reached <= best + 1e-9).all()  # the bisection's own error, times Q


@given(open_minded, st.floats(0.01, 0.2))
def test_the_improved_policy_returns_more(old, epsilon):
    q = action_values(PROBLEM, old.softmax(-1))
    better = improved_policy(old, q, solve_temperature(old, q, epsilon)).exp()
    before = expected_return(PROBLEM, old.softmax(-1))
    assert expected_return(PROBLEM, better) >= before


def test_samples_are_a_policy_uniform_over_themselves():
    q = torch.randn(5, 64, dtype=torch.float64)
    eta = tensor(0.7, dtype=torch.float64)
    weights = improved_policy(torch.zeros_like(q), q, eta).exp()
    assert_close(weights, (q / eta).softmax(-1))
    expected = eta * (0.1 + (q / eta).exp().mean(-1).log())
    assert_close(temperature_dual(torch.zeros_like(q), q, eta, 0.1), expected)


def test_without_log_n_the_constraint_is_another():
    # logsumexp where logmeanexp belongs: epsilon grows by the log of the number.
    q = torch.randn(1, 64, dtype=torch.float64)
    for eta in (0.1, 1.0, 10.0):
        at = tensor(eta, dtype=torch.float64, requires_grad=True)
        wrong = at * (0.1 + (q / at).logsumexp(-1))
        right = temperature_dual(torch.zeros_like(q), q, at, 0.1 + math.log(64))
        slopes = [torch.autograd.grad(x.sum(), at)[0] for x in (wrong, right)]
        assert_close(*slopes)
        assert slopes[0] > 0  # for every temperature: the minimum is at zero


@given(tables(), tables())
def test_the_projection_is_a_divergence_plus_an_entropy(target, new):
    p, q = Categorical(logits=target), Categorical(logits=new)
    loss = projection_loss(target, new.log_softmax(-1))
    assert_close(loss, kl_divergence(p, q) + p.entropy())


@given(tables(), tables())
def test_the_projection_pulls_towards_the_target(target, new):
    new.requires_grad_()
    projection_loss(target, new.log_softmax(-1)).sum().backward()
    # A difference of probabilities.
    expected = (new.softmax(-1) - target.softmax(-1)).detach()
    assert_close(new.grad, expected, atol=1e-14, rtol=1e-7)


@given(gaussians())
def test_each_part_changes_one_thing(at):
    old_mean, old_log_std, new_mean, new_log_std = at
    old = Normal(old_mean, old_log_std.exp())
    mean, spread = decoupled_divergences(*at)
    # torch squares the ratio of deviations up to e^4 before it takes the logarithm.
    moved = kl_divergence(old, Normal(new_mean, old_log_std.exp()))
    assert_close(mean, moved, atol=1e-12, rtol=1e-7)
    widened = kl_divergence(old, Normal(old_mean, new_log_std.exp()))
    assert_close(spread, widened, atol=1e-12, rtol=1e-7)


@given(gaussians())
def test_the_parts_sum_to_the_joint_where_one_thing_changes(at):
    old_mean, old_log_std, new_mean, new_log_std = at
    for changed in ((new_mean, old_log_std), (old_mean, new_log_std)):
        parts = sum(decoupled_divergences(old_mean, old_log_std, *changed))
        old = Normal(old_mean, old_log_std.exp())
        joint = kl_divergence(old, Normal(changed[0], changed[1].exp()))
        assert_close(parts.sum(-1), joint.sum(-1), atol=1e-12, rtol=1e-7)


def test_the_parts_do_not_sum_to_the_joint_where_both_change():
    old, new = Normal(0.0, 1.0), Normal(1.0, 0.5)
    at = tensor([[0.0], [0.0], [1.0], [0.5]])
    at[3] = at[3].log()
    parts = sum(decoupled_divergences(*at))
    assert kl_divergence(old, new) > 1.5 * parts


def test_the_multiplier_grows_while_the_constraint_is_broken():
    multiplier = tensor(2.0, requires_grad=True)
    divergence = tensor(0.3, requires_grad=True)
    for epsilon, sign in ((0.1, -1), (0.5, 1)):
        _, dual = constraint_losses(divergence, multiplier, epsilon)
        slopes = torch.autograd.grad(dual, (multiplier, divergence), allow_unused=True)
        assert slopes[0].sign() == sign  # descent
        assert slopes[1] is None
    penalty, _ = constraint_losses(divergence, multiplier, 0.1)
    slopes = torch.autograd.grad(penalty, (multiplier, divergence), allow_unused=True)
    assert slopes == (None, tensor(2.0))


def test_a_masked_action_is_as_good_as_absent():
    old, q = torch.randn(2, 4, 3)
    eta = tensor(0.5)
    masked = torch.cat([old, torch.full((4, 1), -inf)], -1)
    values = torch.cat([q, torch.full((4, 1), 9.0)], -1)
    target = improved_policy(masked, values, eta)
    assert_close(target[:, :3], improved_policy(old, q, eta))
    narrow = improvement_divergence(improved_policy(old, q, eta), old)
    assert_close(improvement_divergence(target, masked), narrow)
    new = torch.cat([q, torch.full((4, 1), -inf)], -1).requires_grad_()
    loss = projection_loss(target, new.log_softmax(-1))
    assert_close(loss, projection_loss(target[:, :3], q.log_softmax(-1)))
    loss.sum().backward()
    assert new.grad.isfinite().all()


def test_nothing_changed_is_exactly_zero():
    at = torch.randn(2, 100, 5)
    assert (improvement_divergence(at[0], at[0]) == 0).all()
    for part in decoupled_divergences(*at, *at):
        assert (part == 0).all()


def test_batches_and_float32():
    old, q = torch.randn(2, 4, 5, 6)
    eta = solve_temperature(old, q, 0.1)
    assert eta.dtype == torch.float32
    target = improved_policy(old, q, eta)
    # float32 keeps seven digits of log-probabilities of order 10.
    mean = improvement_divergence(target, old).mean()
    assert_close(mean, tensor(0.1), atol=1e-5, rtol=0)
    assert temperature_dual(old, q, eta, 0.1).shape == (4, 5)
    assert projection_loss(target, old.log_softmax(-1)).shape == (4, 5)
    assert decoupled_divergences(old, old, q, q)[0].shape == (4, 5, 6)


def test_an_epsilon_beyond_greedy_is_refused():
    with pytest.raises(ValueError, match=r"epsilon is 2\.0, beyond the greedy"):
        solve_temperature(torch.zeros(1, 3), tensor([[0.0, 1.0, 2.0]]), 2.0)
