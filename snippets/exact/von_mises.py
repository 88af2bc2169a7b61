"""The KL between von Mises policies over an angle, exact.

Source: E_P[log p - log q] with E_P[cos(x - mean)] = I1/I0; the tests derive it by
quadrature with thirty digits. Hankel's series of the Bessel functions: DLMF 10.40.1.
"""

import math

import torch
from torch import Tensor
from torch.special import i0, i1

from snippets.exact.bregman import near_gap
from snippets.foundations.contract import check_tensors, nan_outside, widen

# Of 1, 1 / kappa, ... in kappa^2 times the variance of the cosine: Hankel's series.
VARIANCE = [0.5, 0.25, 0.375, 0.78125, 2.03125, 6.287109375, 22.53125]
VARIANCE += [91.731689453125, 418.306640625, 2112.7614974975586]


def kl_von_mises(
    mean_p: Tensor, concentration_p: Tensor, mean_q: Tensor, concentration_q: Tensor
) -> Tensor:
    """KL(P || Q) in nats of angles, finite for every concentration.

    Never negative, and exactly 0 for equal arguments. A full turn of a mean changes
    nothing. A concentration of 0 is the uniform distribution; a row with a negative
    or infinite one is `nan`. Computed in float64, which torch's Bessel functions need
    for eight digits, and rounded once.

    Args:
        mean_p: Mean angles of P in radians, `(*batch)`.
        concentration_p: Concentrations of P, `(*batch)`.
        mean_q: Mean angles of Q in radians, `(*batch)`.
        concentration_q: Concentrations of Q, `(*batch)`.

    Returns:
        One KL per angle, `(*batch)`. Gradients flow to all arguments.

    Raises:
        ValueError: If the shapes differ, or an argument is an integer tensor.
    """
    rows = {"mean_p": mean_p, "concentration_p": concentration_p}
    rows |= {"mean_q": mean_q, "concentration_q": concentration_q}
    check_tensors(0, **rows)
    dtype, wide = widen(*rows.values())
    m, k, n, c = (x.double() for x in wide)
    # --8<-- [start:core]
    (log_p, spread), (log_q, _) = _bessel(k), _bessel(c)
    far = log_q - log_p + (c - k) * spread
    near = (c - k).abs() < 0.1 * (1 + k)  # there the logarithms nearly cancel
    width = torch.where(near, near_gap(torch.where(near, c, k), k, _variance), far)
    away = 2 * ((m - n) / 2).sin().square()  # 1 - cos(m - n)
    kl = width + (1 - spread) * c * away  # (*batch)
    # --8<-- [end:core]
    valid = (k >= 0) & (c >= 0) & k.isfinite() & c.isfinite()
    return nan_outside(kl, valid).to(dtype)


def _bessel(kappa: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of I0(kappa) less kappa, and 1 - I1(kappa) / I0(kappa).

    Above 30 by Hankel's series: I0 and I1 agree there in more digits the larger they
    are, and the series is of their difference.
    """
    large = kappa > 30
    low, high = kappa.masked_fill(large, 30.0), torch.where(large, kappa, 30.0)
    zero = one = total = torch.ones_like(high)
    difference = torch.zeros_like(high)
    for k in range(1, 17):
        odd = (2 * k - 1) ** 2
        zero, one = (odd * zero / (8 * k * high), (odd - 4) * one / (8 * k * high))
        total, difference = total + zero, difference + (zero - one)
    logarithm = total.log() - (2 * math.pi * high).log() / 2
    return (
        torch.where(large, logarithm, i0(low).log() - low),
        torch.where(large, difference / total, 1 - i1(low) / i0(low)),
    )


def _variance(kappa: Tensor) -> Tensor:
    """The variance of the cosine, which is the curvature of log I0."""
    large = kappa > 50
    low = kappa.masked_fill(large | (kappa == 0), 1e-8)  # the variance is 1 / 2 there
    ratio = i1(low) / i0(low)
    inverse = 1 / torch.where(large, kappa, 50.0)
    series = torch.zeros_like(kappa)
    for coefficient in reversed(VARIANCE):
        series = coefficient + inverse * series
    close = 1 - ratio / low - ratio.square()
    return torch.where(large, inverse.square() * series, close)
