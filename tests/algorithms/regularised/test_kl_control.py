"""The soft backup is the best plan at a price, and MPPI walks to the same one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.distributions import Categorical, Normal, kl_divergence
from torch.testing import assert_close

from snippets.algorithms.regularised.kl_control import (
    anchored_returns,
    control_divergence,
    path_weights,
    projection_divergence,
    soft_backup,
    updated_mean,
)
from snippets.lab.mdp import (
    enumerate_paths,
    path_log_dynamics,
    path_log_policy,
    small_problem,
    small_target,
)

PROBLEM = small_problem(torch.float64)
PATHS = enumerate_paths(PROBLEM, 3)
TARGET = small_target(1, torch.float64)


@st.composite
def tables(draw):
    """Logits for three states and three actions."""
    row = st.lists(st.floats(-3, 3), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3)


betas = st.floats(0.1, 10)


def plan(ref, beta):
    """Three steps of backups: the policy of each time, and the first values."""
    values, policies = torch.zeros(3, dtype=torch.float64), []
    for _ in range(3):
        policy, values = soft_backup(
            ref, PROBLEM.rewards, PROBLEM.transitions, values, beta
        )
        policies.insert(0, policy)
    return policies, values


def over_paths(policies):
    """Log-probability of every path's actions, a policy per time."""
    steps = [
        path_log_policy(p.softmax(-1), PATHS)[:, t] for t, p in enumerate(policies)
    ]
    return torch.stack(steps, -1).sum(-1)


@given(tables(), tables())
def test_the_divergence_is_the_sum_over_actions(new, ref):
    p, q = new.softmax(-1), ref.softmax(-1)
    summed = sum(p[:, a] * (p[:, a] / q[:, a]).log() for a in range(3))
    # Terms of order 1 cancel where the policies are alike.
    assert_close(control_divergence(new, ref), summed, atol=1e-14, rtol=1e-7)


@given(tables(), betas)
def test_the_value_is_return_less_the_divergence_of_the_paths(ref, beta):
    policies, values = plan(ref, beta)
    log_new, log_ref = over_paths(policies), over_paths([ref] * 3)
    weights = (path_log_dynamics(PROBLEM, PATHS) + log_new).exp()
    returns = PROBLEM.rewards[PATHS.states, PATHS.actions].sum(-1)
    worth = (weights * (returns - beta * (log_new - log_ref))).sum()
    assert_close(PROBLEM.start @ values, worth)


@given(tables(), tables(), betas)
def test_no_other_policy_is_worth_more(new, ref, beta):
    _, values = plan(ref, beta)
    log_new, log_ref = over_paths([new] * 3), over_paths([ref] * 3)
    weights = (path_log_dynamics(PROBLEM, PATHS) + log_new).exp()
    returns = PROBLEM.rewards[PATHS.states, PATHS.actions].sum(-1)
    worth = (weights * (returns - beta * (log_new - log_ref))).sum()
    # Rounding of numbers of order 100.
    assert worth <= PROBLEM.start @ values + 1e-11


@given(tables(), betas)
def test_weighted_paths_promise_more_than_any_policy_can_keep(ref, beta):
    _, values = plan(ref, beta)
    log_paths = path_log_dynamics(PROBLEM, PATHS) + over_paths([ref] * 3)
    returns = PROBLEM.rewards[PATHS.states, PATHS.actions].sum(-1)
    promised = beta * (log_paths + returns / beta).logsumexp(-1)
    assert promised >= PROBLEM.start @ values - 1e-12


@given(tables(), betas)
def test_without_chance_they_promise_the_same(ref, beta):
    sure = PROBLEM._replace(transitions=PROBLEM.transitions.round())
    values = torch.zeros(3, dtype=torch.float64)
    for _ in range(3):
        _, values = soft_backup(ref, sure.rewards, sure.transitions, values, beta)
    paths = enumerate_paths(sure, 3)
    log_paths = path_log_dynamics(sure, paths) + path_log_policy(
        ref.softmax(-1), paths
    ).sum(-1)
    returns = sure.rewards[paths.states, paths.actions].sum(-1)
    promised = beta * (log_paths + returns / beta).logsumexp(-1)
    assert_close(promised, sure.start @ values)


def test_a_masked_action_stays_masked():
    ref = tensor([[0.0, 1.0, -inf]] * 3, dtype=torch.float64)
    policy, values = soft_backup(
        ref, PROBLEM.rewards, PROBLEM.transitions, torch.zeros(3).double(), 0.5
    )
    assert (policy[:, 2] == -inf).all()
    assert values.isfinite().all()
    assert control_divergence(policy, ref).isfinite().all()


def on_a_grid(mean, std, beta, anchored):
    """One MPPI update with every plan on a fine grid instead of samples."""
    noise = torch.linspace(-20, 20, 4001, dtype=torch.float64)[:, None] * std
    returns = -0.5 * (mean + noise - TARGET.goals[2]).square().sum(-1)
    if anchored:
        returns = anchored_returns(returns, noise, mean, std, beta)
    # Grid points stand for samples, as often as the density says.
    density = Normal(0.0, std).log_prob(noise)[:, 0]
    weights = path_weights(returns + beta * density, beta)
    return updated_mean(weights, noise, mean)


@given(st.floats(-2, 2), st.floats(0.3, 2), st.floats(0.2, 5))
def test_the_anchored_update_is_the_optimum_from_anywhere(start, spread, beta):
    std = tensor([spread], dtype=torch.float64)
    # Default N(0, std²) times exp(reward / beta): a product of two Gaussians.
    best = TARGET.goals[2] / beta / (1 / std.square() + 1 / beta)
    mean = tensor([start], dtype=torch.float64)
    reached = on_a_grid(mean, std, beta, anchored=True)
    # Where a density that steep is off its grid, sums are integrals to 1e-9.
    assert_close(reached, best, atol=1e-8, rtol=0)


def test_without_the_anchor_the_plan_keeps_walking_to_the_goal():
    std, mean = tensor([1.0]).double(), tensor([0.0]).double()
    for _ in range(60):
        mean = on_a_grid(mean, std, 2.0, anchored=False)
    assert_close(mean, TARGET.goals[2], atol=1e-6, rtol=0)


@given(st.lists(st.floats(-2, 2), min_size=8, max_size=8))
def test_the_projection_is_torchs_gaussian_divergence(numbers):
    best_mean, best_log, new_mean, new_log = tensor(numbers).double().reshape(4, 2)
    best, new = Normal(best_mean, best_log.exp()), Normal(new_mean, new_log.exp())
    value = projection_divergence(best_mean, best_log.exp(), new_mean, new_log.exp())
    # Squares of ratios up to e^4.
    expected = kl_divergence(best, new).sum(-1)
    assert_close(value, expected, atol=1e-12, rtol=1e-7)


@given(st.integers(0, 2**31))
def test_the_weighted_mean_minimises_the_projection(seed):
    torch.manual_seed(seed)
    noise, weights = torch.randn(9, 2).double(), torch.randn(9).double().softmax(-1)
    mean = updated_mean(weights, noise, torch.zeros(2).double()).requires_grad_()
    # KL(weighted || N(mean, 1)) up to what does not depend on the mean.
    loss = (weights * 0.5 * (noise - mean).square().sum(-1)).sum()
    (slope,) = torch.autograd.grad(loss, mean)
    assert_close(slope, torch.zeros_like(slope), atol=1e-14, rtol=0)


def test_nothing_changed_is_exactly_zero():
    at = torch.randn(100, 3, 5)
    assert (control_divergence(at, at) == 0).all()
    assert (projection_divergence(at, at.exp(), at, at.exp()) == 0).all()


def test_batches_and_float32():
    problem = small_problem(torch.float32)
    policy, values = soft_backup(
        torch.zeros(3, 3), problem.rewards, problem.transitions, torch.randn(4, 3), 0.5
    )
    assert policy.shape == (4, 3, 3)
    assert values.shape == (4, 3)
    assert values.dtype == torch.float32
    noise, mean, std = torch.randn(4, 64, 5), torch.randn(4, 5), torch.ones(5)
    returns = anchored_returns(torch.randn(4, 64), noise, mean, std, 0.5)
    new = updated_mean(path_weights(returns, 0.5), noise, mean)
    assert new.shape == (4, 5)
    assert new.dtype == torch.float32
    kl = Categorical(logits=policy).probs.sum(-1)
    assert_close(kl, torch.ones(4, 3))


def test_a_price_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"beta is 0\.0, not positive"):
        soft_backup(
            torch.zeros(3, 3),
            PROBLEM.rewards.float(),
            PROBLEM.transitions.float(),
            torch.zeros(3),
            0.0,
        )
