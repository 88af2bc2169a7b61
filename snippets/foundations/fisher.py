"""The Fisher information: the curvature of the KL, in both directions.

Source: Amari, Natural Gradient Works Efficiently in Learning, 1998 (unverified here:
the tests compare it with the Hessians that autograd gives).
"""

import torch
from torch import Tensor

from snippets.exact.bernoulli import kl_bernoulli
from snippets.foundations.contract import (
    check_floating,
    check_tensors,
    nan_outside,
    widen,
)


def fisher_of_logits(logits: Tensor) -> Tensor:
    """The Hessian of KL(P || Q) in nats with respect to the logits, at Q = P.

    It is the covariance of the choice, `diag(p) - p p'`, without its cancellation for
    a policy that is nearly sure. Moving all logits alike is its null direction. Half
    precision is computed in float32 and rounded once.

    Args:
        logits: Logits of P, `(*batch, actions)`, normalised or not.

    Returns:
        One matrix per row, `(*batch, actions, actions)`.

    Raises:
        ValueError: If logits have no axis, or are integers.
    """
    check_tensors(1, logits=logits)
    dtype, (logits,) = widen(logits)
    # --8<-- [start:core]
    p = logits.softmax(-1)
    outer = p[..., :, None] * p[..., None, :]
    beside = outer - outer.diagonal(dim1=-2, dim2=-1).diag_embed()  # p_i p_j, i not j
    fisher = beside.sum(-1).diag_embed() - beside  # p_i - p_i^2 = sum of p_i p_j
    # --8<-- [end:core]
    return fisher.to(dtype)


def quadratic_kl(logits: Tensor, step: Tensor) -> Tensor:
    """About KL(P || Q), and about KL(Q || P), in nats, for a small step of the logits.

    Half the variance of the step under P, which both directions leave at third order.
    The step of an action that P never takes is not read. Half precision is computed in
    float32 and rounded once.

    Args:
        logits: Logits of P, `(*batch, actions)`, normalised or not.
        step: What Q adds to them, `(*batch, actions)`.

    Returns:
        One number per row, `(*batch)`, never negative.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(1, logits=logits, step=step)
    dtype, (logits, step) = widen(logits, step)
    p = logits.softmax(-1)
    return ((p * _centred(p, step).square()).sum(-1) / 2).to(dtype)


def fisher_vector_product(logits: Tensor, vector: Tensor) -> Tensor:
    """F v in nats, without the matrix F: what conjugate gradients ask for.

    What the vector says of an action that P never takes is not read. Half precision is
    computed in float32 and rounded once.

    Args:
        logits: Logits of P, `(*batch, actions)`, normalised or not.
        vector: A direction of the logits, `(*batch, actions)`.

    Returns:
        The product, `(*batch, actions)`. It sums to 0.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(1, logits=logits, vector=vector)
    dtype, (logits, vector) = widen(logits, vector)
    p = logits.softmax(-1)
    return (p * _centred(p, vector)).to(dtype)


def probability_within(p: Tensor, kl: float) -> Tensor:
    """The most probability that an action can get within KL(old || new), in nats.

    Exact for two actions, and the bound for more: merging the others never raises a
    KL. The least is one minus that of `1 - p`. Found by halving an interval of the
    log-odds, so it is a constant: no gradient flows. A probability that is not between
    0 and 1, both excluded, gives `nan`. Half precision is computed in float32 and
    rounded once.

    Args:
        p: Probability under the old policy, `(*batch)`.
        kl: The largest KL(old || new), in nats, at least 0.

    Returns:
        Probability under the new policy, `(*batch)`.

    Raises:
        ValueError: If the KL is negative or nan, or `p` is an integer tensor.
    """
    check_floating(p=p)
    if not kl >= 0:
        raise ValueError(f"kl is {kl}, and must not be negative")
    dtype, (old,) = widen(p.detach())
    log_odds = old.log() - (-old).log1p()
    low = torch.zeros_like(old)
    high = (kl - old.log()) / (1 - old)  # further away the KL is larger for sure
    for _ in range(70):  # halvings: the bits of a float64, and a range of 1e5
        middle = (low + high) / 2
        inside = kl_bernoulli(log_odds, log_odds + middle) <= kl
        low, high = middle.where(inside, low), high.where(inside, middle)
    return nan_outside((log_odds + low).sigmoid(), old > 0, old < 1).to(dtype)


def _centred(p: Tensor, values: Tensor) -> Tensor:
    """The values less their mean under P, and 0 where P never goes."""
    taken = p > 0
    values = values.where(taken, 0.0)
    return (values - (p * values).sum(-1, keepdim=True)).where(taken, 0.0)
