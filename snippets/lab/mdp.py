"""A Markov decision process small enough to enumerate, and its continuous twin.

Policies are tables of probabilities, `(*batch, states, actions)`; the values are
solutions of linear equations, so nothing is sampled (Puterman, Markov Decision
Processes, 1994). Gradients flow to the policy.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from snippets.foundations.contract import check_floating, check_positive, check_tensors


class Problem(NamedTuple):
    """A finite Markov decision process."""

    transitions: Tensor  # (states, actions, states), rows sum to 1
    rewards: Tensor  # (states, actions)
    start: Tensor  # (states)
    discount: float


class Paths(NamedTuple):
    """Trajectories: the state and the action at each time."""

    states: Tensor  # (samples, time), int64
    actions: Tensor  # (samples, time), int64


class Target(NamedTuple):
    """The continuous twin: one action per state, rewarded for landing on a goal."""

    goals: Tensor  # (states, dims)
    weights: Tensor  # (states), how often each state is seen; sums to 1


def small_problem(dtype: torch.dtype) -> Problem:
    """A corridor of three states; the actions are left, stay and right.

    A move fails with probability 0.2 and has a reward of -0.1 either way. Staying has a
    reward of 0.3 in the first state and of 1 in the last, so the near reward hides the
    better one.

    Args:
        dtype: `torch.float32` or `torch.float64`.

    Returns:
        The problem; it starts in the first state, and its discount is 0.9.
    """
    ends = torch.tensor([[0, 0, 1], [0, 1, 2], [1, 2, 2]])  # (states, actions)
    square = torch.eye(3, dtype=dtype)  # (states, states)
    transitions = 0.8 * square[ends] + 0.2 * square[:, None]
    rewards = [[-0.1, 0.3, -0.1], [-0.1, 0.0, -0.1], [-0.1, 1.0, -0.1]]
    return Problem(transitions, torch.tensor(rewards, dtype=dtype), square[0], 0.9)


def small_target(dims: int, dtype: torch.dtype) -> Target:
    """The continuous twin: three states, a goal for each, actions of `dims` numbers.

    Args:
        dims: How many numbers an action has.
        dtype: `torch.float32` or `torch.float64`.

    Returns:
        Goals at -1, 0 and 1 in every dimension; the states are seen equally often.

    Raises:
        ValueError: If there is no dimension.
    """
    check_positive(dims=dims)
    goals = torch.tensor([-1.0, 0.0, 1.0], dtype=dtype)[:, None].repeat(1, dims)
    return Target(goals, torch.full((3,), 1 / 3, dtype=dtype))


def state_chain(problem: Problem, policy: Tensor) -> Tensor:
    """The chain of states that the policy makes of the problem, as probabilities.

    Args:
        problem: The Markov decision process.
        policy: Probabilities, `(*batch, states, actions)`.

    Returns:
        From each state (row) to each next state, `(*batch, states, states)`.

    Raises:
        ValueError: If the policy does not fit the problem.
    """
    _check(problem, policy)
    return torch.einsum("...sa,san->...sn", policy, problem.transitions)


def state_values(problem: Problem, policy: Tensor) -> Tensor:
    """V: the discounted return from each state, in units of reward.

    Args:
        problem: The Markov decision process.
        policy: Probabilities, `(*batch, states, actions)`.

    Returns:
        One value per state, `(*batch, states)`.

    Raises:
        ValueError: If the policy does not fit the problem.
    """
    chain = state_chain(problem, policy)
    identity = torch.eye(chain.shape[-1], dtype=chain.dtype, device=chain.device)
    rewards = (policy * problem.rewards).sum(-1)  # (*batch, states)
    return _solve(identity - problem.discount * chain, rewards)


def action_values(problem: Problem, policy: Tensor) -> Tensor:
    """Q: the discounted return after each action, in units of reward.

    Args:
        problem: The Markov decision process.
        policy: Probabilities, `(*batch, states, actions)`.

    Returns:
        One value per state and action, `(*batch, states, actions)`.

    Raises:
        ValueError: If the policy does not fit the problem.
    """
    values = state_values(problem, policy)
    after = torch.einsum("san,...n->...sa", problem.transitions, values)
    return problem.rewards + problem.discount * after


def advantages(problem: Problem, policy: Tensor) -> Tensor:
    """A = Q - V, in units of reward; its mean under the policy is 0 in each state.

    Args:
        problem: The Markov decision process.
        policy: Probabilities, `(*batch, states, actions)`.

    Returns:
        One advantage per state and action, `(*batch, states, actions)`.

    Raises:
        ValueError: If the policy does not fit the problem.
    """
    return action_values(problem, policy) - state_values(problem, policy)[..., None]


def expected_return(problem: Problem, policy: Tensor) -> Tensor:
    """J: the discounted return from the start, in units of reward.

    Args:
        problem: The Markov decision process.
        policy: Probabilities, `(*batch, states, actions)`.

    Returns:
        One return per policy, `(*batch)`.

    Raises:
        ValueError: If the policy does not fit the problem.
    """
    return (problem.start * state_values(problem, policy)).sum(-1)


def occupancy(problem: Problem, policy: Tensor) -> Tensor:
    """The discounted state occupancy: how often each state is seen, as probabilities.

    The state at time t counts with weight (1 - discount) times discount to the power
    of t, so `(occupancy * rewards).sum(-1)` is (1 - discount) times the return.

    Args:
        problem: The Markov decision process.
        policy: Probabilities, `(*batch, states, actions)`.

    Returns:
        One probability per state, `(*batch, states)`; they sum to 1.

    Raises:
        ValueError: If the policy does not fit the problem.
    """
    chain = state_chain(problem, policy)
    identity = torch.eye(chain.shape[-1], dtype=chain.dtype, device=chain.device)
    first = ((1 - problem.discount) * problem.start).expand(chain.shape[:-1])
    return _solve(identity - problem.discount * chain.mT, first)


def stationary(problem: Problem, policy: Tensor) -> Tensor:
    """How often each state is seen in the long run, undiscounted, as probabilities.

    Meant for policies under which one set of states is recurrent: with more than
    one, the result depends on the start, and the equations are singular.

    Args:
        problem: The Markov decision process.
        policy: Probabilities, `(*batch, states, actions)`.

    Returns:
        One probability per state, `(*batch, states)`; they sum to 1.

    Raises:
        ValueError: If the policy does not fit the problem.
    """
    chain = state_chain(problem, policy)
    identity = torch.eye(chain.shape[-1], dtype=chain.dtype, device=chain.device)
    ones = torch.ones_like(chain[..., 0])  # (*batch, states)
    # d = d·chain and sum(d) = 1, added up into one invertible system.
    return _solve(chain.mT - identity + torch.ones_like(chain), ones)


def enumerate_paths(problem: Problem, horizon: int) -> Paths:
    """Every trajectory of `horizon` actions that the problem allows, as indices.

    It reads values on the host, to leave out what the problem forbids.

    Args:
        problem: The Markov decision process.
        horizon: How many actions; the number of paths grows exponentially.

    Returns:
        States and actions, `(samples, time)`.

    Raises:
        ValueError: If the horizon is not positive.
    """
    check_positive(horizon=horizon)
    device = problem.rewards.device
    choices = [torch.arange(n, device=device) for n in problem.rewards.shape] * horizon
    every = torch.cartesian_prod(*choices)  # (samples, 2 · time)
    paths = Paths(every[:, 0::2], every[:, 1::2])
    allowed = path_log_dynamics(problem, paths) > -torch.inf
    return Paths(paths.states[allowed], paths.actions[allowed])


def path_log_dynamics(problem: Problem, paths: Paths) -> Tensor:
    """The part of each path's log-probability that no policy changes, in nats.

    Args:
        problem: The Markov decision process.
        paths: What `enumerate_paths` gives.

    Returns:
        One log-probability per path, `(samples)`; `-inf` for a path that the problem
        forbids.
    """
    here, action, then = paths.states[:, :-1], paths.actions[:, :-1], paths.states
    moves = problem.transitions[here, action, then[:, 1:]]  # (samples, time - 1)
    return problem.start[then[:, 0]].log() + moves.log().sum(-1)


def path_log_policy(policy: Tensor, paths: Paths) -> Tensor:
    """The log-probability of each path's actions, in nats.

    Args:
        policy: Probabilities, `(states, actions)`.
        paths: What `enumerate_paths` gives.

    Returns:
        One log-probability per action of each path, `(samples, time)`.

    Raises:
        ValueError: If the policy is an integer tensor.
    """
    check_floating(policy=policy)
    return policy.log()[paths.states, paths.actions]


def target_return(target: Target, mean: Tensor, log_std: Tensor) -> Tensor:
    """The expected reward of a Gaussian policy, -½E|a - goal|², exact, without unit.

    Args:
        target: The continuous twin.
        mean: Mean of the action in each state, `(*batch, states, dims)`.
        log_std: Log standard deviation, `(*batch, states, dims)`; it may also lack
            leading axes, and then broadcasts.

    Returns:
        One number per policy, `(*batch)`.

    Raises:
        ValueError: If the last axes are not the target's, or one is an integer tensor.
    """
    _check_action(target, mean=mean, log_std=log_std)
    squares = (mean - target.goals).square() + (2 * log_std).exp()
    return -0.5 * (target.weights * squares.sum(-1)).sum(-1)


def target_advantages(
    target: Target, mean: Tensor, log_std: Tensor, actions: Tensor
) -> Tensor:
    """The advantage of actions under a Gaussian policy, exact, without unit.

    Args:
        target: The continuous twin.
        mean: Mean of the action in each state, `(states, dims)`.
        log_std: Log standard deviation, `(states, dims)`; both broadcast.
        actions: One action per state, `(*samples, states, dims)`.

    Returns:
        Reward less its mean under the policy, `(*samples, states)`.

    Raises:
        ValueError: If the last axes are not the target's, or one is an integer tensor.
    """
    _check_action(target, mean=mean, log_std=log_std, actions=actions)
    expected = (mean - target.goals).square() + (2 * log_std).exp()
    return 0.5 * (expected - (actions - target.goals).square()).sum(-1)


def _check(problem: Problem, policy: Tensor) -> None:
    """Raise unless the policy has a row per state and a column per action."""
    check_tensors(2, policy=policy)
    expected, got = tuple(problem.rewards.shape), tuple(policy.shape[-2:])
    if got != expected:
        raise ValueError(f"policy ends in {got}, the problem has {expected}")


def _check_action(target: Target, **arguments: Tensor) -> None:
    """Raise unless what describes an action has the target's last axis."""
    for name, x in arguments.items():
        check_tensors(1, **{name: x})
        if x.shape[-1] != target.goals.shape[-1]:
            raise ValueError(f"{name} is {[*x.shape]}, goals {[*target.goals.shape]}")


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve for x, `(*batch, states)`; `nan` or `inf` if the matrix is singular."""
    solved: Tensor = torch.linalg.solve_ex(matrix, right.unsqueeze(-1))[0]
    return solved.squeeze(-1)
