"""RLOO: several answers to a prompt, each with the others as its baseline.

Source: Ahmadian et al., arXiv:2402.14740; the estimator is that of Kool et al., Buy 4
REINFORCE Samples, Get a Baseline for Free, 2019. An answer is one action here, and the
KL to the reference is part of its reward.
"""

from torch import Tensor

from snippets.estimate.placement import penalised_reward
from snippets.estimate.sequences import sequence_log_prob


def penalised_scores(
    scores: Tensor,
    old_log_probs: Tensor,
    ref_log_probs: Tensor,
    mask: Tensor,
    beta: float,
) -> Tensor:
    """The score of each answer less beta times its summed k1, without gradient.

    Averaged over answers of old it is E[score] - beta KL(old || ref), with the KL of
    whole answers in nats.

    Args:
        scores: One score per answer, `(*batch)`.
        old_log_probs: Log-probability of each token under the policy that sampled,
            `(*batch, time)`.
        ref_log_probs: The same under the reference, likewise.
        mask: True where a token was sampled, likewise.
        beta: The score that a nat is worth.

    Returns:
        One number per answer, `(*batch)`.

    Raises:
        ValueError: If the mask is not boolean, or has another shape.
    """
    old = sequence_log_prob(old_log_probs, mask)
    ref = sequence_log_prob(ref_log_probs, mask)
    return penalised_reward(scores, old, ref, beta)


def leave_one_out(rewards: Tensor) -> Tensor:
    """How much better each answer is than the mean of the others to its prompt.

    Args:
        rewards: Of the answers to one prompt, `(*batch, samples)`.

    Returns:
        One advantage per answer, `(*batch, samples)`. They sum to zero.

    Raises:
        ValueError: If there is one answer only.
    """
    samples = rewards.shape[-1]
    if samples < 2:
        raise ValueError("rewards has one answer per prompt: no others to compare with")
    others = (rewards.sum(-1, keepdim=True) - rewards) / (samples - 1)
    return rewards - others


def rloo_loss(new_log_probs: Tensor, mask: Tensor, rewards: Tensor) -> Tensor:
    """Minus the advantage times the log-probability of each answer, to be minimised.

    Its gradient, averaged over answers of the policy itself, is minus that of the mean
    reward. The advantage is a constant, whatever the rewards were computed from.

    Args:
        new_log_probs: Log-probability of each token under the policy that trains, which
            also sampled, `(*batch, samples, time)`.
        mask: True where a token was sampled, likewise.
        rewards: Penalised scores, `(*batch, samples)`.

    Returns:
        One loss per answer, `(*batch, samples)`.

    Raises:
        ValueError: If there is one answer only, or the mask is not boolean or has
            another shape.
    """
    advantages = leave_one_out(rewards).detach()
    return -advantages * sequence_log_prob(new_log_probs, mask)
