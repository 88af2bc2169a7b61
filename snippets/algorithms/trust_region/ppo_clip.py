"""PPO's clipped surrogate, and how much of a batch it clips.

Source: Schulman et al., Proximal Policy Optimization Algorithms, arXiv:1707.06347,
equation 7. Two clip ranges instead of one: Yu et al., DAPO, arXiv:2503.14476.
"""

import math

import torch
from torch import Tensor

from snippets.foundations.contract import check_positive, check_tensors, widen


def clipped_surrogate_loss(
    *,
    new_log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """-min(ρA, clip(ρ, 1 - clip_low, 1 + clip_high) A), without unit, to be minimised.

    ρ is new / old. A sample whose ratio has left the range on the side that its
    advantage A asks for has no gradient. Where A is not negative, value and gradient
    are finite however far new is above old. Where A is negative, both grow with ρ, as
    the formula says, and overflow with it. Half precision is computed in float32 and
    rounded once. Every element is read: select the tokens under a mask before.

    Args:
        new_log_probs: Log-probability under the policy that trains, `(*batch)`.
        old_log_probs: Log-probability under the policy that sampled, `(*batch)`; gets
            no gradient.
        advantages: Advantage A of each sample, a constant, `(*batch)`.
        clip_low: How far the ratio may fall below 1, between 0 and 1.
        clip_high: How far the ratio may rise above 1, positive.

    Returns:
        One loss per sample, `(*batch)`.

    Raises:
        ValueError: If a clip is outside its range, the shapes differ, or one is an
            integer tensor.
    """
    check_tensors(
        new_log_probs=new_log_probs, old_log_probs=old_log_probs, advantages=advantages
    )
    lowest, highest = _log_range(clip_low, clip_high)
    tensors = (new_log_probs, old_log_probs.detach(), advantages.detach())
    dtype, (new, old, advantages) = widen(*tensors)
    # --8<-- [start:core]
    log_ratio = new - old
    rising = log_ratio.clamp(max=highest)  # A >= 0: no reward for going above
    falling = log_ratio.clamp(min=lowest)  # A < 0: no reward for going below
    ratio = torch.where(advantages >= 0, rising, falling).exp()
    loss = -ratio * advantages
    # --8<-- [end:core]
    return loss.to(dtype)


def clip_fraction(
    *, new_log_probs: Tensor, old_log_probs: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """The share of samples whose ratio new / old has left the clip range, no unit.

    Both sides count, whatever the advantage: some of these samples still have a
    gradient. It has none itself.

    Args:
        new_log_probs: Log-probability under the policy that trains,
            `(*batch, samples)`.
        old_log_probs: Log-probability under the policy that sampled,
            `(*batch, samples)`.
        clip_low: How far the ratio may fall below 1, between 0 and 1.
        clip_high: How far the ratio may rise above 1, positive.

    Returns:
        One share per row, `(*batch)`, between 0 and 1.

    Raises:
        ValueError: If a clip is outside its range, the shapes differ, or one is an
            integer tensor.
    """
    check_tensors(1, new_log_probs=new_log_probs, old_log_probs=old_log_probs)
    lowest, highest = _log_range(clip_low, clip_high)
    dtype, (new, old) = widen(new_log_probs, old_log_probs)
    log_ratio = new - old
    outside = (log_ratio < lowest) | (log_ratio > highest)
    return outside.to(new.dtype).mean(-1).to(dtype)


def _log_range(clip_low: float, clip_high: float) -> tuple[float, float]:
    """Logarithms of the smallest and the largest ratio."""
    check_positive(clip_low=clip_low, clip_high=clip_high)
    if not clip_low < 1:
        raise ValueError(f"clip_low is {clip_low}: no ratio is below 0")
    return math.log1p(-clip_low), math.log1p(clip_high)
