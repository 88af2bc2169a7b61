"""RLHF with PPO: the KL to the reference as a reward on every token.

Source: Ziegler et al., arXiv:1909.08593, section 2.2, for the reward and the
controller; Ouyang et al., arXiv:2203.02155, InstructGPT. The step from one update to
the next is PPO's own.
"""

import math

import torch
from torch import Tensor

from snippets.estimate.estimators import k1


def token_rewards(
    scores: Tensor,
    old_log_probs: Tensor,
    ref_log_probs: Tensor,
    mask: Tensor,
    beta: float,
) -> Tensor:
    """Minus beta times k1 on each token, and the score on the last one.

    Summed over an answer and averaged over answers of old, it is
    E[score] - beta KL(old || ref), with the KL of whole answers in nats. A constant:
    nothing is differentiated.

    Args:
        scores: One score per answer, `(*batch)`.
        old_log_probs: Log-probability of each token under the policy that sampled,
            `(*batch, time)`.
        ref_log_probs: The same under the reference, likewise.
        mask: True where a token was sampled, likewise; at least one per answer.
        beta: The score that a nat is worth, at least 0.

    Returns:
        One reward per token, `(*batch, time)`, 0 under the mask.

    Raises:
        ValueError: If beta is negative, an answer has no token, or the mask is not
            boolean or has another shape.
    """
    if not beta >= 0:
        raise ValueError(f"beta is {beta}: less than 0 pays for leaving the reference")
    if mask.dtype != torch.bool or mask.shape != old_log_probs.shape:
        raise ValueError("mask must be boolean, with the shape of old_log_probs")
    if not mask.any(-1).all():
        raise ValueError("mask has an answer without tokens, which nothing can score")
    old, ref = (x.masked_fill(~mask, 0.0) for x in (old_log_probs, ref_log_probs))
    penalty = -beta * k1(old, ref).detach()  # (*batch, time)
    steps = torch.arange(mask.shape[-1], device=mask.device)
    last = (steps * mask).amax(-1, keepdim=True)
    return penalty.scatter_add(-1, last, scores.detach()[..., None])


def adapt_beta(
    beta: float, kl: float, target: float, answers: int, horizon: int
) -> float:
    """Ziegler's controller: beta after a batch, from the KL of that batch.

    The relative error counts up to 0.2 either way, and the log of beta moves by about
    that much in `horizon` answers, however they are cut into batches.

    Args:
        beta: The price of a nat so far.
        kl: KL(old || ref) of the batch, in nats. An estimate may be negative.
        target: What it should be, in the same unit, per answer or per token.
        answers: How many answers the batch has, fewer than five horizons.
        horizon: How many answers the log of beta takes to move by the error.

    Returns:
        The price of a nat for the next batch.

    Raises:
        ValueError: If one of the others is not positive, the KL is not finite, or the
            batch is so large that beta could become negative.
    """
    positive = {"beta": beta, "target": target, "answers": answers, "horizon": horizon}
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}, not positive")
    if not math.isfinite(kl):
        raise ValueError(f"kl is {kl}: no price answers that")
    if answers >= 5 * horizon:
        raise ValueError(f"answers is {answers}, five horizons of {horizon} or more")
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * answers / horizon)
