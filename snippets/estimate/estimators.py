"""Estimates of a KL from the log-probabilities of samples of P.

Source: Schulman, Approximating KL Divergence, joschu.net/blog/kl-approx.html. There
the sampler is called q and the ratio p/q; here the sampler is P, the ratio Q/P.
"""

import torch
from torch import Tensor

from snippets.exact.bregman import exp_gap
from snippets.foundations.contract import check_tensors, widen


def k1(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(P || Q) in nats, one unbiased estimate of either sign per sample of P.

    A sample that Q cannot give is `inf`. One that P itself cannot give, as after top-k
    filtering of P alone, is `-inf`; one that neither can give is `nan`.

    Args:
        log_p: Log-probability of each sample under P, which drew it, `(*batch)`.
        log_q: Log-probability of the same sample under Q, `(*batch)`.

    Returns:
        One estimate per sample, `(*batch)`.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(log_p=log_p, log_q=log_q)
    return log_p - log_q


def k2(log_p: Tensor, log_q: Tensor) -> Tensor:
    """About KL(P || Q) in nats, one estimate per sample of P: biased, never negative.

    Its mean is the KL to second order in the log-ratio. A sample that only one of them
    can give is `inf`; one that neither can give is `nan`. Half precision is computed
    in float32 and rounded once.

    Args:
        log_p: Log-probability of each sample under P, which drew it, `(*batch)`.
        log_q: Log-probability of the same sample under Q, `(*batch)`.

    Returns:
        One estimate per sample, `(*batch)`.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(log_p=log_p, log_q=log_q)
    dtype, (log_p, log_q) = widen(log_p, log_q)
    return ((log_p - log_q).square() / 2).to(dtype)


def k3(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(P || Q) in nats, one estimate per sample of P: unbiased, never negative.

    Unbiased where P can give every sample that Q can; what Q puts elsewhere is
    missing from the mean. Overflows to `inf` where Q is more than `exp(88)` times as
    likely as P (in float32), and is `inf` for a sample that Q cannot give. One that P
    itself cannot give is `nan`. Half precision is computed in float32 and rounded once.

    Args:
        log_p: Log-probability of each sample under P, which drew it, `(*batch)`.
        log_q: Log-probability of the same sample under Q, `(*batch)`.

    Returns:
        One estimate per sample, `(*batch)`.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(log_p=log_p, log_q=log_q)
    dtype, (log_p, log_q) = widen(log_p, log_q)
    # --8<-- [start:k3]
    log_u = log_q - log_p  # u = Q / P
    return exp_gap(log_u).to(dtype)  # u - 1 - log u
    # --8<-- [end:k3]


def other_k3(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(Q || P) in nats, one estimate per sample of P: unbiased, never negative.

    The other direction from the same batch: `Q / P` times k3 of the other direction.
    A sample that Q cannot give counts 1. One that P itself cannot give is `inf`, and
    `nan` where Q cannot either. Half precision is computed in float32 and rounded once.

    Args:
        log_p: Log-probability of each sample under P, which drew it, `(*batch)`.
        log_q: Log-probability of the same sample under Q, `(*batch)`.

    Returns:
        One estimate per sample, `(*batch)`.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(log_p=log_p, log_q=log_q)
    dtype, (log_p, log_q) = widen(log_p, log_q)
    # --8<-- [start:other]
    log_u = log_q - log_p  # u = Q / P
    near = log_u.abs() < 1
    close = log_u.where(near, 0.0)
    u = log_u.exp()
    # Where u is 0 the product would be 0 * -inf: fill before it.
    far = u * (log_u.where(u > 0, 0.0) - 1) + 1  # u log u - u + 1
    return torch.where(near, close.exp() * exp_gap(-close), far).to(dtype)
    # --8<-- [end:other]
