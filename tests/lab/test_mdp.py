"""The small problem's linear algebra is what enumeration and simulation say."""

from itertools import islice

import pytest
import torch
from hypothesis import given
from torch import tensor
from torch.testing import assert_close

from snippets.lab.mdp import (
    action_values,
    advantages,
    enumerate_paths,
    expected_return,
    occupancy,
    path_log_dynamics,
    path_log_policy,
    small_problem,
    small_target,
    state_chain,
    state_values,
    stationary,
    target_advantages,
    target_return,
)
from tests.strategies import logits

PROBLEM = small_problem(torch.float64)
# What is left after this many steps weighs discount**300 < 1e-13.
LONG = 300


def policies():
    """A stochastic policy for the small problem."""
    return logits(3, 3).map(lambda x: x.softmax(-1))


def walk(policy):
    """The distribution of the state at each time, step by step."""
    chain = torch.einsum("sa,san->sn", policy, PROBLEM.transitions)
    at = PROBLEM.start
    for _ in range(LONG):
        yield at
        at = at @ chain


def test_every_row_of_the_problem_is_a_distribution():
    assert_close(PROBLEM.transitions.sum(-1), torch.ones(3, 3, dtype=torch.float64))
    assert (PROBLEM.transitions >= 0).all()
    assert PROBLEM.start.sum() == 1


@given(policies())
def test_the_return_is_the_sum_of_discounted_rewards(policy):
    rewards = (policy * PROBLEM.rewards).sum(-1)
    summed = sum(PROBLEM.discount**t * d @ rewards for t, d in enumerate(walk(policy)))
    assert_close(expected_return(PROBLEM, policy), summed)


@given(policies())
def test_the_values_satisfy_bellman(policy):
    q, v = action_values(PROBLEM, policy), state_values(PROBLEM, policy)
    assert_close((policy * q).sum(-1), v)
    one_step = PROBLEM.rewards + PROBLEM.discount * PROBLEM.transitions @ v
    assert_close(q, one_step)


@given(policies())
def test_advantages_average_to_zero(policy):
    mean = (policy * advantages(PROBLEM, policy)).sum(-1)
    # Differences of values of order 1 to 10: rounding is relative to those.
    assert_close(mean, torch.zeros_like(mean), atol=1e-13, rtol=0)


@given(policies())
def test_visitation_is_the_discounted_walk(policy):
    summed = sum(PROBLEM.discount**t * d for t, d in enumerate(walk(policy)))
    assert_close(occupancy(PROBLEM, policy), (1 - PROBLEM.discount) * summed)


@given(policies())
def test_visitation_times_reward_is_the_return(policy):
    reward = (occupancy(PROBLEM, policy) * (policy * PROBLEM.rewards).sum(-1)).sum()
    assert_close(reward, (1 - PROBLEM.discount) * expected_return(PROBLEM, policy))


@given(policies())
def test_stationary_is_a_fixed_point(policy):
    d = stationary(PROBLEM, policy)
    assert_close(d @ state_chain(PROBLEM, policy), d)
    assert_close(d.sum(), tensor(1.0, dtype=torch.float64))


@given(policies())
def test_paths_have_probabilities_that_sum_to_one(policy):
    paths = enumerate_paths(PROBLEM, 3)
    log_p = path_log_dynamics(PROBLEM, paths) + path_log_policy(policy, paths).sum(-1)
    assert_close(log_p.exp().sum(), tensor(1.0, dtype=torch.float64))


@given(policies())
def test_paths_pass_through_states_as_often_as_the_walk(policy):
    paths = enumerate_paths(PROBLEM, 3)
    log_p = path_log_dynamics(PROBLEM, paths) + path_log_policy(policy, paths).sum(-1)
    for time, expected in enumerate(islice(walk(policy), 3)):
        at = torch.zeros(3, dtype=torch.float64)
        at.index_add_(0, paths.states[:, time], log_p.exp())
        assert_close(at, expected)


@given(policies(), policies())
def test_the_path_divergence_is_a_sum_over_the_states_of_p(p, q):
    paths = enumerate_paths(PROBLEM, 3)
    log_p, log_q = (path_log_policy(x, paths).sum(-1) for x in (p, q))
    weights = (path_log_dynamics(PROBLEM, paths) + log_p).exp()
    per_state = (p * (p / q).log()).sum(-1)
    summed = sum(d @ per_state for d in islice(walk(p), 3))
    assert_close((weights * (log_p - log_q)).sum(), summed)


@given(policies(), policies())
def test_performance_difference(new, old):
    adv = (occupancy(PROBLEM, new) * (new * advantages(PROBLEM, old)).sum(-1)).sum()
    difference = expected_return(PROBLEM, new) - expected_return(PROBLEM, old)
    # A difference of returns of order 1 to 10: rounding is relative to those.
    assert_close(adv / (1 - PROBLEM.discount), difference, atol=1e-12, rtol=0)


@given(policies())
def test_the_gradient_is_the_policy_gradient(policy):
    logits = policy.log().requires_grad_()
    expected_return(PROBLEM, logits.softmax(-1)).backward()
    weight = occupancy(PROBLEM, policy)[:, None] * policy
    theorem = weight * advantages(PROBLEM, policy) / (1 - PROBLEM.discount)
    # Both are differences of numbers of order 10.
    assert_close(logits.grad, theorem, atol=1e-12, rtol=1e-7)


def test_policies_batch():
    policy = torch.randn(5, 2, 3, 3, dtype=torch.float64).softmax(-1)
    for function in (state_values, action_values, occupancy, stationary, advantages):
        batched = function(PROBLEM, policy)
        assert_close(batched[4, 1], function(PROBLEM, policy[4, 1]))
    assert expected_return(PROBLEM, policy).shape == (5, 2)


def test_float32_stays_float32():
    problem = small_problem(torch.float32)
    policy = torch.full((3, 3), 1 / 3)
    for function in (state_values, occupancy, stationary, advantages):
        value = function(problem, policy)
        assert value.dtype == torch.float32
        # Single precision through a 3 x 3 solve of condition about 20.
        exact = function(PROBLEM, policy.double())
        assert_close(value.double(), exact, atol=1e-5, rtol=1e-5)


def test_staying_where_it_pays_beats_staying_at_home():
    home = tensor([[0.0, 1, 0], [1, 0, 0], [1, 0, 0]], dtype=torch.float64)
    away = tensor([[0.0, 0, 1], [0, 0, 1], [0, 1, 0]], dtype=torch.float64)
    returns = expected_return(PROBLEM, torch.stack([home, away]))
    assert_close(returns[0], tensor(0.3 / (1 - 0.9), dtype=torch.float64))
    assert returns[1] > returns[0]


def test_no_path_is_listed_that_the_problem_forbids():
    paths = enumerate_paths(PROBLEM, 3)
    assert path_log_dynamics(PROBLEM, paths).isfinite().all()
    assert len(torch.stack([*paths], -1).flatten(1).unique(dim=0)) == len(paths.states)


def test_a_policy_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"policy ends in \(3, 2\), .* \(3, 3\)"):
        state_values(PROBLEM, torch.full((3, 2), 0.5, dtype=torch.float64))


def test_a_horizon_of_zero_is_refused():
    with pytest.raises(ValueError, match="horizon is 0"):
        enumerate_paths(PROBLEM, 0)


@pytest.mark.parametrize("dims", [1, 2, 8])
def test_the_twin_is_the_mean_over_actions(dims):
    torch.manual_seed(0)
    target = small_target(dims, torch.float64)
    mean, log_std = torch.randn(2, 3, dims, dtype=torch.float64)
    noise = torch.randn(50_000, 3, dims, dtype=torch.float64)
    actions = mean + log_std.exp() * noise
    reward = -0.5 * (actions - target.goals).square().sum(-1)  # (samples, states)
    sampled = reward.mean(0) @ target.weights
    error = (reward @ target.weights).std() / 50_000**0.5
    # Five standard errors: once in two million draws, and the seed is fixed.
    exact = target_return(target, mean, log_std)
    assert (sampled - exact).abs() < 5 * error
    adv = target_advantages(target, mean, log_std, actions)
    assert_close(adv @ target.weights, reward @ target.weights - exact)


OF_POLICIES = [
    state_chain,
    state_values,
    action_values,
    advantages,
    expected_return,
    occupancy,
    stationary,
]


@pytest.mark.parametrize("function", OF_POLICIES)
def test_runs_in_one_graph_and_over_a_batch(function):
    torch.manual_seed(0)
    policy = torch.randn(5, 3, 3, dtype=torch.float64).softmax(-1)
    expected = torch.stack([function(PROBLEM, row) for row in policy])
    one_graph = torch.compile(function, fullgraph=True, backend="eager")
    assert_close(one_graph(PROBLEM, policy), expected)
    assert_close(torch.vmap(lambda row: function(PROBLEM, row))(policy), expected)


@pytest.mark.parametrize("function", OF_POLICIES)
def test_an_integer_policy_is_refused(function):
    with pytest.raises(ValueError, match="policy must be floating point"):
        function(PROBLEM, torch.ones(3, 3, dtype=torch.int64))


@pytest.mark.parametrize("function", OF_POLICIES)
@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (3,)])
def test_a_policy_that_would_broadcast_is_refused(function, shape):
    with pytest.raises(ValueError, match="policy"):
        function(PROBLEM, torch.ones(shape, dtype=torch.float64))


def test_what_describes_an_action_must_have_its_dimensions():
    target, wide = small_target(2, torch.float64), torch.zeros(3, 2).double()
    narrow = wide[:, :1]
    with pytest.raises(ValueError, match=r"mean is \[3, 1\]"):
        target_return(target, narrow, wide)
    with pytest.raises(ValueError, match=r"log_std is \[3, 1\]"):
        target_return(target, wide, narrow)
    with pytest.raises(ValueError, match=r"actions is \[3, 1\]"):
        target_advantages(target, wide, wide, narrow)
    with pytest.raises(ValueError, match="mean must be floating point"):
        target_return(target, wide.long(), wide)


def test_a_twin_without_dimensions_is_refused():
    with pytest.raises(ValueError, match="dims is 0"):
        small_target(0, torch.float64)
