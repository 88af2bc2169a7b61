"""What tells apart the policy that trains from the engine that sampled for it.

Source: Yao et al., fengyao.notion.site/off-policy-rl, for weights against an engine;
Liu et al., When Speed Kills Stability, richardli.xyz/rl-collapse, for masks and levels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from snippets.estimate.estimators import k1, k3
from snippets.estimate.off_policy import importance_weight
from snippets.estimate.sequences import sequence_log_prob, token_mean
from snippets.estimate.variance import effective_sample_size
from snippets.foundations.contract import check_mask, check_tensors, widen


class Mismatch(NamedTuple):
    """Means over the tokens of a batch, with the weight trainer / sampler of each."""

    k1: Tensor  # KL(sampler || trainer), nats per token, of either sign
    k3: Tensor  # the same KL, if both have the same words; never negative
    mean_weight: Tensor  # 1 if both have the same words
    chi_squared: Tensor  # mean of (weight - 1)^2, never negative
    effective_share: Tensor  # of the tokens, between 0 and 1
    outliers: Tensor  # share of tokens whose weight is too far from 1


def mismatch(
    *,
    trainer_log_probs: Tensor,
    sampler_log_probs: Tensor,
    mask: Tensor,
    ceiling: float,
) -> Mismatch:
    """How far the sampler is from the trainer, from the tokens that it sampled.

    Two KLs in nats per token, and shares and squares without unit: `Mismatch` names
    them. They are constants. k3 is k1 less what the mean weight lacks to 1. Without
    any token they are `nan`. What stands under the mask is not read. Half precision is
    computed in float32 and rounded once.

    Args:
        trainer_log_probs: Log-probability of each token in the trainer,
            `(samples, time)`.
        sampler_log_probs: What the engine that sampled it reported, `(samples, time)`.
        mask: True where a token was sampled, `(samples, time)`.
        ceiling: A weight above it, or below one over it, is an outlier.

    Returns:
        Six scalars, `()` each.

    Raises:
        ValueError: If the ceiling is not above 1, the mask is not boolean, or the
            shapes differ.
    """
    if not ceiling > 1:
        raise ValueError(f"ceiling is {ceiling}, and must be above 1")
    both = {"trainer": trainer_log_probs, "sampler": sampler_log_probs}
    check_mask(mask, **{f"{name}_log_probs": x for name, x in both.items()})
    dtype, given = widen(*both.values())
    trainer, sampler = (x.detach().masked_fill(~mask, 0.0) for x in given)
    # --8<-- [start:core]
    weight = importance_weight(new_log_probs=trainer, old_log_probs=sampler)
    far = (weight > ceiling) | (weight < 1 / ceiling)
    per_token = (
        k1(sampler, trainer),
        k3(sampler, trainer),
        weight,
        (weight - 1).square(),
    )
    first, second, mean, square = (token_mean(x, mask) for x in per_token)
    counted = (trainer - sampler).masked_fill(~mask, -torch.inf).flatten()
    share = effective_sample_size(counted) / mask.sum()
    outliers = token_mean(far.to(weight.dtype), mask)
    # --8<-- [end:core]
    found = (first, second, mean, square, share, outliers)
    return Mismatch(*(x.to(dtype) for x in found))


def engine_weight(
    *,
    trainer_log_probs: Tensor,
    sampler_log_probs: Tensor,
    mask: Tensor,
    mode: str = "sequence_mask",
    floor: float = 0.0,
    ceiling: float = 3.0,
) -> Tensor:
    """What to multiply each token's loss with, for an engine that sampled it.

    The weight trainer / sampler, without unit, of the token or of the whole sequence;
    one that leaves the bounds is truncated to them, or masked, which makes it 0. The
    modes and defaults have the names of TRL. A constant: no gradient flows through it.
    Half precision is computed in float32 and rounded once.

    Args:
        trainer_log_probs: Log-probability of each token in the trainer,
            `(*batch, time)`.
        sampler_log_probs: What the engine that sampled it reported, `(*batch, time)`.
        mask: True where a token was sampled, `(*batch, time)`; elsewhere the
            log-probabilities are not read and the weight is 0.
        mode: `token_truncate`, `token_mask`, `sequence_truncate` or `sequence_mask`.
        floor: The smallest weight.
        ceiling: The largest weight.

    Returns:
        One weight per token, `(*batch, time)`.

    Raises:
        ValueError: If the mode is none of the four, the bounds do not lie around 1, the
            mask is not boolean, or the shapes differ.
    """
    level, _, rule = mode.partition("_")
    if level not in {"token", "sequence"} or rule not in {"truncate", "mask"}:
        raise ValueError(f"mode is {mode!r}, and none of the four")
    if not 0 <= floor <= 1 <= ceiling:
        raise ValueError(f"floor is {floor}, ceiling {ceiling}: 1 must lie between")
    both = {"trainer": trainer_log_probs, "sampler": sampler_log_probs}
    check_mask(mask, **{f"{name}_log_probs": x for name, x in both.items()})
    dtype, given = widen(*both.values())
    trainer, sampler = (x.detach().masked_fill(~mask, 0.0) for x in given)
    # --8<-- [start:weight]
    if level == "sequence":
        sums = (sequence_log_prob(x, mask).unsqueeze(-1) for x in (trainer, sampler))
        trainer, sampler = (x.expand(mask.shape) for x in sums)
    weight = importance_weight(new_log_probs=trainer, old_log_probs=sampler)
    if rule == "truncate":
        weight = weight.clamp(floor, ceiling)
    inside = mask & (weight >= floor) & (weight <= ceiling)
    weight = weight.masked_fill(~inside, 0.0)
    # --8<-- [end:weight]
    return weight.to(dtype)


def processed_log_probs(
    logits: Tensor, *, top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """Log-probability in nats of each word after min-p, top-k and top-p, as sampled.

    In this order, which is that of vLLM. A word that is cut has `-inf`; the others are
    normalised without it. The most likely word is never cut, and words as likely as
    the last that top-k keeps are kept too. Half precision is computed in float32 and
    rounded once.

    Args:
        logits: Logits after the division by the temperature, `(*batch, vocab)`.
        top_k: How many of the most likely words to keep; all, if none is given.
        top_p: Keep the fewest most likely words whose probability reaches it.
        min_p: Keep words that have this share of the largest probability, or more.

    Returns:
        Log-probabilities, `(*batch, vocab)`.

    Raises:
        ValueError: If top_k is below 1, top_p or min_p is no share, or logits are
            integers.
    """
    if (top_k is not None and top_k < 1) or not (0 < top_p <= 1 and 0 <= min_p <= 1):
        raise ValueError(f"top_k is {top_k}, top_p {top_p}, min_p {min_p}")
    check_tensors(1, logits=logits)
    dtype, (wide,) = widen(logits)
    # --8<-- [start:processed]
    log_p = wide.log_softmax(-1)
    kept = log_p.exp() >= min_p * log_p.amax(-1, keepdim=True).exp()
    if top_k is not None and top_k < logits.shape[-1]:
        left = log_p.masked_fill(~kept, -torch.inf)
        kept = kept & (log_p >= left.topk(top_k).values[..., -1:])
    p, order = log_p.masked_fill(~kept, -torch.inf).softmax(-1).sort(descending=True)
    before = p.cumsum(-1) - p  # the probability of all words that are more likely
    kept = kept & (before < top_p).gather(-1, order.argsort(-1))
    processed = wide.masked_fill(~kept, -torch.inf).log_softmax(-1)
    # --8<-- [end:processed]
    return processed.to(dtype)
