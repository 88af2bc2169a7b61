"""REPS: the best distribution of states and actions inside a KL.

Source: Peters, Mülling and Altün, Relative Entropy Policy Search, AAAI 2010; average
reward, with the states' own equations as constraints. Here with a known model.
"""

import torch
from torch import Tensor


def bellman_error(rewards: Tensor, transitions: Tensor, values: Tensor) -> Tensor:
    """Reward plus the next state's value less this state's, undiscounted.

    The values are the multipliers of the constraint that what flows into a state
    flows out of it.

    Args:
        rewards: Of each state and action, `(states, actions)`.
        transitions: Probabilities of the next state, `(states, actions, states)`.
        values: One per state, `(*batch, states)`.

    Returns:
        Bellman errors, `(*batch, states, actions)`.
    """
    after = torch.einsum("san,...n->...sa", transitions, values)
    return rewards + after - values[..., None]


def joint_divergence(new_log_joint: Tensor, old_log_joint: Tensor) -> Tensor:
    """KL(new || old) in nats, of distributions over states and actions together.

    By the chain rule: the KL of the states, plus the mean KL of the policies over
    the new states. What the new one never does adds nothing.

    Args:
        new_log_joint: Log-probabilities, `(*batch, states, actions)`.
        old_log_joint: Likewise.

    Returns:
        One divergence per batch row, `(*batch)`.
    """
    log_ratio = new_log_joint - old_log_joint
    log_ratio = log_ratio.masked_fill(new_log_joint.isneginf(), 0.0)
    return (new_log_joint.exp() * log_ratio).sum((-2, -1))


def improved_joint(old_log_joint: Tensor, errors: Tensor, eta: Tensor) -> Tensor:
    """Log of old · exp(error / eta) / Z, over states and actions together.

    Args:
        old_log_joint: Log-probabilities, `(*batch, states, actions)`.
        errors: What `bellman_error` gives, likewise.
        eta: The temperature, a positive scalar.

    Returns:
        Normalised log-probabilities, `(*batch, states, actions)`.
    """
    scores = (old_log_joint + errors / eta).flatten(-2)
    return scores.log_softmax(-1).reshape(errors.shape)


def joint_dual(
    old_log_joint: Tensor, errors: Tensor, eta: Tensor, epsilon: float
) -> Tensor:
    """The dual, eta · (epsilon + log E_old exp(error / eta)), per batch row.

    Convex in eta and in the values; its minimum is the best mean reward.

    Args:
        old_log_joint: Log-probabilities, `(*batch, states, actions)`.
        errors: What `bellman_error` gives, likewise; the gradient is for its values.
        eta: The temperature, a positive scalar; the gradient is for it too.
        epsilon: Limit on KL(new || old), in nats.

    Returns:
        One number per batch row, `(*batch)`.
    """
    log_mean = (old_log_joint + errors / eta).flatten(-2).logsumexp(-1)
    return eta * (epsilon + log_mean)


def _minimise_dual(
    old_log_joint: Tensor, rewards: Tensor, transitions: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """The temperature and the values at the minimum of `joint_dual`."""
    point = old_log_joint.new_zeros(rewards.shape[0] + 1).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [point],
        max_iter=200,
        tolerance_grad=1e-9,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def dual() -> Tensor:
        point.grad = None
        errors = bellman_error(rewards, transitions, point[1:])
        value = joint_dual(old_log_joint, errors, point[0].exp(), epsilon)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(dual)  # type: ignore[no-untyped-call]
    return point[0].detach().exp(), point[1:].detach()


def solve(
    old_log_joint: Tensor, rewards: Tensor, transitions: Tensor, epsilon: float
) -> Tensor:
    """The best joint distribution within KL(new || old) ≤ epsilon, as logs, in nats.

    Args:
        old_log_joint: Log-probabilities, `(states, actions)`.
        rewards: Likewise.
        transitions: Probabilities of the next state, `(states, actions, states)`.
        epsilon: Limit on KL(new || old), in nats.

    Returns:
        Log-probabilities, `(states, actions)`; the policy is their softmax over
        the actions.

    Raises:
        ValueError: If the dual has no minimum: the best distribution of all is
            nearer than epsilon.
    """
    eta, values = _minimise_dual(old_log_joint, rewards, transitions, epsilon)
    errors = bellman_error(rewards, transitions, values)
    found = improved_joint(old_log_joint, errors, eta)
    missed = joint_divergence(found, old_log_joint) / epsilon - 1
    if not missed.abs() < 0.1:
        raise ValueError(f"epsilon is {epsilon}, beyond the best distribution")
    return found
