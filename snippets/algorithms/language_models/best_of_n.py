"""The policy that responds with the best of n samples, in closed form.

Source: Beirami et al., arXiv:2401.01879, which shows that log n - (n - 1) / n is a
bound on its KL and no value.
"""

import math

import torch
from torch import Tensor

from snippets.foundations.contract import check_tensors, nan_outside, widen


def best_of_n(*, ref_logits: Tensor, rewards: Tensor, n: int) -> Tensor:
    """Log-probabilities in nats of the best of n samples of the reference.

    Completions of equal reward share what falls to them as in the reference, which is
    what keeping the first best sample does, or any best one at random. What the
    reference never gives stays at `-inf`. One sample is the reference. Digits hold for
    rare completions too. A row with a reward that is `nan` is `nan`. Compares every
    two completions. Half precision is computed in float32 and rounded once.

    Args:
        ref_logits: Logits of the reference over whole completions, `(*batch, actions)`.
        rewards: Reward of each completion, `(*batch, actions)`.
        n: How many samples are drawn, at least 1.

    Returns:
        Normalised log-probabilities, `(*batch, actions)`.

    Raises:
        ValueError: If n is below 1, the shapes differ, or one is an integer tensor.
    """
    _check_samples(n)
    check_tensors(1, ref_logits=ref_logits, rewards=rewards)
    dtype, (ref_logits, rewards) = widen(ref_logits, rewards)
    ref, absent = ref_logits.log_softmax(-1), ref_logits.isneginf()
    here, there = rewards.unsqueeze(-1), rewards.unsqueeze(-2)
    # Where ref never goes all counts as tied: no logarithm of an empty sum.
    log_tied = _log_mass(ref, (there == here) | absent.unsqueeze(-1))
    log_up_to = _log_mass(ref, (there <= here) | absent.unsqueeze(-1))
    share = (log_tied - log_up_to).exp()  # of samples that are no better
    all_tied, rare = share >= 1, share < torch.finfo(share.dtype).tiny
    share = share.masked_fill(all_tied | rare, 0.5)
    # The chance that one of n is as good, over the share.
    log_ratio = (-(n * (-share).log1p()).expm1() / share).log()
    log_ratio = log_ratio.masked_fill(all_tied, 0.0).masked_fill(rare, math.log(n))
    # Everything is up to the best: dividing by that keeps n from raising its rounding.
    below = (n - 1) * (log_up_to - log_up_to.amax(-1, keepdim=True))
    chosen = (ref + below + log_ratio).masked_fill(absent, -torch.inf)
    known = ~rewards.isnan().any(-1, keepdim=True)
    return nan_outside(chosen, known).to(dtype)


def best_of_n_kl_bound(n: int) -> float:
    """The most that KL(best of n || ref) can be, in nats: log n - (n - 1) / n.

    Reached in the limit where no completion has a probability of its own and no two
    rewards are equal.

    Args:
        n: How many samples are drawn, at least 1.

    Returns:
        A number, at least 0.

    Raises:
        ValueError: If n is below 1.
    """
    _check_samples(n)
    return math.log(n) - (n - 1) / n


def _check_samples(n: int) -> None:
    """Refuse fewer samples than one."""
    if not n >= 1:
        raise ValueError(f"n is {n}, and must be at least 1")


def _log_mass(ref: Tensor, counted: Tensor) -> Tensor:
    """Log-probability of a set of completions for each of them, `(*batch, actions)`."""
    masses = ref.unsqueeze(-2).expand(counted.shape)
    return masses.masked_fill(~counted, -torch.inf).logsumexp(-1)
