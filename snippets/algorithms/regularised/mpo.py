"""MPO: improve without parameters inside a KL, then project inside another.

Source: Abdolmaleki et al., Maximum a Posteriori Policy Optimisation, arXiv:1806.06920;
the decoupled constraints on mean and covariance are those of arXiv:1812.02256.
Sampled actions are a policy too, uniform over themselves: pass zeros as old logits.
"""

import torch
from torch import Tensor


# --8<-- [start:improve]
def improved_policy(old_logits: Tensor, action_values: Tensor, eta: Tensor) -> Tensor:
    """Log-probabilities of the E-step's policy, old · exp(Q / eta) / Z, in nats.

    Args:
        old_logits: Logits of the policy that sampled, `(*batch, actions)`, or zeros
            over sampled actions, `(*batch, samples)`.
        action_values: Q of each action, likewise; finite.
        eta: The temperature, a positive scalar.

    Returns:
        Normalised log-probabilities, the shape of the values.
    """
    return (old_logits.log_softmax(-1) + action_values / eta).log_softmax(-1)


def improvement_divergence(target_logits: Tensor, old_logits: Tensor) -> Tensor:
    """KL(target || old) in nats, per state: what the E-step's epsilon bounds.

    Args:
        target_logits: What `improved_policy` gives, `(*batch, actions)`.
        old_logits: Logits of the policy that sampled, likewise.

    Returns:
        One divergence per state, `(*batch)`: average it over the old states.
    """
    target, old = target_logits.log_softmax(-1), old_logits.log_softmax(-1)
    log_ratio = (target - old).masked_fill(target.isneginf(), 0.0)
    return (target.exp() * log_ratio).sum(-1)


def temperature_dual(
    old_logits: Tensor, action_values: Tensor, eta: Tensor, epsilon: float
) -> Tensor:
    """The dual of the E-step, eta · (epsilon + log E exp(Q / eta)), per state.

    Convex in eta. The derivative of its mean over states is epsilon less the mean
    KL(target || old), so the minimum is where the constraint holds with equality.

    Args:
        old_logits: Logits of the policy that sampled, `(*batch, actions)`, or zeros
            over sampled actions, `(*batch, samples)`.
        action_values: Q of each action, likewise; finite.
        eta: The temperature, a positive scalar; the gradient is for it.
        epsilon: Limit on the mean KL, in nats.

    Returns:
        One number per state, `(*batch)`: average it before taking the gradient.
    """
    log_mean = (old_logits.log_softmax(-1) + action_values / eta).logsumexp(-1)
    return eta * (epsilon + log_mean)


def solve_temperature(
    old_logits: Tensor, action_values: Tensor, epsilon: float
) -> Tensor:
    """The temperature at which the mean KL(target || old) is epsilon.

    By bisection of its logarithm, to the last digit of the dtype or nearly so.

    Args:
        old_logits: As in `temperature_dual`.
        action_values: As in `temperature_dual`.
        epsilon: Limit on the mean KL, in nats.

    Returns:
        A scalar.

    Raises:
        ValueError: If even the greedy policy is nearer than epsilon.
    """

    def too_far(log_eta: Tensor) -> bool:
        target = improved_policy(old_logits, action_values, log_eta.exp())
        return bool(improvement_divergence(target, old_logits).mean() > epsilon)

    low, high = action_values.new_tensor(-9.0), action_values.new_tensor(9.0)
    if not too_far(low):
        raise ValueError(f"epsilon is {epsilon}, beyond the greedy policy")
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if too_far(middle) else (low, middle)
    return high.exp()


# --8<-- [end:improve]


# --8<-- [start:project]
def projection_loss(target_logits: Tensor, new_log_probs: Tensor) -> Tensor:
    """Cross-entropy of the new policy under the target, in nats, per state.

    KL(target || new) plus the target's entropy, which has no gradient for new.

    Args:
        target_logits: What `improved_policy` gives, `(*batch, actions)`, or
            `(*batch, samples)`; no gradient flows to it.
        new_log_probs: Log-probability or density of the same actions, likewise.

    Returns:
        One loss per state, `(*batch)`.
    """
    weights = target_logits.detach().softmax(-1)
    return -(weights * new_log_probs.masked_fill(weights == 0, 0.0)).sum(-1)


def decoupled_divergences(
    old_mean: Tensor, old_log_std: Tensor, new_mean: Tensor, new_log_std: Tensor
) -> tuple[Tensor, Tensor]:
    """KL(old || new) in nats, per dimension, of the mean alone and the std alone.

    The first changes only the mean, the second only the standard deviation. Their
    sum is the KL of both changes where at most one of them happens.

    Args:
        old_mean: Mean of the policy that sampled, `(*batch, dims)`.
        old_log_std: Its log standard deviation, likewise.
        new_mean: Mean of the policy that learns, likewise.
        new_log_std: Its log standard deviation, likewise.

    Returns:
        Two divergences per state and dimension, `(*batch, dims)`: their sums over
        the dimensions are the joint KLs.
    """
    moved = (old_mean - new_mean) * (-old_log_std).exp()
    gap = old_log_std - new_log_std
    spread = 0.5 * (torch.expm1(2 * gap) - 2 * gap)
    return 0.5 * moved.square(), spread


def constraint_losses(
    divergence: Tensor, multiplier: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """A KL constraint as two losses: for the policy, and for its multiplier.

    Both are minimised. The multiplier grows while the KL is above epsilon.

    Args:
        divergence: Mean KL(old || new), in nats; any shape.
        multiplier: The positive Lagrange multiplier, likewise or a scalar.
        epsilon: Limit on the KL, in nats.

    Returns:
        `multiplier · KL` with a gradient for the policy alone, and
        `multiplier · (epsilon - KL)` with a gradient for the multiplier alone.
    """
    penalty = multiplier.detach() * divergence
    return penalty, multiplier * (epsilon - divergence.detach())


# --8<-- [end:project]
