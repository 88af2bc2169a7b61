"""RLHF with PPO: the KL to the reference as a reward on every token.

Source: Ziegler et al., arXiv:1909.08593, section 2.2, for the reward and the
controller; Ouyang et al., arXiv:2203.02155, InstructGPT. The step from one update to
the next is PPO's own.
"""

import math

from torch import Tensor

from snippets.estimate.estimators import k1
from snippets.estimate.placement import kl_penalty
from snippets.foundations.contract import (
    check_mask,
    check_positive,
    check_rows,
    nan_outside,
    widen,
)


def token_rewards(
    *,
    scores: Tensor,
    old_log_probs: Tensor,
    ref_log_probs: Tensor,
    mask: Tensor,
    beta: float,
) -> Tensor:
    """Minus beta times k1 on each token, and the score on the last one.

    Summed over a completion and averaged over completions of old, it is
    E[score] - beta KL(old || ref), with the KL of whole completions in nats. A
    constant: nothing is differentiated. A completion without tokens has nowhere to put
    its score: its row is `nan`. At a token that only ref gives probability 0 the
    reward is `-inf`, only old `inf` (top-k sampling does that), both `nan`; with a
    beta of 0 the penalty is 0 there too. What stands under the mask is not read. Half
    precision is computed in float32 and rounded once.

    Args:
        scores: One score per completion, `(*batch)`.
        old_log_probs: Log-probability of each token under the policy that sampled,
            `(*batch, time)`.
        ref_log_probs: Log-probability of each token under the reference,
            `(*batch, time)`.
        mask: True where a token was sampled, `(*batch, time)`; it may have gaps.
        beta: The KL coefficient, at least 0: how much score a nat is worth.

    Returns:
        One reward per token, `(*batch, time)`, 0 under the mask.

    Raises:
        ValueError: If beta is negative, the mask is not boolean, or a tensor is an
            integer one or has another shape.
    """
    check_mask(mask, old_log_probs=old_log_probs, ref_log_probs=ref_log_probs)
    check_rows(mask, scores=scores)
    dtype, (scores, *tokens) = widen(scores, old_log_probs, ref_log_probs)
    # --8<-- [start:core]
    old, ref = (x.detach().masked_fill(~mask, 0.0) for x in tokens)
    penalty = kl_penalty(k1(old, ref), beta)  # (*batch, time)
    left = mask.flip(-1).cumsum(-1).flip(-1)  # tokens from here to the end
    last = mask & (left == 1)
    rewards = scores.detach().unsqueeze(-1).where(last, 0.0) - penalty
    # --8<-- [end:core]
    return nan_outside(rewards, mask.any(-1, keepdim=True)).to(dtype)


def adapt_beta(
    *, beta: float, kl: float, target: float, completions: int, horizon: int
) -> float:
    """Ziegler's controller: beta after a batch, from the KL of that batch in nats.

    The relative error counts up to 0.2 either way, and the log of beta moves by about
    that much in `horizon` completions, however they are cut into batches. All
    arguments are Python numbers.

    Args:
        beta: The KL coefficient so far.
        kl: KL(old || ref) of the batch, in nats. An estimate may be negative.
        target: What it should be, in the same unit, per completion or per token.
        completions: How many completions the batch has, fewer than five horizons.
        horizon: How many completions the log of beta takes to move by the error.

    Returns:
        The KL coefficient for the next batch.

    Raises:
        ValueError: If one of the others is not positive, the KL is not finite, or the
            batch is so large that beta could become negative.
    """
    check_positive(beta=beta, target=target, completions=completions, horizon=horizon)
    if not math.isfinite(kl):
        raise ValueError(f"kl is {kl}: no coefficient answers that")
    if completions >= 5 * horizon:
        raise ValueError(
            f"completions is {completions}, five horizons of {horizon} or more"
        )
    # --8<-- [start:controller]
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * completions / horizon)
    # --8<-- [end:controller]
