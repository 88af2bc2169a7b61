"""GRPO and the algorithms that changed its KL: the terms, one token at a time.

Source: Shao et al., arXiv:2402.03300 (GRPO); Liu et al., arXiv:2503.20783 (Dr. GRPO);
Yu et al., arXiv:2503.14476 (DAPO); Zheng et al., arXiv:2507.18071 (GSPO);
DeepSeek-V3.2, arXiv:2512.02556, eq. 7 (the weight on k3).
"""

import torch
from torch import Tensor

from snippets.algorithms.trust_region.ppo_clip import clipped_surrogate_loss
from snippets.estimate.estimators import k3
from snippets.estimate.gradients import weighted_k3_loss
from snippets.estimate.sequences import sequence_log_prob
from snippets.foundations.contract import (
    check_mask,
    check_rows,
    check_tensors,
    nan_outside,
    widen,
)


def centred_advantages(rewards: Tensor, mask: Tensor | None = None) -> Tensor:
    """Dr. GRPO: rewards less the mean of their group, in units of reward.

    Equal rewards give exactly 0. A completion under the mask counts for nothing and
    gets 0. A reward that is not finite makes its group `nan`. Half precision is
    computed in float32 and rounded once.

    Args:
        rewards: Of the completions of each prompt, `(*batch, samples)`, with an axis
            of prompts: a flat list of rewards is refused.
        mask: True where a completion is valid, `(*batch, samples)`; all, without it.

    Returns:
        One advantage per completion, `(*batch, samples)`.

    Raises:
        ValueError: If there is no axis of prompts, or one completion per prompt only,
            rewards are integers, or the mask is not boolean or has another shape.
    """
    check_tensors(2, rewards=rewards)
    if rewards.shape[-1] < 2:
        raise ValueError("rewards has one completion per prompt, and needs a group")
    valid = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    check_mask(valid, rewards=rewards)
    dtype, (rewards,) = widen(rewards)
    # Less the largest first: equal rewards are then exactly 0, and so is their mean.
    largest = rewards.masked_fill(~valid, -torch.inf).amax(-1, keepdim=True)
    centred = (rewards - largest).masked_fill(~valid, 0.0)
    mean = centred.sum(-1, keepdim=True) / valid.sum(-1, keepdim=True)
    centred = nan_outside(centred - mean, mean.isfinite())
    return centred.masked_fill(~valid, 0.0).to(dtype)


def group_advantages(rewards: Tensor, mask: Tensor | None = None) -> Tensor:
    """GRPO: rewards less the mean of their group, over its standard deviation.

    Equal rewards teach nothing: their advantages are exactly 0. A completion under
    the mask counts for nothing and gets 0. A reward that is not finite makes its group
    `nan`. Half precision is computed in float32 and rounded once.

    Args:
        rewards: Of the completions of each prompt, `(*batch, samples)`, with an axis
            of prompts: a flat list of rewards is refused.
        mask: True where a completion is valid, `(*batch, samples)`; all, without it.

    Returns:
        One advantage per completion, `(*batch, samples)`, without unit.

    Raises:
        ValueError: If there is no axis of prompts, or one completion per prompt only,
            rewards are integers, or the mask is not boolean or has another shape.
    """
    check_tensors(2, rewards=rewards)
    dtype, (rewards,) = widen(rewards)
    others = (rewards.shape[-1] if mask is None else mask.sum(-1, keepdim=True)) - 1
    # --8<-- [start:advantages]
    centred = centred_advantages(rewards, mask)  # less the mean of the group
    std = (centred.square().sum(-1, keepdim=True) / others).sqrt()
    advantages = centred / std.where(std > 0, 1.0)
    # --8<-- [end:advantages]
    return advantages.to(dtype)


def clipped_losses(
    *,
    new_log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """Minus PPO's clipped surrogate for every token, to be minimised; without a KL.

    That is all of DAPO and of Dr. GRPO. GRPO adds beta times `grpo_kl`, DeepSeek-V3.2
    beta times `unbiased_kl`. What stands under the mask is not read.

    Args:
        new_log_probs: Log-probability of each token under the policy that trains,
            `(*batch, time)`.
        old_log_probs: Log-probability of each token under the policy that sampled,
            `(*batch, time)`; gets no gradient.
        advantages: One constant per completion, `(*batch)`.
        mask: True where a token was sampled, `(*batch, time)`.
        clip_low: How far below 1 a ratio new / old still counts.
        clip_high: How far above 1 a ratio still counts.

    Returns:
        One loss per token, `(*batch, time)`, 0 under the mask.

    Raises:
        ValueError: If a limit makes no sense, the mask is not boolean, or a tensor is
            an integer one or has another shape.
    """
    new, old = _filled(mask, new_log_probs=new_log_probs, old_log_probs=old_log_probs)
    check_rows(mask, advantages=advantages)
    losses = clipped_surrogate_loss(
        new_log_probs=new,
        old_log_probs=old,
        advantages=advantages.unsqueeze(-1).expand(mask.shape),
        clip_low=clip_low,
        clip_high=clip_high,
    )
    return losses.masked_fill(~mask, 0.0)


def grpo_kl(*, new_log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor) -> Tensor:
    """GRPO: k3 of KL(new || ref) in nats per token, as differentiated in its loss.

    The value is unbiased for samples of new. The gradient is then that of the other
    direction, KL(ref || new), token by token. What stands under the mask is not read.
    A kept token that ref cannot give is `inf`, one that new cannot give `nan`, as
    happens where log-probabilities are those of top-k sampling.

    Args:
        new_log_probs: Log-probability of each token under the policy that trains,
            `(*batch, time)`.
        ref_log_probs: Log-probability of each token under the reference,
            `(*batch, time)`; gets no gradient.
        mask: True where a token was sampled, `(*batch, time)`.

    Returns:
        One estimate per token, `(*batch, time)`, 0 under the mask.

    Raises:
        ValueError: If the mask is not boolean, or a tensor is an integer one or has
            another shape.
    """
    new, ref = _filled(mask, new_log_probs=new_log_probs, ref_log_probs=ref_log_probs)
    return k3(new, ref.detach())


def unbiased_kl(
    *, new_log_probs: Tensor, old_log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """DeepSeek-V3.2: k3 times new / old, in nats per token.

    For tokens that old samples after a given prefix, value and gradient are those of
    KL(new || ref) there. The gradient needs that of the weight too. What stands under
    the mask is not read.

    Args:
        new_log_probs: Log-probability of each token under the policy that trains,
            `(*batch, time)`.
        old_log_probs: Log-probability of each token under the policy that sampled,
            `(*batch, time)`; gets no gradient.
        ref_log_probs: Log-probability of each token under the reference,
            `(*batch, time)`; gets no gradient.
        mask: True where a token was sampled, `(*batch, time)`.

    Returns:
        One estimate per token, `(*batch, time)`, 0 under the mask.

    Raises:
        ValueError: If the mask is not boolean, or a tensor is an integer one or has
            another shape.
    """
    new, old, ref = _filled(
        mask,
        new_log_probs=new_log_probs,
        old_log_probs=old_log_probs,
        ref_log_probs=ref_log_probs,
    )
    return weighted_k3_loss(new_log_probs=new, old_log_probs=old, ref_log_probs=ref)


def mean_log_ratio(
    *, new_log_probs: Tensor, old_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """GSPO: the mean of log new / old over the tokens of a completion, in nats.

    It is minus the mean k1 of KL(old || new) per token. Its exponential is the ratio
    that GSPO clips. A completion without tokens has 0. What stands under the mask is
    not read. Half precision is computed in float32 and rounded once.

    Args:
        new_log_probs: Log-probability of each token under the policy that trains,
            `(*batch, time)`.
        old_log_probs: Log-probability of each token under the policy that sampled,
            `(*batch, time)`; gets no gradient.
        mask: True where a token was sampled, `(*batch, time)`.

    Returns:
        One mean per completion, `(*batch)`.

    Raises:
        ValueError: If the mask is not boolean, or a tensor is an integer one or has
            another shape.
    """
    new, old = _filled(mask, new_log_probs=new_log_probs, old_log_probs=old_log_probs)
    dtype, (new, old) = widen(new, old)
    tokens = mask.sum(-1)
    total = sequence_log_prob(new - old.detach(), mask)
    return (total / tokens.where(tokens > 0, 1)).to(dtype)


def sequence_clipped_losses(
    *,
    new_log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """GSPO: minus the clipped surrogate of whole completions, to be minimised.

    The ratio is the geometric mean of new / old over the tokens of a completion, 1
    for a completion without tokens. What stands under the mask is not read.

    Args:
        new_log_probs: Log-probability of each token under the policy that trains,
            `(*batch, time)`.
        old_log_probs: Log-probability of each token under the policy that sampled,
            `(*batch, time)`; gets no gradient.
        advantages: One constant per completion, `(*batch)`.
        mask: True where a token was sampled, `(*batch, time)`.
        clip_low: How far below 1 the ratio still counts.
        clip_high: How far above 1 the ratio still counts.

    Returns:
        One loss per completion, `(*batch)`.

    Raises:
        ValueError: If a limit makes no sense, the mask is not boolean, or a tensor is
            an integer one or has another shape.
    """
    check_mask(mask, new_log_probs=new_log_probs, old_log_probs=old_log_probs)
    check_rows(mask, advantages=advantages)
    dtype, (new, old, advantages) = widen(new_log_probs, old_log_probs, advantages)
    log_ratio = mean_log_ratio(new_log_probs=new, old_log_probs=old, mask=mask)
    losses = clipped_surrogate_loss(
        new_log_probs=log_ratio,
        old_log_probs=torch.zeros_like(log_ratio),
        advantages=advantages,
        clip_low=clip_low,
        clip_high=clip_high,
    )
    return losses.to(dtype)


def _filled(mask: Tensor, **log_probs: Tensor) -> list[Tensor]:
    """The log-probabilities, 0 where there is no token."""
    check_mask(mask, **log_probs)
    return [x.masked_fill(~mask, 0.0) for x in log_probs.values()]
