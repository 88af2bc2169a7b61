"""ACER's trust region: a gradient, projected so that the KL cannot grow too fast.

Source: Wang et al., Sample Efficient Actor-Critic with Experience Replay,
arXiv:1611.01224, section 3.3. P is a slow average of past policies.
"""

import torch
from torch import Tensor


def divergence_gradient(average_logits: Tensor, new_logits: Tensor) -> Tensor:
    """Gradient of KL(average || new) with respect to the logits of new.

    Args:
        average_logits: Logits of the average policy, `(*batch, actions)`.
        new_logits: Logits of the policy that learns, likewise.

    Returns:
        new's probabilities less the average's, `(*batch, actions)`.
    """
    return new_logits.softmax(-1) - average_logits.softmax(-1)


def project_gradient(gradient: Tensor, normal: Tensor, delta: float) -> Tensor:
    """The vector nearest to `gradient` whose product with `normal` is at most delta.

    Per row, in closed form. Where the product is small enough already, the gradient
    comes back as it was.

    Args:
        gradient: Ascent direction in the policy's statistics, `(*batch, actions)`.
        normal: Gradient of the KL in the same statistics, likewise.
        delta: How fast the KL may grow along the result, nats per unit step.

    Returns:
        The projected direction, `(*batch, actions)`.

    Raises:
        ValueError: If `delta` is not positive.
    """
    if delta <= 0:
        raise ValueError(f"delta is {delta}, not positive")
    excess = (gradient * normal).sum(-1, keepdim=True) - delta
    scale = (excess / normal.square().sum(-1, keepdim=True)).relu()
    return gradient - scale * normal


def update_average(average: Tensor, current: Tensor, decay: float) -> Tensor:
    """The average of past parameters after one more: decay·average + (1-decay)·new."""
    return torch.lerp(current, average, decay)
