"""PPG's auxiliary phase: train another head, keep the policy where it was.

Source: Cobbe et al., Phasic Policy Gradient, arXiv:2009.04416, and the code released
with it.
"""

from torch import Tensor

from snippets.estimate.placement import kl_penalty
from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import check_tensors, widen


def joint_loss(
    *,
    new_logits: Tensor,
    old_logits: Tensor,
    values: Tensor,
    targets: Tensor,
    beta: float,
) -> Tensor:
    """½(value - target)² + beta KL(old || new), the KL in nats, to be minimised.

    The old policy and the targets are constants. Half precision is computed in float32
    and rounded once.

    Args:
        new_logits: Logits of the network that trains, `(*batch, actions)`.
        old_logits: Logits stored when the phase began, `(*batch, actions)`.
        values: What the policy network's value head says, `(*batch)`.
        targets: What it should say, `(*batch)`.
        beta: Coefficient of the KL, at least 0.

    Returns:
        One loss per state, `(*batch)`; gradients flow to `new_logits` and `values`.

    Raises:
        ValueError: If beta is negative, the shapes do not fit, or one is an integer
            tensor.
    """
    check_tensors(1, new_logits=new_logits, old_logits=old_logits)
    check_tensors(old_logits=old_logits.select(-1, 0), values=values, targets=targets)
    constants = (old_logits.detach(), targets.detach())
    dtype, (new, values, old, targets) = widen(new_logits, values, *constants)
    # --8<-- [start:core]
    auxiliary = 0.5 * (values - targets).square()
    loss = auxiliary + kl_penalty(kl_divergence_logits(old, new), beta)
    # --8<-- [end:core]
    return loss.to(dtype)
