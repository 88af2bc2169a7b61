"""RLOO: several completions of a prompt, each with the others as its baseline.

Source: Ahmadian et al., arXiv:2402.14740; the estimator is that of Kool et al., Buy 4
REINFORCE Samples, Get a Baseline for Free, 2019. A completion is one action here, and
the KL to the reference is part of its reward.
"""

import torch
from torch import Tensor

from snippets.algorithms.language_models.grpo import centred_advantages
from snippets.estimate.placement import penalised_reward
from snippets.estimate.sequences import sequence_log_prob
from snippets.foundations.contract import (
    check_mask,
    check_rows,
    check_tensors,
    widen,
)


def penalised_scores(
    *,
    scores: Tensor,
    old_log_probs: Tensor,
    ref_log_probs: Tensor,
    mask: Tensor,
    beta: float,
) -> Tensor:
    """The score of each completion less beta times its summed k1, without gradient.

    Averaged over completions of old it is E[score] - beta KL(old || ref), with the KL
    of whole completions in nats. What stands under the mask is not read; a completion
    without tokens keeps its score. A token that old or ref gives probability 0 makes
    the result infinite, unless beta is 0. Half precision is computed in float32 and
    rounded once.

    Args:
        scores: One score per completion, `(*batch)`.
        old_log_probs: Log-probability of each token under the policy that sampled,
            `(*batch, time)`.
        ref_log_probs: Log-probability of each token under the reference,
            `(*batch, time)`.
        mask: True where a token was sampled, `(*batch, time)`.
        beta: The KL coefficient, at least 0: how much score a nat is worth.

    Returns:
        One number per completion, `(*batch)`.

    Raises:
        ValueError: If beta is negative, the mask is not boolean, or a tensor is an
            integer one or has another shape.
    """
    check_mask(mask, old_log_probs=old_log_probs, ref_log_probs=ref_log_probs)
    check_rows(mask, scores=scores)
    dtype, (scores, old, ref) = widen(scores, old_log_probs, ref_log_probs)
    rewards = penalised_reward(
        rewards=scores.detach(),
        old_log_probs=sequence_log_prob(old, mask),
        ref_log_probs=sequence_log_prob(ref, mask),
        beta=beta,
    )
    return rewards.to(dtype)


def leave_one_out(rewards: Tensor, mask: Tensor | None = None) -> Tensor:
    """How much better each completion is than the mean of the others to its prompt.

    That is k / (k - 1) times the distance from the mean of all k: equal rewards give
    exactly 0. A completion under the mask counts for nothing and gets 0, and so does
    one without others. A reward that is not finite makes its group `nan`. Half
    precision is computed in float32 and rounded once.

    Args:
        rewards: Of the completions of each prompt, `(*batch, samples)`, with an axis
            of prompts: a flat list of rewards is refused.
        mask: True where a completion is valid, `(*batch, samples)`; all, without it.

    Returns:
        One advantage per completion, `(*batch, samples)`. They sum to zero.

    Raises:
        ValueError: If there is no axis of prompts, or one completion per prompt only,
            rewards are integers, or the mask is not boolean or has another shape.
    """
    check_tensors(2, rewards=rewards)
    dtype, (rewards,) = widen(rewards)
    valid = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    # --8<-- [start:loo]
    k = valid.sum(-1, keepdim=True)  # completions of each prompt
    centred = centred_advantages(rewards, valid)  # less the mean of all k
    advantages = centred * k / (k - 1).where(k > 1, 1)  # less the mean of the others
    # --8<-- [end:loo]
    return advantages.to(dtype)


def rloo_loss(*, new_log_probs: Tensor, rewards: Tensor, mask: Tensor) -> Tensor:
    """Minus the advantage times the log-probability of a completion, to be minimised.

    Its gradient, averaged over completions of the policy itself, is minus that of the
    mean reward. The advantage is a constant, whatever the rewards were computed from.
    What stands under the mask is not read. Half precision is computed in float32 and
    rounded once.

    Args:
        new_log_probs: Log-probability of each token under the policy that trains, which
            also sampled, `(*batch, samples, time)`.
        rewards: Penalised scores, `(*batch, samples)`.
        mask: True where a token was sampled, `(*batch, samples, time)`.

    Returns:
        One loss per completion, `(*batch, samples)`.

    Raises:
        ValueError: If there is no axis of prompts, or one completion per prompt only,
            the mask is not boolean, or a tensor is an integer one or has another shape.
    """
    check_mask(mask, new_log_probs=new_log_probs)
    check_rows(mask, rewards=rewards)
    dtype, (new_log_probs, rewards) = widen(new_log_probs, rewards)
    advantages = leave_one_out(rewards).detach()
    return (-advantages * sequence_log_prob(new_log_probs, mask)).to(dtype)
