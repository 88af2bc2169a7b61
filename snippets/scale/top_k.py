"""KLs from the k most likely words of P alone, as a server returns them.

Source: the chain rule of the KL (Cover and Thomas, 2nd ed., theorem 2.5.3), with "in
the head or not" as the first choice. The head keeps its log-probabilities of the whole
vocabulary: a KL of the renormalised head is `kl_divergence_logits` of the two.
"""

import torch
from torch import Tensor

from snippets.estimate.estimators import k3
from snippets.exact.bregman import exp_gap
from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import check_mask, check_tensors, widen


def raw_head_kl(log_head_p: Tensor, log_head_q: Tensor) -> Tensor:
    """The terms of KL(P || Q) in nats that belong to the head, as they are.

    Not a KL: negative where Q gives the head more than P does, and smallest for a Q
    that is the head renormalised. Half precision is computed in float32 and rounded
    once.

    Args:
        log_head_p: Log-probabilities of the head under P, `(*batch, head)`.
        log_head_q: Log-probabilities of the same words under Q, `(*batch, head)`.

    Returns:
        One number per row, `(*batch)`.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(1, log_head_p=log_head_p, log_head_q=log_head_q)
    dtype, (log_p, log_q) = widen(log_head_p, log_head_q)
    p = log_p.exp()
    x = (log_p - log_q).where(p >= torch.finfo(p.dtype).tiny, 0.0)
    return (p * x).sum(-1).to(dtype)


def generalised_head_kl(log_head_p: Tensor, log_head_q: Tensor) -> Tensor:
    """The non-negative terms of KL(P || Q) in nats that belong to the head.

    Each is `p log(p / q) - p + q`: never negative, and 0 where P and Q agree, so that
    the sum is at most the KL. A word that P never takes, or that underflows in P, adds
    what Q gives it. Half precision is computed in float32 and rounded once.

    Args:
        log_head_p: Log-probabilities of the head under P, `(*batch, head)`.
        log_head_q: Log-probabilities of the same words under Q, `(*batch, head)`.

    Returns:
        One number per row, `(*batch)`.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(1, log_head_p=log_head_p, log_head_q=log_head_q)
    dtype, (log_p, log_q) = widen(log_head_p, log_head_q)
    # --8<-- [start:generalised]
    p, q, tiny = log_p.exp(), log_q.exp(), torch.finfo(log_p.dtype).tiny
    taken = p >= tiny
    x = (log_q - log_p).where(taken, 0.0)
    terms = torch.where(taken, p * exp_gap(x), q.where(q >= tiny, 0.0))
    # --8<-- [end:generalised]
    return terms.sum(-1).to(dtype)


def bucket_kl(log_head_p: Tensor, log_head_q: Tensor) -> Tensor:
    """KL(P || Q) in nats with everything outside the head as one word.

    Never negative, 0 only where the head agrees, and at most the whole KL. What a head
    leaves is known to the spacing of its numbers: a tail below 1e-7 (in float32) counts
    as that much. Half precision is computed in float32 and rounded once.

    Args:
        log_head_p: Log-probabilities of the head under P, `(*batch, head)`.
        log_head_q: Log-probabilities of the same words under Q, `(*batch, head)`.

    Returns:
        One number per row, `(*batch)`.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(1, log_head_p=log_head_p, log_head_q=log_head_q)
    dtype, heads = widen(log_head_p, log_head_q)
    # --8<-- [start:bucket]
    p, q = (torch.cat([x, _log_tail(x)], -1) for x in heads)
    kl = kl_divergence_logits(p, q)
    # --8<-- [end:bucket]
    return kl.to(dtype)


def head_and_token_kl(
    log_head_p: Tensor,
    log_head_q: Tensor,
    log_token_p: Tensor,
    log_token_q: Tensor,
    in_head: Tensor,
) -> Tensor:
    """KL(P || Q) in nats, unbiased: the head exactly, the tail by a sample of P.

    Never negative. The token was sampled from P; where it stands in the head it adds
    nothing, since the head is counted whole. Half precision is computed in float32 and
    rounded once.

    Args:
        log_head_p: Log-probabilities of the head under P, `(*batch, head)`.
        log_head_q: Log-probabilities of the same words under Q, `(*batch, head)`.
        log_token_p: Log-probability of the sampled token under P, `(*batch)`.
        log_token_q: Log-probability of the sampled token under Q, `(*batch)`.
        in_head: True where the sampled token is one of the head, `(*batch)`.

    Returns:
        One estimate per row, `(*batch)`.

    Raises:
        ValueError: If the shapes do not fit, or a tensor has the wrong type.
    """
    check_tensors(1, log_head_p=log_head_p, log_head_q=log_head_q)
    check_mask(in_head, log_token_p=log_token_p, log_token_q=log_token_q)
    if in_head.shape != log_head_p.shape[:-1]:
        shapes = f"in_head is {[*in_head.shape]}, log_head_p {[*log_head_p.shape]}"
        raise ValueError(shapes)
    dtype, (*heads, p, q) = widen(log_head_p, log_head_q, log_token_p, log_token_q)
    # --8<-- [start:token]
    tail = k3(p.masked_fill(in_head, 0.0), q.masked_fill(in_head, 0.0))
    kl = generalised_head_kl(*heads) + tail  # k3 of equal numbers is 0
    # --8<-- [end:token]
    return kl.to(dtype)


def _log_tail(log_head: Tensor) -> Tensor:
    """The logarithm of what a head leaves, `(*batch, 1)`, or of the spacing at 1."""
    total = log_head.logsumexp(-1, keepdim=True)
    spacing = torch.finfo(log_head.dtype).eps
    some = total < -spacing
    return torch.where(some, -total.where(some, -1.0).expm1(), spacing).log()
