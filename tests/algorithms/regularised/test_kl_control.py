"""Soft backups are the best of reward less KL of paths; MPPI is its sampled form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from snippets.algorithms.regularised.kl_control import (
    corrected_returns,
    expected_next_value,
    path_weights,
    soft_backup,
    updated_mean,
)
from snippets.exact.categorical import kl_divergence_logits
from snippets.exact.gaussian import kl_gaussian
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


def backup(ref, values, beta, problem=PROBLEM):
    """One step of the recursion."""
    return soft_backup(
        ref_logits=ref,
        rewards=problem.rewards,
        transitions=problem.transitions,
        next_values=values,
        beta=beta,
    )


def plan(ref, beta, problem=PROBLEM):
    """Three steps of backups: the policy of each time, and the first values."""
    values, policies = torch.zeros(3, dtype=torch.float64), []
    for _ in range(3):
        policy, values = backup(ref, values, beta, problem)
        policies.insert(0, policy)
    return policies, values


def over_paths(policies):
    """Log-probability of every path's actions, a policy per time."""
    steps = [
        path_log_policy(p.softmax(-1), PATHS)[:, t] for t, p in enumerate(policies)
    ]
    return torch.stack(steps, -1).sum(-1)


@given(tables(), betas)
def test_the_value_is_return_less_the_divergence_of_the_paths(ref, beta):
    policies, values = plan(ref, beta)
    log_new, log_ref = over_paths(policies), over_paths([ref] * 3)
    weights = (path_log_dynamics(PROBLEM, PATHS) + log_new).exp()
    returns = PROBLEM.rewards[PATHS.states, PATHS.actions].sum(-1)
    worth = (weights * (returns - beta * (log_new - log_ref))).sum()
    assert_close(PROBLEM.start @ values, worth)


@given(tables(), betas)
def test_the_divergence_of_the_paths_is_that_of_the_steps(ref, beta):
    policies, _ = plan(ref, beta)
    log_new, log_ref = over_paths(policies), over_paths([ref] * 3)
    weights = (path_log_dynamics(PROBLEM, PATHS) + log_new).exp()
    per_step = [
        kl_divergence_logits(p, ref)[PATHS.states[:, t]] for t, p in enumerate(policies)
    ]
    summed = (weights * sum(per_step)).sum()
    # Log-ratios of order 30 cancel.
    assert_close((weights * (log_new - log_ref)).sum(), summed, atol=1e-12, rtol=1e-7)


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
    _, values = plan(ref, beta, sure)
    paths = enumerate_paths(sure, 3)
    log_policy = path_log_policy(ref.softmax(-1), paths).sum(-1)
    log_paths = path_log_dynamics(sure, paths) + log_policy
    returns = sure.rewards[paths.states, paths.actions].sum(-1)
    promised = beta * (log_paths + returns / beta).logsumexp(-1)
    assert_close(promised, sure.start @ values)


def test_the_next_value_is_a_mean_over_next_states():
    transitions = torch.rand(2, 3, 2)
    values = torch.randn(4, 2)
    after = expected_next_value(transitions=transitions, values=values)
    assert after.shape == (4, 2, 3)
    summed = sum(transitions[..., n] * values[:, n, None, None] for n in range(2))
    assert_close(after, summed)


def test_a_masked_action_stays_masked():
    ref = tensor([[0.0, 1.0, -inf]] * 3, dtype=torch.float64)
    policy, values = backup(ref, torch.zeros(3).double(), 0.5)
    assert (policy[:, 2] == -inf).all()
    assert values.isfinite().all()
    assert kl_divergence_logits(policy, ref).isfinite().all()


def on_a_grid(mean, std, beta, corrected):
    """One MPPI update with every plan on a fine grid instead of samples."""
    noise = torch.linspace(-20, 20, 4001, dtype=torch.float64)[:, None] * std
    returns = -0.5 * (mean + noise - TARGET.goals[2]).square().sum(-1)
    if corrected:
        returns = corrected_returns(
            returns=returns, noise=noise, mean=mean, std=std, beta=beta
        )
    # Grid points stand for samples, as often as the density says.
    density = Normal(0.0, std).log_prob(noise)[:, 0]
    weights = path_weights(returns=returns + beta * density, beta=beta)
    return updated_mean(weights=weights, noise=noise, mean=mean)


@given(st.floats(-2, 2), st.floats(0.3, 2), st.floats(0.2, 5))
def test_the_corrected_update_is_the_optimum_from_anywhere(start, spread, beta):
    std = tensor([spread], dtype=torch.float64)
    # Reference N(0, std²) times exp(reward / beta): a product of two Gaussians.
    best = TARGET.goals[2] / beta / (1 / std.square() + 1 / beta)
    mean = tensor([start], dtype=torch.float64)
    reached = on_a_grid(mean, std, beta, corrected=True)
    # Where a density that steep is off its grid, sums are integrals to 1e-9.
    assert_close(reached, best, atol=1e-8, rtol=0)


def test_the_correction_is_the_log_ratio_of_reference_and_sampler():
    torch.manual_seed(0)
    noise, mean, std = (
        torch.randn(9, 3).double(),
        torch.randn(3).double(),
        torch.rand(3),
    )
    plans, zeros = mean + noise, torch.zeros(9).double()
    ratio = Normal(0.0, std.double()).log_prob(plans)
    ratio = (ratio - Normal(mean, std.double()).log_prob(plans)).sum(-1)
    value = corrected_returns(
        returns=zeros, noise=noise, mean=mean, std=std.double(), beta=0.7
    )
    # Up to a constant, which no softmax sees.
    assert_close(value - value[0], 0.7 * (ratio - ratio[0]))


def test_without_the_correction_the_plan_keeps_walking_to_the_goal():
    std, mean = tensor([1.0]).double(), tensor([0.0]).double()
    for _ in range(60):
        mean = on_a_grid(mean, std, 2.0, corrected=False)
    assert_close(mean, TARGET.goals[2], atol=1e-6, rtol=0)


@given(st.integers(0, 2**31))
def test_the_weighted_mean_minimises_the_projection(seed):
    torch.manual_seed(seed)
    noise, weights = torch.randn(9, 2).double(), torch.randn(9).double().softmax(-1)
    start = torch.randn(2).double()
    mean = updated_mean(weights=weights, noise=noise, mean=start).requires_grad_()
    # KL(weighted || N(mean, 1)) up to what does not depend on the mean.
    loss = (weights * 0.5 * (start + noise - mean).square().sum(-1)).sum()
    (slope,) = torch.autograd.grad(loss, mean)
    assert_close(slope, torch.zeros_like(slope), atol=1e-14, rtol=0)


@given(st.floats(-2, 2), st.floats(0.3, 2), st.floats(-2, 2))
def test_the_projection_is_least_at_the_mean_of_the_optimum(goal, spread, other):
    best, std = tensor([goal]).double(), tensor([spread]).double()
    own = tensor([0.8]).double()
    least = kl_gaussian(best, std, best, own)
    far = kl_gaussian(best, std, best + other, own)
    expected = kl_divergence(Normal(best, std), Normal(best + other, own)).sum(-1)
    # Squares of ratios up to 6.
    assert_close(far, expected, atol=1e-12, rtol=1e-7)
    assert far >= least


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 1e4, 1e12])
def test_only_the_ratio_of_return_and_temperature_matters(scale):
    returns = torch.randn(4, 64)
    weights = path_weights(returns=returns * scale, beta=0.3 * scale)
    assert_close(weights, (returns / 0.3).softmax(-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype):
    noise, mean = torch.randn(4, 64, 5).to(dtype), torch.randn(4, 5).to(dtype)
    returns, std = torch.randn(4, 64).to(dtype), torch.ones(5).to(dtype)
    plans = {"returns": returns, "noise": noise, "mean": mean, "std": std}
    wide = {name: x.float() for name, x in plans.items()}
    half = corrected_returns(**plans, beta=0.7)
    expected = corrected_returns(**wide, beta=0.7).to(dtype)
    assert_close(half, expected, atol=0, rtol=0)
    weights = returns.softmax(-1)
    half = updated_mean(weights=weights, noise=noise, mean=mean)
    expected = updated_mean(
        weights=weights.float(), noise=noise.float(), mean=mean.float()
    )
    assert_close(half, expected.to(dtype), atol=0, rtol=0)


def test_batches_and_float32():
    problem = small_problem(torch.float32)
    values = torch.randn(4, 3)
    policy, backed_up = backup(torch.zeros(3, 3), values, 0.5, problem)
    assert policy.shape == (4, 3, 3)
    assert backed_up.shape == (4, 3)
    assert backed_up.dtype == torch.float32
    assert_close(policy.exp().sum(-1), torch.ones(4, 3))
    one, _ = backup(torch.zeros(3, 3), values[2], 0.5, problem)
    assert_close(policy[2], one)
    noise, mean, std = torch.randn(4, 64, 5), torch.randn(4, 5), torch.ones(5)
    returns = corrected_returns(
        returns=torch.randn(4, 64), noise=noise, mean=mean, std=std, beta=0.5
    )
    weights = path_weights(returns=returns, beta=0.5)
    new = updated_mean(weights=weights, noise=noise, mean=mean)
    assert new.shape == (4, 5)
    assert new.dtype == torch.float32


@pytest.mark.parametrize("beta", [0.0, -1.0, nan])
def test_a_coefficient_that_is_not_positive_is_refused(beta):
    with pytest.raises(ValueError, match="beta is"):
        backup(torch.zeros(3, 3).double(), torch.zeros(3).double(), beta)
    with pytest.raises(ValueError, match="beta is"):
        path_weights(returns=torch.zeros(3), beta=beta)
    with pytest.raises(ValueError, match="beta is"):
        corrected_returns(
            returns=torch.zeros(3),
            noise=torch.zeros(3, 1),
            mean=torch.zeros(1),
            std=torch.ones(1),
            beta=beta,
        )


def test_a_deviation_that_is_not_positive_is_nan():
    for std in (0.0, -1.0):
        value = corrected_returns(
            returns=torch.zeros(3),
            noise=torch.zeros(3, 1),
            mean=torch.zeros(1),
            std=tensor([std]),
            beta=1.0,
        )
        assert value.isnan().all()


def test_shapes_that_do_not_fit_are_refused():
    plans = {"noise": torch.zeros(4, 8, 2), "mean": torch.zeros(4, 2)}
    with pytest.raises(ValueError, match=r"weights is \[4, 1\]"):
        updated_mean(weights=torch.zeros(4, 1), **plans)
    with pytest.raises(ValueError, match=r"mean is \[2\]"):
        updated_mean(weights=torch.zeros(4, 8), **plans | {"mean": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"std is \[1\]"):
        corrected_returns(
            returns=torch.zeros(4, 8), std=torch.ones(1), beta=1.0, **plans
        )
    with pytest.raises(ValueError, match="values is"):
        expected_next_value(transitions=torch.ones(2, 3, 2), values=torch.zeros(3))
    with pytest.raises(ValueError, match="transitions is"):
        expected_next_value(transitions=torch.ones(2, 3, 1), values=torch.zeros(2))
    with pytest.raises(ValueError, match="rewards is"):
        backup(
            torch.zeros(2, 3),
            torch.zeros(3),
            1.0,
            PROBLEM._replace(rewards=torch.zeros(2, 3)),
        )
