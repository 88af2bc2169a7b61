"""REPS finds the best distribution within its KL, and one that can be visited."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from snippets.algorithms.regularised.mpo import temperature_dual
from snippets.algorithms.regularised.optimal_policy import optimal_policy
from snippets.algorithms.regularised.reps import bellman_error, solve_joint
from snippets.exact.categorical import kl_divergence_logits
from snippets.lab.mdp import Problem, small_problem, state_chain, stationary

# Uphill: to the right costs more. In the corridor as it is, a step right and the
# step back cost the same, and the flow keeps its balance without being asked to.
FLAT = small_problem(torch.float64)
PROBLEM = FLAT._replace(rewards=FLAT.rewards - tensor([0.0, 0.0, 0.4]))


@st.composite
def policies(draw):
    """A stochastic policy for the small problem, none of its actions below 0.03."""
    row = st.lists(st.floats(-1.5, 1.5), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3).softmax(-1)


def wide_problem(states, actions):
    """A problem with as many states and actions as asked, and a policy for it."""
    torch.manual_seed(0)
    numbers = torch.rand(states, actions, states, dtype=torch.float64).square()
    transitions = numbers / numbers.sum(-1, keepdim=True)
    rewards = torch.randn(states, actions, dtype=torch.float64)
    start = torch.full((states,), 1 / states, dtype=torch.float64)
    policy = torch.randn(states, actions, dtype=torch.float64).softmax(-1)
    return Problem(transitions, rewards, start, 0.9), policy


def joint(policy, problem=PROBLEM):
    """Log of how often each state and action is seen in the long run."""
    return (stationary(problem, policy)[..., None] * policy).log()


def joint_kl(new, old):
    """KL(new || old) of states and actions together."""
    return kl_divergence_logits(new.flatten(-2), old.flatten(-2))


def step(old, epsilon, problem=PROBLEM):
    """The best joint within epsilon of that of a policy."""
    return solve_joint(
        old_log_joint=joint(old, problem),
        rewards=problem.rewards,
        transitions=problem.transitions,
        epsilon=epsilon,
    )


epsilons = st.floats(0.02, 0.3)


@given(policies(), policies())
def test_the_joint_divergence_is_that_of_the_states_and_of_the_policies(new, old):
    p, q = joint(new), joint(old)
    summed = sum(
        p[s, a].exp() * (p[s, a] - q[s, a]) for s in range(3) for a in range(3)
    )
    seen = Categorical(stationary(PROBLEM, new))
    states = kl_divergence(seen, Categorical(stationary(PROBLEM, old)))
    per_state = kl_divergence(Categorical(new), Categorical(old))
    # Terms of order 1 cancel where the policies are alike.
    assert_close(joint_kl(p, q), summed, atol=1e-13, rtol=1e-7)
    assert_close(joint_kl(p, q), states + seen.probs @ per_state, atol=1e-13, rtol=1e-7)


@settings(max_examples=25)  # each example minimises sixty duals
@given(policies(), epsilons)
def test_the_step_is_epsilon_long_and_can_be_visited(old, epsilon):
    found = step(old, epsilon)
    # What the docstring states.
    expected = tensor(epsilon, dtype=torch.float64)
    assert_close(joint_kl(found, joint(old)), expected, atol=0, rtol=1e-6)
    states, new = found.exp().sum(-1), found.softmax(-1)
    assert_close(states @ state_chain(PROBLEM, new), states, atol=1e-9, rtol=0)
    assert_close(states, stationary(PROBLEM, new), atol=1e-7, rtol=0)


@pytest.mark.parametrize("epsilon", [1e-9, 1e-4, 0.2, 1.0, 2.1])
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_the_step_is_epsilon_long_whatever_the_scale_of_the_rewards(scale, epsilon):
    old = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    problem = PROBLEM._replace(rewards=PROBLEM.rewards * scale)
    found = step(old, epsilon, problem)
    expected = tensor(epsilon, dtype=torch.float64)
    assert_close(joint_kl(found, joint(old)), expected, atol=0, rtol=1e-6)
    # And it is the step of the rewards as they were.
    plain = step(old, epsilon)
    assert_close(found, plain, atol=1e-7, rtol=0)


@pytest.mark.parametrize(("states", "actions"), [(5, 2), (2, 5), (4, 3)])
def test_states_and_actions_may_differ_in_number(states, actions):
    problem, old = wide_problem(states, actions)
    found = step(old, 0.1, problem)
    assert found.shape == (states, actions)
    expected = tensor(0.1, dtype=torch.float64)
    assert_close(joint_kl(found, joint(old, problem)), expected, atol=0, rtol=1e-6)
    visits = stationary(problem, found.softmax(-1))
    assert_close(found.exp().sum(-1), visits, atol=1e-7, rtol=0)
    values = torch.randn(7, states, dtype=torch.float64)
    errors = bellman_error(
        rewards=problem.rewards, transitions=problem.transitions, values=values
    )
    assert errors.shape == (7, states, actions)
    after = (problem.transitions * values[3]).sum(-1)
    assert_close(errors[3], problem.rewards + after - values[3][:, None])


@pytest.mark.parametrize("epsilon", [1.0, 2.0])
def test_a_steep_problem_is_solved_too(epsilon):
    # Rewards of two scales, transitions that are nearly certain, and an old policy
    # that is too: a full step of Newton's method overshoots here.
    torch.manual_seed(5)
    states, actions = 4, 3
    numbers = torch.rand(states, actions, states, dtype=torch.float64).pow(8)
    transitions = numbers / numbers.sum(-1, keepdim=True)
    scales = tensor([[1.0], [1000.0], [1.0], [1000.0]], dtype=torch.float64)
    rewards = torch.randn(states, actions, dtype=torch.float64) * scales
    start = torch.full((states,), 1 / states, dtype=torch.float64)
    steep = Problem(transitions, rewards, start, 0.9)
    old = (3 * torch.randn(states, actions, dtype=torch.float64)).softmax(-1)
    found = step(old, epsilon, steep)
    expected = tensor(epsilon, dtype=torch.float64)
    assert_close(joint_kl(found, joint(old, steep)), expected, atol=0, rtol=1e-6)
    inflow = found.exp().sum(-1) @ state_chain(steep, found.softmax(-1))
    assert_close(inflow, found.exp().sum(-1), atol=1e-9, rtol=0)


@settings(max_examples=25)
@given(policies(), epsilons, st.integers(0, 2**31))
def test_no_policy_within_epsilon_earns_more(old, epsilon, seed):
    torch.manual_seed(seed)
    best = (step(old, epsilon).exp() * PROBLEM.rewards).sum()
    noise = torch.randn(200, 3, 3, dtype=torch.float64)
    others = (old.log() + epsilon**0.5 * noise).softmax(-1)
    visits = joint(others)
    within = joint_kl(visits, joint(old).expand_as(visits)) <= epsilon
    earned = (visits.exp() * PROBLEM.rewards).sum((-2, -1))[within]
    assert (earned <= best + 1e-6).all()  # the tolerance of the step itself


@settings(max_examples=25)
@given(policies(), epsilons)
def test_every_point_of_the_dual_is_above_the_reward_of_the_step(old, epsilon):
    earned = (step(old, epsilon).exp() * PROBLEM.rewards).sum()
    torch.manual_seed(0)
    values = torch.randn(50, 3, dtype=torch.float64)
    errors = bellman_error(
        rewards=PROBLEM.rewards, transitions=PROBLEM.transitions, values=values
    ).flatten(-2)
    flat = joint(old).flatten().expand_as(errors)
    for eta in (0.1, 0.5, 2.0):  # weak duality
        dual = temperature_dual(
            old_logits=flat, action_values=errors, eta=eta, epsilon=epsilon
        )
        assert (dual >= earned - 1e-6).all()


@given(policies(), st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_bellman_errors_average_to_the_reward_whatever_the_values(policy, values):
    at = tensor(values, dtype=torch.float64)
    errors = bellman_error(
        rewards=PROBLEM.rewards, transitions=PROBLEM.transitions, values=at
    )
    visits = joint(policy).exp()
    # Flow out equals flow in, so the values cancel; terms of order 1.
    mean, reward = (visits * errors).sum(), (visits * PROBLEM.rewards).sum()
    assert_close(mean, reward, atol=1e-13, rtol=1e-7)


def test_without_the_flow_the_result_cannot_be_visited():
    old = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    flat, rewards = joint(old).flatten(), PROBLEM.rewards.flatten()
    wished = optimal_policy(ref_logits=flat, rewards=rewards, beta=0.5).reshape(3, 3)
    states, policy = wished.exp().sum(-1), wished.softmax(-1)
    flowed = states @ state_chain(PROBLEM, policy)
    assert (flowed - states).abs().max() > 0.02
    # Who follows that policy for long is somewhere else.
    assert (stationary(PROBLEM, policy) - states).abs().max() > 0.1


def test_what_never_happens_stays_so():
    old = tensor([[0.5, 0.5, 0.0]] * 3, dtype=torch.float64)
    found = step(old, 0.05)
    assert (found[:, 2] == -inf).all()
    expected = tensor(0.05, dtype=torch.float64)
    assert_close(joint_kl(found, joint(old)), expected, atol=0, rtol=1e-6)


def test_the_result_is_a_constant_in_the_dtype_of_the_old_one():
    problem = small_problem(torch.float32)
    old = joint(torch.full((3, 3), 1 / 3), problem)
    found = solve_joint(
        old_log_joint=old.requires_grad_(),
        rewards=problem.rewards.requires_grad_(),
        transitions=problem.transitions,
        epsilon=0.1,
    )
    assert found.dtype == torch.float32
    assert not found.requires_grad
    # Single precision of the result.
    assert_close(joint_kl(found, old).detach(), tensor(0.1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rewards", [PROBLEM.rewards, torch.ones(3, 3).double()])
def test_an_epsilon_beyond_the_best_distribution_is_refused(rewards):
    old = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"epsilon is 9\.0, beyond the best"):
        step(old, 9.0, PROBLEM._replace(rewards=rewards))


@pytest.mark.parametrize("epsilon", [0.0, -1.0, nan])
def test_a_limit_that_is_not_positive_is_refused(epsilon):
    with pytest.raises(ValueError, match="epsilon is"):
        step(torch.full((3, 3), 1 / 3, dtype=torch.float64), epsilon)


def test_shapes_that_do_not_fit_are_refused():
    rewards, transitions = torch.zeros(2, 3), torch.full((2, 3, 2), 0.5)
    with pytest.raises(ValueError, match="values is"):
        bellman_error(rewards=rewards, transitions=transitions, values=torch.zeros(3))
    with pytest.raises(ValueError, match="transitions is"):
        bellman_error(rewards=rewards.T, transitions=transitions, values=torch.zeros(2))


def test_an_old_joint_that_cannot_be_visited_is_refused():
    elsewhere = torch.randn(9, dtype=torch.float64).log_softmax(-1).reshape(3, 3)
    with pytest.raises(ValueError, match="did not converge"):
        solve_joint(
            old_log_joint=elsewhere,
            rewards=PROBLEM.rewards,
            transitions=PROBLEM.transitions,
            epsilon=1e-3,
        )


def test_integers_are_refused_and_half_precision_is_rounded_once():
    named = {"old_log_joint": joint(torch.full((3, 3), 1 / 3).double())}
    named |= {"rewards": PROBLEM.rewards, "transitions": PROBLEM.transitions}
    for name in named:
        with pytest.raises(ValueError, match=f"{name} must be floating point"):
            solve_joint(
                **named | {name: torch.ones_like(named[name]).long()}, epsilon=0.1
            )
    half = {name: x.bfloat16() for name, x in named.items() if name == "rewards"}
    wide = {name: x.double() for name, x in half.items()}
    found = [solve_joint(**named | x, epsilon=0.1) for x in (half, wide)]
    assert_close(*found, atol=0, rtol=0)
