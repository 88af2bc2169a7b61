"""The KL of the remaining one-parameter and scale families, exact.

Source: each is E_P[log p - log q] with the family's own moments; the tests derive
every one by quadrature or summation with thirty digits. Each is written as a sum of
gaps that are not negative, in float64, and rounded once.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from snippets.exact.bregman import entropy_gap, exp_gap, gamma_gap, ratio_gap
from snippets.foundations.contract import check_tensors, nan_outside, widen


def kl_exponential(rate_p: Tensor, rate_q: Tensor) -> Tensor:
    """KL(P || Q) in nats of exponential waiting times, from rates.

    Never negative, and exactly 0 for equal rates. A row with a rate that is not
    positive and finite is `nan`. Computed in float64, which holds the ratio of any two
    float32 rates, and rounded once.

    Args:
        rate_p: Rates of P, `(*batch)`.
        rate_q: Rates of Q, `(*batch)`.

    Returns:
        One KL per row, `(*batch)`. Gradients flow to both arguments.

    Raises:
        ValueError: If the shapes differ, or an argument is an integer tensor.
    """
    check_tensors(rate_p=rate_p, rate_q=rate_q)
    dtype, (p, q) = _double(rate_p, rate_q)
    return nan_outside(ratio_gap(q, p), _positive(p, q)).to(dtype)


def kl_gamma(
    shape_p: Tensor, rate_p: Tensor, shape_q: Tensor, rate_q: Tensor
) -> Tensor:
    """KL(P || Q) in nats of Gamma distributions, from shapes and rates.

    One part is for the shape while the mean stays, one for the mean. Neither is
    negative, and both are exactly 0 for equal arguments. A row with a parameter that is
    not positive and finite is `nan`. Computed in float64, because lgamma loses the
    digits of float32 there, and rounded once.

    Args:
        shape_p: Shapes of P, `(*batch)`.
        rate_p: Rates of P, `(*batch)`.
        shape_q: Shapes of Q, `(*batch)`.
        rate_q: Rates of Q, `(*batch)`.

    Returns:
        One KL per row, `(*batch)`. Gradients flow to all arguments.

    Raises:
        ValueError: If the shapes differ, or an argument is an integer tensor.
    """
    check_tensors(shape_p=shape_p, rate_p=rate_p, shape_q=shape_q, rate_q=rate_q)
    dtype, rows = _double(shape_p, rate_p, shape_q, rate_q)
    a, u, c, v = rows
    # --8<-- [start:core]
    # Of the shapes while the mean stays, and of the means.
    kl = gamma_gap(c, a) + entropy_gap(c, a * (v / u))
    # --8<-- [end:core]
    return nan_outside(kl, _positive(*rows)).to(dtype)


def kl_laplace(
    mean_p: Tensor, scale_p: Tensor, mean_q: Tensor, scale_q: Tensor
) -> Tensor:
    """KL(P || Q) in nats of Laplace distributions.

    Never negative, and exactly 0 for equal arguments, where its curvature is the
    Fisher information. A row with a scale that is not positive and finite is `nan`.
    Computed in float64, which holds the ratio of any two float32 scales, and rounded
    once.

    Args:
        mean_p: Locations of P, `(*batch)`.
        scale_p: Scales of P, `(*batch)`.
        mean_q: Locations of Q, `(*batch)`.
        scale_q: Scales of Q, `(*batch)`.

    Returns:
        One KL per row, `(*batch)`. Gradients flow to all arguments.

    Raises:
        ValueError: If the shapes differ, or an argument is an integer tensor.
    """
    check_tensors(mean_p=mean_p, scale_p=scale_p, mean_q=mean_q, scale_q=scale_q)
    dtype, (m, b, n, c) = _double(mean_p, scale_p, mean_q, scale_q)
    # abs() has no slope at 0, and would make the curvature there 0 as well.
    distance = torch.where(m < n, n - m, m - n) / b
    kl = ratio_gap(b, c) + exp_gap(-distance) * (b / c)
    return nan_outside(kl, _positive(b, c)).to(dtype)


def kl_poisson(rate_p: Tensor, rate_q: Tensor) -> Tensor:
    """KL(P || Q) in nats of Poisson counts, from rates.

    Never negative, and exactly 0 for equal rates. With a rate of 0 the count is always
    0: as P it makes the KL the rate of Q, as Q it makes it `inf` unless P is 0 too.
    There the slope of P is infinite, and its gradient is 0 instead. A row with a rate
    that is negative or not finite is `nan`. Computed in float64, which holds the ratio
    of any two float32 rates, and rounded once.

    Args:
        rate_p: Mean counts of P, `(*batch)`.
        rate_q: Mean counts of Q, `(*batch)`.

    Returns:
        One KL per row, `(*batch)`. Gradients flow to both arguments.

    Raises:
        ValueError: If the shapes differ, or an argument is an integer tensor.
    """
    check_tensors(rate_p=rate_p, rate_q=rate_q)
    dtype, (p, q) = _double(rate_p, rate_q)
    # Replaced before the logarithm: 0 * inf is nan in the backward pass too.
    both = entropy_gap(*(x.masked_fill(x == 0, 1.0) for x in (p, q)))
    kl = torch.where(p == 0, q, both.masked_fill(q == 0, torch.inf))
    valid = (p >= 0) & (q >= 0) & p.isfinite() & q.isfinite()
    return nan_outside(kl, valid).to(dtype)


def kl_geometric(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL(P || Q) in nats of the number of failures before a success, from log-odds.

    It is the KL of one trial times the expected number of trials of P: never negative,
    and exactly 0 for equal logits. A row with a logit that is not finite is `nan`.
    Computed in float64, because the two outcomes nearly cancel, and rounded once.

    Args:
        logits_p: Log-odds of success in P, `(*batch)`.
        logits_q: Log-odds of success in Q, `(*batch)`.

    Returns:
        One KL per row, `(*batch)`. Gradients flow to both arguments.

    Raises:
        ValueError: If the shapes differ, or logits are integers.
    """
    check_tensors(logits_p=logits_p, logits_q=logits_q)
    dtype, (p, q) = _double(logits_p, logits_q)
    valid = p.isfinite() & q.isfinite()
    step = q - p
    # Where both are tiny only the step counts: move both to where exp() can hold them.
    lift = (-40 - torch.maximum(p, q)).relu().detach()
    p, q = p + lift, q + lift
    near = step.abs() < 1
    small = step.where(near, 0.0)
    # Log-ratios q / p of a success and of a failure, each with its digits.
    success = -((-p).sigmoid() * (-small).expm1()).log1p()
    failure = -(p.sigmoid() * small.expm1()).log1p()
    close = exp_gap(success) + (-p).exp() * exp_gap(failure)
    success, failure = logsigmoid(p) - logsigmoid(q), logsigmoid(-p) - logsigmoid(-q)
    far = success + (-p).exp() * failure
    return nan_outside(torch.where(near, close, far), valid).to(dtype)


def _double(*tensors: Tensor) -> tuple[torch.dtype, list[Tensor]]:
    """The dtype that the result should have, and the tensors in float64."""
    dtype, wide = widen(*tensors)
    return dtype, [x.double() for x in wide]


def _positive(*tensors: Tensor) -> Tensor:
    """Where every one of them is positive and finite, `(*batch)`."""
    return torch.stack([(x > 0) & x.isfinite() for x in tensors]).all(0)
