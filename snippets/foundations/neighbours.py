"""The divergences beside the KL, for distributions over the same actions.

Source: Liese and Vajda, On Divergences and Informations in Statistics and Information
Theory, 2006 (unverified here: the tests compare each with its defining sum).
"""

import math

import torch
from torch import Tensor

from snippets.exact.bregman import exp_gap
from snippets.foundations.contract import check_tensors, widen


def total_variation(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """Half the sum of differences of probabilities: between 0 and 1, no unit.

    The largest difference of probability that any set of actions can have. Half
    precision is computed in float32 and rounded once.

    Args:
        logits_p: Logits of P, `(*batch, actions)`, normalised or not.
        logits_q: Logits of Q, `(*batch, actions)`.

    Returns:
        One distance per row, `(*batch)`.

    Raises:
        ValueError: If the shapes differ, or logits are integers.
    """
    check_tensors(1, logits_p=logits_p, logits_q=logits_q)
    dtype, (logits_p, logits_q) = widen(logits_p, logits_q)
    gap = logits_p.softmax(-1) - logits_q.softmax(-1)  # (*batch, actions)
    return (gap.abs().sum(-1) / 2).to(dtype)


def kl_to_mixture(logits_p: Tensor, logits_q: Tensor, share: float) -> Tensor:
    """KL(P || share P + (1 - share) Q) in nats: at most -log(share), whatever Q masks.

    Never negative, and exactly 0 for equal logits. Near a share of 1 it is small, and
    keeps its digits; near 0 it is KL(P || Q). Half precision is computed in float32
    and rounded once.

    Args:
        logits_p: Logits of P, `(*batch, actions)`, normalised or not.
        logits_q: Logits of Q, `(*batch, actions)`.
        share: The share of P in the mixture, between 0 and 1, both excluded.

    Returns:
        One KL per row, `(*batch)`. Gradients flow to both.

    Raises:
        ValueError: If the share is not between 0 and 1, the shapes differ, or logits
            are integers.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}, and must be between 0 and 1")
    check_tensors(1, logits_p=logits_p, logits_q=logits_q)
    dtype, (logits_p, logits_q) = widen(logits_p, logits_q)
    p, q, x, taken = _compared(logits_p, logits_q)
    # --8<-- [start:core]
    near = x.abs() < 1  # y = log(mixture / P), by two roads
    close = ((1 - share) * x.where(near, 0.0).expm1()).log1p()
    far = torch.logaddexp(x + math.log1p(-share), torch.full_like(x, math.log(share)))
    y = torch.where(near, close, far)
    usual = -(p * y).sum(-1)  # right gradient, but its value cancels
    with torch.no_grad():  # each term is p (r - 1 - log r), r = mixture / P
        kl = torch.where(taken, p * exp_gap(y), (1 - share) * q).sum(-1)
    return (kl + (usual - usual.detach())).to(dtype)
    # --8<-- [end:core]


def jensen_shannon(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """The mean KL of P and of Q from their even mixture, in nats: at most log 2.

    Never negative, exactly 0 for equal logits, and finite whatever either masks. Half
    precision is computed in float32 and rounded once.

    Args:
        logits_p: Logits of P, `(*batch, actions)`, normalised or not.
        logits_q: Logits of Q, `(*batch, actions)`.

    Returns:
        One divergence per row, `(*batch)`.

    Raises:
        ValueError: If the shapes differ, or logits are integers.
    """
    check_tensors(1, logits_p=logits_p, logits_q=logits_q)
    dtype, (p, q) = widen(logits_p, logits_q)
    return ((kl_to_mixture(p, q, 0.5) + kl_to_mixture(q, p, 0.5)) / 2).to(dtype)


def chi_squared(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """E_Q[(P/Q - 1)^2]: the variance of the importance weight P/Q, no unit.

    Never negative, and exactly 0 for equal logits. An action that is masked in Q alone
    makes it `inf`. Half precision is computed in float32 and rounded once.

    Args:
        logits_p: Logits of P, `(*batch, actions)`, normalised or not.
        logits_q: Logits of Q, `(*batch, actions)`.

    Returns:
        One divergence per row, `(*batch)`; at least `exp(KL(P || Q)) - 1`.

    Raises:
        ValueError: If the shapes differ, or logits are integers.
    """
    check_tensors(1, logits_p=logits_p, logits_q=logits_q)
    dtype, (logits_p, logits_q) = widen(logits_p, logits_q)
    log_p, log_q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    absent = log_p.isneginf() & log_q.isneginf()
    y = (log_p - log_q).masked_fill(absent, 0.0)  # log P/Q
    above = y > 0
    # q (e^y - 1)^2, or p e^y (1 - e^-y)^2: neither overflows before the result does.
    scale = torch.where(above, log_p + y, log_q).exp()
    change = torch.where(above, -y, y).expm1()  # between -1 and 0
    return (scale * change.square()).sum(-1).to(dtype)


def renyi(logits_p: Tensor, logits_q: Tensor, order: float) -> Tensor:
    """The Rényi divergence of P from Q in nats; its limit at order 1 is the KL.

    Never negative, and exactly 0 for equal logits. An action that is masked in Q alone
    makes it `inf` for orders above 1. Half precision is computed in float32 and
    rounded once.

    Args:
        logits_p: Logits of P, `(*batch, actions)`, normalised or not.
        logits_q: Logits of Q, `(*batch, actions)`.
        order: Positive, finite, and not 1. The divergence grows with it.

    Returns:
        One divergence per row, `(*batch)`.

    Raises:
        ValueError: If the order is 1 or not positive, the shapes differ, or logits are
            integers.
    """
    if not 0 < order < math.inf or order == 1:
        raise ValueError(f"order is {order}; it must be positive and not 1")
    check_tensors(1, logits_p=logits_p, logits_q=logits_q)
    dtype, (logits_p, logits_q) = widen(logits_p, logits_q)
    log_p, log_q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    log_ratio = (log_q - log_p).masked_fill(log_p.isneginf(), 0.0)
    usual = (log_p + (1 - order) * log_ratio).logsumexp(-1)  # (*batch)
    with torch.no_grad():  # near 0 the logarithm of the sum has lost its digits
        if order < 0.5:
            excess = _power_excess(log_q, log_p, 1 - order)
        else:
            excess = _power_excess(log_p, log_q, order)
        value = torch.where(excess.abs() < 0.5, excess.log1p(), usual)
    logarithm = torch.where(usual.isinf(), usual, value + (usual - usual.detach()))
    return (logarithm / (order - 1)).to(dtype)


def _power_excess(log_p: Tensor, log_q: Tensor, order: float) -> Tensor:
    """The sum of p^order q^(1 - order), less 1, from terms of one sign."""
    p, q, x, taken = _compared(log_p, log_q)
    power = 1 - order
    near = x.abs() < 1
    close = x.where(near, 0.0)
    inner = exp_gap(power * close) - power * exp_gap(close)
    outer = (power * x).expm1() - power * x.expm1()
    terms = torch.where(taken, p * torch.where(near, inner, outer), -power * q)
    return terms.sum(-1)


def _compared(logits_p: Tensor, logits_q: Tensor) -> tuple[Tensor, ...]:
    """Probabilities of P and Q, log(Q/P) or 0 where P never goes, and where it goes.

    A probability that underflows in both counts as 0 in both.
    """
    log_p, log_q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    tiny = torch.finfo(p.dtype).tiny
    taken = p >= tiny
    return p, q.where(q >= tiny, 0.0), (log_q - log_p).where(taken, 0.0), taken
