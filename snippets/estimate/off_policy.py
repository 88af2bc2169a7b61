"""Importance weights: a KL of the new policy from samples of an older one.

Source: Owen, Monte Carlo theory, methods and examples, chapter 9; truncation is
Ionides, Truncated Importance Sampling (2008).
"""

import torch
from torch import Tensor

from snippets.foundations.contract import check_tensors, widen


def importance_weight(*, new_log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """The ratio new / old of each sample of old, without unit.

    Its mean over samples of old is 1. It carries the gradient of new: call
    `.detach()` where the weight is to count as a constant. For a sequence, give the
    sums over its tokens; a product of weights per token is the same. A sample that old
    cannot give, which it cannot have drawn, has weight `inf`. Half precision is
    computed in float32 and rounded once.

    Args:
        new_log_probs: Log-probability under the policy that trains, `(*batch)`.
        old_log_probs: Log-probability under the policy that sampled, `(*batch)`; gets
            no gradient.

    Returns:
        One positive weight per sample, `(*batch)`. It overflows to `inf` beyond
        `exp(88)` in float32.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(new_log_probs=new_log_probs, old_log_probs=old_log_probs)
    dtype, (new, old) = widen(new_log_probs, old_log_probs)
    # --8<-- [start:weight]
    return (new - old.detach()).exp().to(dtype)
    # --8<-- [end:weight]


def truncated_weight(
    *, new_log_probs: Tensor, old_log_probs: Tensor, ceiling: float
) -> Tensor:
    """The importance weight, cut at a ceiling: less variance, and a bias.

    A constant: no gradient flows through it.

    Args:
        new_log_probs: Log-probability under the policy that trains, `(*batch)`.
        old_log_probs: Log-probability under the policy that sampled, `(*batch)`.
        ceiling: The largest weight.

    Returns:
        One weight per sample, `(*batch)`, at most the ceiling.

    Raises:
        ValueError: If the ceiling is below 1, which would cut equal policies, the
            shapes differ, or one is an integer tensor.
    """
    if not ceiling >= 1:
        raise ValueError(f"ceiling is {ceiling}, and must be at least 1")
    weight = importance_weight(new_log_probs=new_log_probs, old_log_probs=old_log_probs)
    return weight.detach().clamp(max=ceiling)


def self_normalised_mean(values: Tensor, log_weights: Tensor) -> Tensor:
    """The weighted mean of the values, in their unit, with weights that sum to one.

    Biased by the order of 1 / samples, and never outside the range of the values.
    Log-weights need no common scale, so a missing normaliser does not matter. A sample
    of weight 0 is not read. Without any sample, or with every weight 0 or one infinite,
    the mean is `nan`. Half precision is computed in float32 and rounded once.

    Args:
        values: One estimate per sample, `(*batch, samples)`.
        log_weights: Log of the importance weights, `(*batch, samples)`.

    Returns:
        One mean per row, `(*batch)`.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(1, values=values, log_weights=log_weights)
    dtype, (values, log_weights) = widen(values, log_weights)
    # --8<-- [start:mean]
    weights = log_weights.softmax(-1)  # (*batch, samples)
    total = (weights * values.where(weights > 0, 0.0)).sum(-1)  # (*batch)
    # --8<-- [end:mean]
    return (total if values.shape[-1] else total + torch.nan).to(dtype)
