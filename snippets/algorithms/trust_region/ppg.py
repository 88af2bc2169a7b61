"""PPG's clone term: train another head, keep the policy where it was.

Source: Cobbe et al., Phasic Policy Gradient, arXiv:2009.04416, and the code released
with it.
"""

from torch import Tensor


def clone_divergence(old_logits: Tensor, new_logits: Tensor) -> Tensor:
    """KL(old || new) in nats, per state, old being the policy before the phase.

    Args:
        old_logits: Logits stored when the auxiliary phase began, `(*batch, actions)`.
        new_logits: Logits of the network that trains, likewise.

    Returns:
        One divergence per state, `(*batch)`; gradients flow to `new_logits` alone.
    """
    old = old_logits.detach().log_softmax(-1)
    new = new_logits.log_softmax(-1)
    log_ratio = (old - new).masked_fill(old.isneginf(), 0.0)
    return (old.exp() * log_ratio).sum(-1)


def joint_loss(
    old_logits: Tensor,
    new_logits: Tensor,
    values: Tensor,
    targets: Tensor,
    beta: float,
) -> Tensor:
    """½(value - target)² + beta·KL(old || new), per state, to be minimised.

    Args:
        old_logits: Logits stored when the auxiliary phase began, `(*batch, actions)`.
        new_logits: Logits of the network that trains, likewise.
        values: What the policy network's value head says, `(*batch)`.
        targets: What it should say, `(*batch)`.
        beta: Coefficient of the clone term.

    Returns:
        One loss per state, `(*batch)`.
    """
    auxiliary = 0.5 * (values - targets).square()
    return auxiliary + beta * clone_divergence(old_logits, new_logits)
