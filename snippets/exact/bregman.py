"""What the KLs of the exponential families are made of, without lost digits.

Source: the KL is the gap between a log-normaliser and its tangent: Banerjee et al.,
Clustering with Bregman Divergences, JMLR 6, 2005 (unverified here: the tests compare
with thirty digits). Stirling's series for lgamma: DLMF 5.11.1.
"""

import torch
from torch import Tensor

# Of y^-1, y^-3, ... in Stirling's series: the Bernoulli numbers over 2k (2k - 1).
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)


def log_ratio(x: Tensor, y: Tensor) -> Tensor:
    """Logarithm of x / y in nats, with all its digits where they are close.

    Args:
        x: Positive numbers, `(*batch)`.
        y: Likewise.

    Returns:
        One logarithm per element, `(*batch)`, finite where the ratio is not.
    """
    return _logarithm((x - y) / y, x, y)


def ratio_gap(x: Tensor, y: Tensor) -> Tensor:
    """How far log(x) lies below its tangent at y, in nats: x / y - 1 - log(x / y).

    Args:
        x: Positive numbers, `(*batch)`.
        y: Positive numbers, `(*batch)`.

    Returns:
        One gap per element, `(*batch)`, never negative, and 0 where x equals y.
    """
    change = (x - y) / y
    near = change.abs() < 0.1
    close = change.where(near, 0.0)
    # log1p(c) = 2 (s + s^3 / 3 + s^5 / 5 + ...), with s = c / (2 + c): c - 2 s = c s.
    s = close / (2 + close)
    series = torch.zeros_like(s)
    for k in (17, 15, 13, 11, 9, 7, 5, 3):
        series = 1 / k + s.square() * series
    gap = s * (close - 2 * s.square() * series)
    return torch.where(near, gap, change - log_ratio(x, y))


def exp_gap(x: Tensor) -> Tensor:
    """How far exp(x) lies above its tangent at 0: exp(x) - 1 - x.

    Never negative, and right to the last digits where x is small: `exp(x) - 1 - x` is
    not below 1e-2, and `expm1(x) - x` is not below 1e-4, in float32.

    Args:
        x: Any numbers, `(*batch)`. At `-inf` the gap is `inf`.

    Returns:
        One gap per element, `(*batch)`. Its derivative is `expm1(x)`.
    """
    near = x.abs() < 0.1
    close = x.where(near, 0.0)
    series = torch.ones_like(close)
    for k in range(10, 2, -1):  # leaves out x^9 / 2e7 of the sum
        series = 1 + close / k * series
    return torch.where(near, close.square() / 2 * series, x.expm1() - x)


def gamma_gap(x: Tensor, y: Tensor) -> Tensor:
    """How far lgamma(x) - x log(x) + x lies above its tangent at y, in nats.

    It is the KL of a Gamma of shape y to one of shape x with the same mean. Numbers
    below 8 are moved up by 8, since lgamma(x) = lgamma(x + 1) - log(x).

    Args:
        x: Positive numbers in float64, `(*batch)`.
        y: Likewise.

    Returns:
        One gap per element, `(*batch)`, and 0 where x equals y.
    """
    small = (x < 8) | (y < 8)
    high_x, high_y = torch.where(small, x + 8, x), torch.where(small, y + 8, y)
    change = (x - y) / high_y  # not from high_x - high_y, which was rounded
    logarithm = _logarithm(change, high_x, high_y)
    moved = high_x * logarithm - x * log_ratio(x, y) + _rising_gap(x, y)
    gap = (change - logarithm) / 2 + _stirling_gap(change, high_x, high_y)
    return gap + torch.where(small, moved, 0.0)


def _logarithm(change: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """log(x / y), where change is x / y - 1."""
    near = (change > -0.5) & (change < 1)
    close = torch.where(near, change, 0.0).log1p()  # no infinite slope at -1
    return torch.where(near, close, x.log() - y.log())


def _rising_gap(x: Tensor, y: Tensor) -> Tensor:
    """The sum of the eight ratio gaps of x + k and y + k, with one logarithm."""
    square_x, square_y = x * (x + 7), y * (y + 7)
    difference = (x - y) * (x + y + 7)  # of the squares, with all its digits
    slope = growth = torch.zeros_like(x)
    product_x = product_y = torch.ones_like(x)
    for pair in (0, 6, 10, 12):  # (x + k) (x + 7 - k) for k of 0, 1, 2, 3
        inverse = 1 / (square_y + pair)
        change = difference * inverse
        slope = slope + inverse
        growth = growth + change + growth * change  # 1 + growth is times 1 + change
        product_x = product_x * (square_x + pair)
        product_y = product_y * (square_y + pair)
    slope = slope * (2 * y + 7) * (x - y)
    return slope - _logarithm(growth, product_x, product_y)


def _stirling_gap(change: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gap of the terms that vanish for large x and y, at least 8 both."""
    inverse_x, power = 1 / x, 1 / y
    square = power * power
    difference = -change * inverse_x  # of x^-n and y^-n, with all its digits
    of_squares = difference * (inverse_x + power)
    total = torch.zeros_like(change)
    for k, coefficient in enumerate(STIRLING):
        tangent = (2 * k + 1) * change * power
        total = total + coefficient * (difference + tangent)
        difference = difference * inverse_x * inverse_x + power * of_squares
        power = power * square
    return total
