"""REPS finds the best distribution within its KL, and one that can be visited."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import inf, tensor
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from snippets.lab.mdp import small_problem, state_chain, stationary
from snippets.algorithms.regularised.reps import (
    bellman_error,
    improved_joint,
    joint_divergence,
    joint_dual,
    solve,
)

# Uphill: to the right costs more. In the corridor as it is, a step right and the
# step back cost the same, and the flow keeps its balance without being asked to.
FLAT = small_problem(torch.float64)
PROBLEM = FLAT._replace(rewards=FLAT.rewards - tensor([0.0, 0.0, 0.4]))


@st.composite
def policies(draw):
    """A stochastic policy for the small problem, none of its actions below 0.03."""
    row = st.lists(st.floats(-1.5, 1.5), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3).softmax(-1)


def joint(policy):
    """Log of how often each state and action is seen in the long run."""
    return (stationary(PROBLEM, policy)[:, None] * policy).log()


epsilons = st.floats(0.02, 0.3)


@given(policies(), policies())
def test_the_divergence_is_the_sum_over_states_and_actions(new, old):
    p, q = joint(new), joint(old)
    summed = sum(
        p[s, a].exp() * (p[s, a] - q[s, a]) for s in range(3) for a in range(3)
    )
    # Terms of order 1 cancel where the policies are alike.
    assert_close(joint_divergence(p, q), summed, atol=1e-13, rtol=1e-7)


@given(policies(), policies())
def test_the_joint_divergence_is_that_of_the_states_and_of_the_policies(new, old):
    seen = Categorical(stationary(PROBLEM, new))
    states = kl_divergence(seen, Categorical(stationary(PROBLEM, old)))
    per_state = kl_divergence(Categorical(new), Categorical(old))
    chained = states + seen.probs @ per_state
    value = joint_divergence(joint(new), joint(old))
    assert_close(value, chained, atol=1e-13, rtol=1e-7)


@settings(max_examples=25)  # each example minimises a dual
@given(policies(), epsilons)
def test_the_step_is_epsilon_long_and_can_be_visited(old, epsilon):
    found = solve(joint(old), PROBLEM.rewards, PROBLEM.transitions, epsilon)
    reached = joint_divergence(found, joint(old))
    # Where the dual's gradient is below 1e-9, give or take its curvature.
    assert_close(reached, tensor(epsilon, dtype=torch.float64), atol=1e-6, rtol=0)
    new = found.softmax(-1)
    assert_close(found.exp().sum(-1), stationary(PROBLEM, new), atol=1e-6, rtol=0)


@settings(max_examples=25)
@given(policies(), epsilons, st.integers(0, 2**31))
def test_no_policy_within_epsilon_earns_more(old, epsilon, seed):
    torch.manual_seed(seed)
    found = solve(joint(old), PROBLEM.rewards, PROBLEM.transitions, epsilon)
    best = (found.exp() * PROBLEM.rewards).sum()
    noise = torch.randn(200, 3, 3, dtype=torch.float64)
    others = (old.log() + epsilon**0.5 * noise).softmax(-1)
    visits = stationary(PROBLEM, others)[..., None] * others
    within = joint_divergence(visits.log(), joint(old)) <= epsilon
    earned = (visits * PROBLEM.rewards).sum((-2, -1))[within]
    assert (earned <= best + 1e-5).all()  # the tolerance of the step itself


@settings(max_examples=25)
@given(policies(), epsilons)
def test_the_minimum_of_the_dual_is_the_reward_of_the_step(old, epsilon):
    found = solve(joint(old), PROBLEM.rewards, PROBLEM.transitions, epsilon)
    earned = (found.exp() * PROBLEM.rewards).sum()
    # Any other temperature and values are above it: weak duality.
    torch.manual_seed(0)
    for eta in (0.1, 0.5, 2.0):
        values = torch.randn(50, 3, dtype=torch.float64)
        errors = bellman_error(PROBLEM.rewards, PROBLEM.transitions, values)
        at = tensor(eta, dtype=torch.float64)
        assert (joint_dual(joint(old), errors, at, epsilon) >= earned - 1e-5).all()


@given(policies(), st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_bellman_errors_average_to_the_reward_whatever_the_values(policy, values):
    at = tensor(values, dtype=torch.float64)
    errors = bellman_error(PROBLEM.rewards, PROBLEM.transitions, at)
    visits = joint(policy).exp()
    # Flow out equals flow in, so the values cancel; terms of order 1.
    mean, reward = (visits * errors).sum(), (visits * PROBLEM.rewards).sum()
    assert_close(mean, reward, atol=1e-13, rtol=1e-7)


def test_without_the_flow_the_result_cannot_be_visited():
    old = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    eta = tensor(0.5, dtype=torch.float64)
    wished = improved_joint(joint(old), PROBLEM.rewards, eta)  # rewards as errors
    states, policy = wished.exp().sum(-1), wished.softmax(-1)
    flowed = states @ state_chain(PROBLEM, policy)
    assert (flowed - states).abs().max() > 0.02
    # Who follows that policy for long is somewhere else.
    assert (stationary(PROBLEM, policy) - states).abs().max() > 0.1


def test_what_never_happens_adds_nothing():
    p, q = tensor([[0.5, 0.5], [0.0, 0.0]]).log(), torch.full((2, 2), 0.25).log()
    p.requires_grad_()
    value = joint_divergence(p, q)
    assert_close(value, tensor(2.0).log())
    value.backward()
    assert p.grad.isfinite().all()
    assert joint_divergence(q, p) == inf


def test_nothing_changed_is_exactly_zero():
    at = torch.randn(20, 9).log_softmax(-1).reshape(20, 3, 3)
    assert (joint_divergence(at, at) == 0).all()


def test_batches_and_float32():
    problem = small_problem(torch.float32)
    values = torch.randn(4, 5, 3)
    errors = bellman_error(problem.rewards, problem.transitions, values)
    assert errors.shape == (4, 5, 3, 3)
    old = joint(torch.full((3, 3), 1 / 3, dtype=torch.float64)).float()
    new = improved_joint(old.expand(4, 5, 3, 3), errors, tensor(0.5))
    assert new.dtype == torch.float32
    assert_close(new.exp().sum((-2, -1)), torch.ones(4, 5))
    assert joint_divergence(new, old).shape == (4, 5)
    assert joint_dual(old, errors, tensor(0.5), 0.1).shape == (4, 5)
    found = solve(old, problem.rewards, problem.transitions, 0.1)
    # float32: the line search ends where the dual's last digits do.
    assert_close(joint_divergence(found, old), tensor(0.1), atol=1e-2, rtol=0)


def test_an_epsilon_beyond_the_best_distribution_is_refused():
    old = joint(torch.full((3, 3), 1 / 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"epsilon is 9\.0, beyond the best"):
        solve(old, PROBLEM.rewards, PROBLEM.transitions, 9.0)
