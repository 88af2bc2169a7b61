"""PPO with a KL penalty, and the controllers that adapt its coefficient.

Source: Schulman et al., Proximal Policy Optimization Algorithms, arXiv:1707.06347,
section 4. Thresholds of the other controllers are read from their libraries' source.
"""

from typing import NamedTuple

from torch import Tensor


def penalty_loss(
    old_logits: Tensor,
    new_logits: Tensor,
    actions: Tensor,
    advantages: Tensor,
    beta: float,
) -> Tensor:
    """-ratio·advantage + beta·KL(old || new), per sample, to be minimised.

    The KL is exact over the actions, in nats. The old policy is a constant.

    Args:
        old_logits: Logits of the policy that sampled, `(*batch, actions)`.
        new_logits: Logits of the policy that learns, likewise.
        actions: What the old policy did, `(*batch)`, int64.
        advantages: Advantages of those, `(*batch)`.
        beta: Coefficient of the KL, at least 0.

    Returns:
        One loss per sample, `(*batch)`; gradients flow to `new_logits`.

    Raises:
        ValueError: If `beta` is negative.
    """
    if beta < 0:
        raise ValueError(f"beta is {beta}: a negative one rewards divergence")
    old = old_logits.detach().log_softmax(-1)  # (*batch, actions)
    new = new_logits.log_softmax(-1)  # (*batch, actions)
    log_ratio = (new - old).masked_fill(old.isneginf(), 0.0)
    divergence = -(old.exp() * log_ratio).sum(-1)  # (*batch)
    ratio = log_ratio.gather(-1, actions[..., None])[..., 0].exp()
    return beta * divergence - ratio * advantages


class Controller(NamedTuple):
    """When to change the coefficient, and by which factor; as multiples of the target.

    Above `high` times the target it is multiplied by `raised`, below `low` times the
    target by `lowered`; in between it stays.
    """

    high: float
    low: float
    raised: float
    lowered: float


PAPER = Controller(high=1.5, low=1 / 1.5, raised=2.0, lowered=0.5)
MODULAR_RL = Controller(high=1.3, low=0.7, raised=1.5, lowered=1 / 1.5)
RLLIB = Controller(high=2.0, low=0.5, raised=1.5, lowered=0.5)


def adapt_coefficient(
    beta: float, divergence: float, target: float, controller: Controller
) -> float:
    """The coefficient for the next batch, from the KL of the update just made.

    Args:
        beta: Coefficient used in that update.
        divergence: Mean KL(old || new) after its last epoch, in nats.
        target: KL that an update should have, in nats.
        controller: Thresholds and factors.

    Returns:
        The coefficient, unchanged between the thresholds.

    Raises:
        ValueError: If the target is not positive, or the divergence is not finite.
    """
    if target <= 0:
        raise ValueError(f"target is {target}, not positive")
    if not abs(divergence) < float("inf"):
        raise ValueError(f"divergence is {divergence}: no coefficient answers that")
    if divergence > controller.high * target:
        return beta * controller.raised
    if divergence < controller.low * target:
        return beta * controller.lowered
    return beta
