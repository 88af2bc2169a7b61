"""The KL divergence from probabilities, with its zeros handled exactly.

Source: Cover and Thomas, Elements of Information Theory, 2nd ed., eq. 2.26, with the
conventions 0 log(0/q) = 0 and p log(p/0) = inf that stand below it.
"""

import math

import torch
from torch import Tensor

from snippets.exact.bregman import ratio_gap
from snippets.foundations.contract import (
    check_floating,
    check_tensors,
    nan_outside,
    widen,
)


def kl_of_probabilities(p: Tensor, q: Tensor) -> Tensor:
    """KL(P || Q) in nats, from probabilities: never negative, exactly 0 for equal rows.

    What P never does adds nothing but the probability that Q wastes on it. Where Q is 0
    and P is not, the KL is `inf`. A row that is no distribution, in P or in Q, is
    `nan`: one with a negative entry, or a sum further from 1 than 0.01, which is what a
    softmax in bfloat16 may be off. Half precision is computed in float32 and rounded
    once.

    Args:
        p: Probabilities of P, `(*batch, actions)`.
        q: Probabilities of Q, `(*batch, actions)`.

    Returns:
        One KL per row, `(*batch)`. Gradients flow to both, and are those of the sum of
        `p log(p/q) - p + q`: the same along every direction that keeps the sums at 1.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(1, p=p, q=q)
    dtype, (p, q) = widen(p, q)
    # --8<-- [start:core]
    tiny = torch.finfo(p.dtype).tiny
    taken = p >= tiny  # filled before the logarithm: after it, 0 / 0 has no gradient
    gap = ratio_gap(q.where(taken, 1.0), p.where(taken, 1.0))  # r - 1 - log r, r = q/p
    never = q.where(~taken & (q >= tiny), 0.0)
    kl = (p.where(taken, 0.0) * gap + never).sum(-1)  # (*batch)
    # --8<-- [end:core]
    return nan_outside(kl, _is_distribution(p), _is_distribution(q)).to(dtype)


def nats_to_bits(nats: Tensor) -> Tensor:
    """A KL in bits, from one in nats: divided by log 2.

    Args:
        nats: KLs in nats, `(*batch)`.

    Returns:
        The same KLs in bits, `(*batch)`.

    Raises:
        ValueError: If it is an integer tensor.
    """
    check_floating(nats=nats)
    return nats / math.log(2)


def _is_distribution(rows: Tensor) -> Tensor:
    """Whether a row could be a softmax, in any precision, `(*batch)`."""
    return (rows >= 0).all(-1) & ((rows.sum(-1) - 1).abs() < 0.01)
