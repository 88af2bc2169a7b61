"""What the KLs of the exponential families are made of, without lost digits.

Each is a Bregman divergence: how far a convex function lies above its tangent. A gap
is never negative, and 0 where both numbers are equal.
Source: the KL is the gap between a log-normaliser and its tangent: Banerjee et al.,
Clustering with Bregman Divergences, JMLR 6, 2005. Stirling's series for lgamma: DLMF
5.11.1; the nodes are those of Gauss and Jacobi for the weight 1 - u on [0, 1].
"""

from collections.abc import Callable

import torch
from torch import Tensor

from snippets.foundations.contract import check_floating, widen

# Of y^-1, y^-3, ... in Stirling's series: the Bernoulli numbers over 2k (2k - 1).
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
NODES = {
    0.039809857051468742: 0.096781590226651679,
    0.19801341787360817: 0.16717463809436957,
    0.43797481024738614: 0.14638698708466981,
    0.69546427335363609: 0.073908870072616675,
    0.90146491420117357: 0.015747914521692276,
}


def log_ratio(x: Tensor, y: Tensor) -> Tensor:
    """Logarithm of x / y in nats, with its digits where they are close.

    Finite where the ratio is not, and `nan` where a number is negative. The batches
    of x and y broadcast. Half precision is computed in float32 and rounded once.

    Args:
        x: Positive numbers, `(*batch)`.
        y: Positive numbers, `(*batch)`.

    Returns:
        One logarithm per element, `(*batch)`.

    Raises:
        ValueError: If one is an integer tensor.
    """
    check_floating(x=x, y=y)
    dtype, (x, y) = widen(x, y)
    return _logarithm((x - y) / y, x, y).to(dtype)


def ratio_gap(x: Tensor, y: Tensor) -> Tensor:
    """How far log(x) lies below its tangent at y, in nats: x / y - 1 - log(x / y).

    Never negative, and exactly 0 where x equals y; `nan` where a number is negative.
    The batches of x and y broadcast. Half precision is computed in float32 and rounded
    once.

    Args:
        x: Positive numbers, `(*batch)`.
        y: Positive numbers, `(*batch)`.

    Returns:
        One gap per element, `(*batch)`.

    Raises:
        ValueError: If one is an integer tensor.
    """
    check_floating(x=x, y=y)
    dtype, (x, y) = widen(x, y)
    # --8<-- [start:core]
    change = (x - y) / y
    near = change.abs() < 0.1
    close = change.where(near, 0.0)
    # log1p(c) = 2 (s + s^3 / 3 + s^5 / 5 + ...), with s = c / (2 + c): c - 2 s = c s.
    s = close / (2 + close)
    series = torch.zeros_like(s)
    for k in (17, 15, 13, 11, 9, 7, 5, 3):
        series = 1 / k + s.square() * series
    gap = s * (close - 2 * s.square() * series)
    gap = torch.where(near, gap, change - _logarithm(change, x, y))
    # --8<-- [end:core]
    return gap.to(dtype)


def entropy_gap(x: Tensor, y: Tensor) -> Tensor:
    """How far x log(x) lies above its tangent at y, in nats: y - x + x log(x / y).

    Never negative, and exactly 0 where x equals y; `nan` where a number is negative or
    0. The batches of x and y broadcast. Half precision is computed in float32 and
    rounded once.

    Args:
        x: Positive numbers, `(*batch)`.
        y: Positive numbers, `(*batch)`.

    Returns:
        One gap per element, `(*batch)`, x times the ratio gap of y and x.

    Raises:
        ValueError: If one is an integer tensor.
    """
    check_floating(x=x, y=y)
    dtype, (x, y) = widen(x, y)
    near = (y - x).abs() < 0.1 * x
    close = x * ratio_gap(torch.where(near, y, x), x)
    # Farther apart, the gradient of x y / x would lose its digits.
    return torch.where(near, close, y - x + x * log_ratio(x, y)).to(dtype)


def exp_gap(x: Tensor) -> Tensor:
    """How far exp(x) lies above its tangent at 0: exp(x) - 1 - x.

    Never negative, and right to the last digits where x is small: `exp(x) - 1 - x` is
    not below 1e-2, and `expm1(x) - x` is not below 1e-4, in float32. Half precision is
    computed in float32 and rounded once.

    Args:
        x: Any numbers, `(*batch)`. At `-inf` the gap is `inf`.

    Returns:
        One gap per element, `(*batch)`. Its derivative is `expm1(x)`.

    Raises:
        ValueError: If x is an integer tensor.
    """
    check_floating(x=x)
    dtype, (x,) = widen(x)
    near = x.abs() < 0.1
    close = x.where(near, 0.0)
    series = torch.ones_like(close)
    for k in range(10, 2, -1):  # leaves out x^9 / 2e7 of the sum
        series = 1 + close / k * series
    gap = torch.where(near, close.square() / 2 * series, x.expm1() - x)
    return gap.to(dtype)


def near_gap(x: Tensor, y: Tensor, curvature: Callable[[Tensor], Tensor]) -> Tensor:
    """How far a convex function lies above its tangent at y, from its curvature alone.

    It is the square of the distance times a mean of the curvature between y and x, in
    which what is near y counts more: (x - y)^2 ∫ (1 - u) f''(y + u (x - y)) du, with
    u from 0 to 1. Five nodes give all digits where the curvature is a power of x and x
    is within a tenth of y. Never negative if the curvature is not, and exactly 0 where
    x equals y. The batches of x and y broadcast.

    Args:
        x: Numbers, `(*batch)`.
        y: Numbers, `(*batch)`.
        curvature: The second derivative of the function, of each number.

    Returns:
        One gap per element, `(*batch)`.

    Raises:
        ValueError: If one is an integer tensor.
    """
    check_floating(x=x, y=y)
    dtype, (x, y) = widen(x, y)
    step = x - y
    heights = curvature(torch.stack([y + node * step for node in NODES]))
    rows = zip(NODES.values(), heights.unbind(), strict=True)
    mean = torch.stack([weight * height for weight, height in rows]).sum(0)
    return (step.square() * mean).to(dtype)


def gamma_gap(x: Tensor, y: Tensor) -> Tensor:
    """How far lgamma(x) - x log(x) + x lies above its tangent at y, in nats.

    It is the KL of a Gamma of shape y to one of shape x with the same mean. Never
    negative, and exactly 0 where x equals y. The batches of x and y broadcast.

    Args:
        x: Positive numbers, `(*batch)`; float64 keeps the digits.
        y: Positive numbers, `(*batch)`; float64 keeps the digits.

    Returns:
        One gap per element, `(*batch)`.

    Raises:
        ValueError: If one is an integer tensor.
    """
    check_floating(x=x, y=y)
    dtype, (x, y) = widen(x, y)
    near = (x - y).abs() < 0.1 * y
    close = near_gap(torch.where(near, x, y), y, _gamma_curvature)
    # Far apart: numbers below 8 are moved up, for lgamma(x) = lgamma(x + 1) - log(x).
    small = (x < 8) | (y < 8)
    high_x, high_y = torch.where(small, x + 8, x), torch.where(small, y + 8, y)
    change = (x - y) / high_y  # not from high_x - high_y, which was rounded
    logarithm = _logarithm(change, high_x, high_y)
    moved = high_x * logarithm - x * log_ratio(x, y) + _rising_gap(x, y)
    gap = (change - logarithm) / 2 + _stirling_gap(change, high_x, high_y)
    far = gap + torch.where(small, moved, 0.0)
    return torch.where(near, close, far).to(dtype)


def _gamma_curvature(x: Tensor) -> Tensor:
    """Of lgamma(x) - x log(x) + x: trigamma(x) - 1 / x, as positive terms."""
    total = torch.zeros_like(x)
    for k in range(8):  # 1 / z^2 - 1 / z + 1 / (z + 1), with z = x + k
        total = total + 1 / (x + k) / (x + k) / (x + k + 1)
    inverse = 1 / (x + 8)
    series = torch.zeros_like(x)
    for k, coefficient in reversed(list(enumerate(STIRLING))):
        series = (2 * k + 1) * (2 * k + 2) * coefficient + inverse.square() * series
    return total + inverse.square() * (1 / 2 + inverse * series)


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
