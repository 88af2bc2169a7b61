"""PPO with a KL penalty, and the controllers that adapt its coefficient.

Source: Schulman et al., Proximal Policy Optimization Algorithms, arXiv:1707.06347,
section 4. Thresholds of the other controllers are read from their libraries' source.
"""

from typing import NamedTuple

from torch import Tensor

from snippets.estimate.placement import kl_penalty, policy_gradient_loss
from snippets.estimate.sampling import log_prob
from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import check_positive, check_tensors, widen


def penalty_loss(
    *,
    new_logits: Tensor,
    old_logits: Tensor,
    actions: Tensor,
    advantages: Tensor,
    beta: float,
) -> Tensor:
    """-ρ advantage + beta KL(old || new), in units of reward, to be minimised.

    ρ is new / old of the action. The KL is exact over the actions, in nats. The old
    policy and the advantages are constants. A logit of `-inf` masks its action, which
    the old policy must then not have taken. Half precision is computed in float32 and
    rounded once.

    Args:
        new_logits: Logits of the policy that trains, `(*batch, actions)`.
        old_logits: Logits of the policy that sampled, `(*batch, actions)`.
        actions: What the old policy did, integers, `(*batch)`.
        advantages: Advantage of each of them, `(*batch)`.
        beta: The KL coefficient, at least 0.

    Returns:
        One loss per sample, `(*batch)`; gradients flow to `new_logits`.

    Raises:
        ValueError: If beta is negative, the shapes do not fit, or a tensor but the
            actions is an integer one.
    """
    check_tensors(1, new_logits=new_logits, old_logits=old_logits)
    check_tensors(old_logits=old_logits.select(-1, 0), advantages=advantages)
    tensors = (new_logits, old_logits.detach(), advantages)
    dtype, (new, old, advantages) = widen(*tensors)
    # --8<-- [start:core]
    loss = policy_gradient_loss(
        new_log_probs=log_prob(new, actions=actions, temperature=1.0),
        old_log_probs=log_prob(old, actions=actions, temperature=1.0),
        advantages=advantages,
    )
    loss = loss + kl_penalty(kl_divergence_logits(old, new), beta)
    # --8<-- [end:core]
    return loss.to(dtype)


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
    beta: float, kl: float, target: float, controller: Controller
) -> float:
    """The KL coefficient for the next batch, in reward per nat, from the last KL.

    Args:
        beta: Coefficient used in the update that was just made.
        kl: Mean KL(old || new) after its last epoch, in nats.
        target: KL that an update should have, in nats.
        controller: Thresholds and factors.

    Returns:
        The coefficient, unchanged between the thresholds.

    Raises:
        ValueError: If the coefficient or the target is not positive, or the KL is not
            finite.
    """
    check_positive(beta=beta, target=target)
    if not abs(kl) < float("inf"):
        raise ValueError(f"kl is {kl}: no coefficient mends that")
    # --8<-- [start:controller]
    if kl > controller.high * target:
        return beta * controller.raised
    if kl < controller.low * target:
        return beta * controller.lowered
    return beta
    # --8<-- [end:controller]
