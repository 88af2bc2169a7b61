"""A learning rate that follows the KL of the update.

Source: the schedule of rsl_rl, rl_games and skrl, which train legged robots with it.
"""

import torch
from torch import Tensor


def gaussian_divergence(
    old_mean: Tensor, old_std: Tensor, new_mean: Tensor, new_std: Tensor
) -> Tensor:
    """KL(old || new) in nats of Gaussians with diagonal covariance, per state.

    Exactly 0 for identical arguments, at any standard deviation: no small number is
    added anywhere.

    Args:
        old_mean: Mean of the policy that sampled, `(*batch, dims)`.
        old_std: Its standard deviation, likewise, positive.
        new_mean: Mean of the policy that learns, likewise.
        new_std: Its standard deviation, likewise, positive.

    Returns:
        One divergence per state, summed over the dimensions, `(*batch)`.
    """
    gap = old_std.log() - new_std.log()
    moved = (old_mean - new_mean) / new_std
    return 0.5 * (torch.expm1(2 * gap) - 2 * gap + moved.square()).sum(-1)


def adapt_rate(
    rate: float, divergence: float, target: float, lowest: float, highest: float
) -> float:
    """The next learning rate, from the mean KL(old || new) of the last update.

    Divided by 1.5 above twice the target, multiplied by 1.5 below half of it, and
    unchanged in between. A KL of 0, or of a rounding error below it, says that nothing
    has moved yet, as in the first minibatch after a rollout, and changes nothing.

    Args:
        rate: The learning rate that was used.
        divergence: Mean KL of the update, in nats.
        target: The KL that an update should have, in nats.
        lowest: The rate never falls below this.
        highest: The rate never rises above this.

    Returns:
        A learning rate between `lowest` and `highest`.

    Raises:
        ValueError: If the divergence is nan.
    """
    if divergence != divergence:
        raise ValueError("divergence is nan")
    if divergence > 2 * target:
        return max(lowest, rate / 1.5)
    if 0 < divergence < target / 2:
        return min(highest, rate * 1.5)
    return rate
