"""The entropy bonus of A2C and A3C, which is a KL to the uniform policy.

Source: Mnih et al., Asynchronous Methods for Deep Reinforcement Learning,
arXiv:1602.01783.
"""

from torch import Tensor


def entropy(new_logits: Tensor) -> Tensor:
    """Entropy of a policy in nats, per state, from its logits.

    A logit of `-inf` masks its action; it adds nothing.

    Args:
        new_logits: Logits of the policy that learns, `(*batch, actions)`.

    Returns:
        One entropy per state, `(*batch)`, between 0 and the log of the number of
        actions that are not masked.
    """
    log_p = new_logits.log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0.0)).sum(-1)


def divergence_from_uniform(new_logits: Tensor) -> Tensor:
    """KL(policy || uniform) in nats, per state, from the policy's logits.

    Uniform over the actions that are not masked by `-inf`. Entropy and this sum to
    the log of their number, so their gradients differ in sign alone.

    Args:
        new_logits: Logits of the policy that learns, `(*batch, actions)`.

    Returns:
        One divergence per state, `(*batch)`.
    """
    log_p = new_logits.log_softmax(-1)
    free = (~log_p.isneginf()).sum(-1, keepdim=True).to(log_p.dtype)
    log_ratio = (log_p + free.log()).masked_fill(log_p.isneginf(), 0.0)
    return (log_p.exp() * log_ratio).sum(-1)
