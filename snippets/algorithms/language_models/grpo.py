"""GRPO and the algorithms that changed its KL: the terms, one token at a time.

Source: Shao et al., arXiv:2402.03300 (GRPO); Liu et al., arXiv:2503.20783 (Dr. GRPO);
Yu et al., arXiv:2503.14476 (DAPO); Zheng et al., arXiv:2507.18071 (GSPO);
DeepSeek-V3.2, arXiv:2512.02556, eq. 7 (the weight on k3).
"""

import torch
from torch import Tensor

from snippets.estimate.estimators import k3
from snippets.estimate.gradients import weighted_k3_loss
from snippets.estimate.sequences import sequence_log_prob


def group_advantages(rewards: Tensor) -> Tensor:
    """GRPO: rewards less the mean of their group, over its standard deviation.

    A group whose rewards are all equal teaches nothing: its advantages are 0.

    Args:
        rewards: Of the answers to one prompt, `(*batch, samples)`.

    Returns:
        One advantage per answer, `(*batch, samples)`.

    Raises:
        ValueError: If there is one answer only, or rewards are not floating point.
    """
    centred = centred_advantages(rewards)
    std = rewards.std(-1, keepdim=True)
    return centred / std.masked_fill(std == 0, 1.0)


def centred_advantages(rewards: Tensor) -> Tensor:
    """Dr. GRPO: rewards less the mean of their group, in units of reward.

    Args:
        rewards: Of the answers to one prompt, `(*batch, samples)`.

    Returns:
        One advantage per answer, `(*batch, samples)`.

    Raises:
        ValueError: If there is one answer only, or rewards are not floating point.
    """
    if not rewards.is_floating_point():
        raise ValueError(f"rewards must be floating point, not {rewards.dtype}")
    if rewards.shape[-1] < 2:
        raise ValueError("rewards has one answer per prompt: no group to compare with")
    equal = (rewards == rewards[..., :1]).all(-1, keepdim=True)
    return (rewards - rewards.mean(-1, keepdim=True)).masked_fill(equal, 0.0)


def _filled(mask: Tensor, *log_probs: Tensor) -> list[Tensor]:
    """The log-probabilities, 0 where there is no token. Raise if it is no mask."""
    if mask.dtype != torch.bool or any(mask.shape != x.shape for x in log_probs):
        raise ValueError("mask must be boolean, with the shape of the log_probs")
    return [x.masked_fill(~mask, 0.0) for x in log_probs]


def grpo_divergence(
    new_log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """GRPO: k3 of KL(new || ref) in nats per token, as differentiated in its loss.

    The value is unbiased for samples of new. The gradient is then that of the other
    direction, KL(ref || new), token by token.

    Args:
        new_log_probs: Log-probability of each token under the policy that trains,
            `(*batch, time)`.
        ref_log_probs: The same under the reference, likewise; gets no gradient.
        mask: True where a token was sampled, likewise.

    Returns:
        One estimate per token, `(*batch, time)`, 0 under the mask.

    Raises:
        ValueError: If the mask is not boolean, or has another shape.
    """
    return k3(*_filled(mask, new_log_probs, ref_log_probs.detach()))


def corrected_divergence(
    new_log_probs: Tensor, old_log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """DeepSeek-V3.2: k3 times new / old, in nats per token.

    For tokens that old samples after a given prefix, value and gradient are those of
    KL(new || ref) there. The gradient needs that of the weight too.

    Args:
        new_log_probs: Log-probability of each token under the policy that trains,
            `(*batch, time)`.
        old_log_probs: The same under the policy that sampled, likewise; no gradient.
        ref_log_probs: The same under the reference, likewise; no gradient.
        mask: True where a token was sampled, likewise.

    Returns:
        One estimate per token, `(*batch, time)`, 0 under the mask.

    Raises:
        ValueError: If the mask is not boolean, or has another shape.
    """
    tokens = (new_log_probs, old_log_probs, ref_log_probs)
    return weighted_k3_loss(*_filled(mask, *tokens))


def sequence_ratio(
    old_log_probs: Tensor, new_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """GSPO: the geometric mean of new / old over the tokens of an answer.

    Its logarithm is minus the mean k1 of KL(old || new) per token.

    Args:
        old_log_probs: Log-probability of each token under the policy that sampled,
            `(*batch, time)`; gets no gradient.
        new_log_probs: The same under the policy that trains, likewise.
        mask: True where a token was sampled, likewise; at least one per answer.

    Returns:
        One ratio per answer, `(*batch)`.

    Raises:
        ValueError: If the mask is not boolean, or has another shape.
    """
    new = sequence_log_prob(new_log_probs, mask)
    old = sequence_log_prob(old_log_probs.detach(), mask)
    return ((new - old) / mask.sum(-1)).exp()


def clipped_gain(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """PPO's clipped gain with DAPO's two limits, to be maximised.

    Args:
        ratio: new / old, per token or per answer, `(*batch)`.
        advantages: Constants that broadcast to the same shape.
        low: How far below 1 the ratio still counts.
        high: How far above 1 the ratio still counts.

    Returns:
        One gain per ratio, `(*batch)`.

    Raises:
        ValueError: If `low` or `high` is negative.
    """
    if not (low >= 0 and high >= 0):
        raise ValueError(f"low and high are {low} and {high}, and must not be negative")
    within = ratio.clamp(1 - low, 1 + high)
    return torch.minimum(ratio * advantages, within * advantages)


def clipped_losses(
    old_log_probs: Tensor,
    new_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    low: float,
    high: float,
) -> Tensor:
    """Minus the clipped gain of every token, to be minimised; without a KL.

    That is all of DAPO and Dr. GRPO. GRPO adds beta times `grpo_divergence`,
    DeepSeek-V3.2 beta times `corrected_divergence`.

    Args:
        old_log_probs: Log-probability of each token under the policy that sampled,
            `(*batch, time)`; gets no gradient.
        new_log_probs: The same under the policy that trains, likewise.
        advantages: One constant per answer, `(*batch)`.
        mask: True where a token was sampled, `(*batch, time)`.
        low: How far below 1 a ratio still counts.
        high: How far above 1 a ratio still counts.

    Returns:
        One loss per token, `(*batch, time)`, 0 under the mask.

    Raises:
        ValueError: If the mask is not boolean, or has another shape.
    """
    old, new = _filled(mask, old_log_probs.detach(), new_log_probs)
    gain = clipped_gain((new - old).exp(), advantages[..., None], low, high)
    return -gain.masked_fill(~mask, 0.0)
