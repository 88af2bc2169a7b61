"""The policy that answers with the best of n samples, and its exact KL.

Source: Beirami et al., arXiv:2401.01879, which shows that log n - (n - 1) / n is a
bound and no value.
"""

import math

import torch
from torch import Tensor


def best_of_n(ref_logits: Tensor, rewards: Tensor, n: int) -> Tensor:
    """Log-probabilities in nats of the best of n samples of the reference.

    Answers of equal reward share what falls to them as in the reference, which is what
    keeping the first best sample does, or any best one at random. Answers that the
    reference never gives stay at `-inf`. One sample is the reference. Digits hold for
    rare answers too; made for values, not for gradients. Compares every two answers.

    Args:
        ref_logits: Logits of the reference over whole answers, `(*batch, actions)`.
        rewards: Reward of each answer, likewise.
        n: How many samples are drawn.

    Returns:
        Normalised log-probabilities, `(*batch, actions)`.

    Raises:
        ValueError: If n is not positive, or a reward is nan.
    """
    if n < 1:
        raise ValueError(f"n is {n}, not positive")
    if rewards.isnan().any():
        raise ValueError("rewards has a nan")
    ref = ref_logits.log_softmax(-1)
    if n == 1:
        return ref
    here, there = rewards[..., :, None], rewards[..., None, :]
    log_tied = _log_mass(ref, there == here)  # (*batch, actions)
    log_up_to = _log_mass(ref, there <= here)
    # Of samples that are no better, the share of one that is as good; and the chance
    # that at least one of n is.
    log_share = log_tied - log_up_to
    reached = (-torch.expm1(n * torch.log1p(-log_share.exp()))).log()
    # Everything is up to the best: dividing by that keeps n from raising its rounding.
    below = (n - 1) * (log_up_to - log_up_to.amax(-1, keepdim=True))
    chosen = ref + below + reached - log_share
    return chosen.masked_fill(ref.isneginf(), -torch.inf)


def _log_mass(ref: Tensor, counts: Tensor) -> Tensor:
    """Log-probability of a set of answers for each answer, `(*batch, actions)`."""
    masses = ref[..., None, :].expand(counts.shape)
    return masses.masked_fill(~counts, -torch.inf).logsumexp(-1)


def best_divergence(ref_logits: Tensor, rewards: Tensor, n: int) -> Tensor:
    """KL(best of n || ref) in nats, per row, exact over the answers.

    Args:
        ref_logits: Logits of the reference over whole answers, `(*batch, actions)`.
        rewards: Reward of each answer, likewise.
        n: How many samples are drawn.

    Returns:
        One divergence per row, `(*batch)`. It grows with n up to minus the
        log-probability of the best answers, and is exactly 0 where all are equal.

    Raises:
        ValueError: If n is not positive, or a reward is nan.
    """
    chosen, ref = best_of_n(ref_logits, rewards, n), ref_logits.log_softmax(-1)
    log_ratio = (chosen - ref).masked_fill(chosen.isneginf(), 0.0)
    return (chosen.exp() * log_ratio).sum(-1)


def divergence_bound(n: int) -> float:
    """The most that KL(best of n || ref) can be, in nats: log n - (n - 1) / n.

    Reached in the limit where no answer has a probability of its own and no two
    rewards are equal.

    Args:
        n: How many samples are drawn.

    Raises:
        ValueError: If n is not positive.
    """
    if n < 1:
        raise ValueError(f"n is {n}, not positive")
    return math.log(n) - (n - 1) / n
