"""The gaps have their digits over sixty magnitudes, in value and in gradient."""

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.functional import hessian
from torch.distributions import Exponential, Gamma, Normal, kl_divergence
from torch.testing import assert_close

from snippets.exact.bregman import (
    entropy_gap,
    exp_gap,
    gamma_gap,
    log_ratio,
    near_gap,
    ratio_gap,
)

# Both sides of the move at 8, pairs a thousandth apart, and the ends.
NUMBERS = [1e-30, 1e-8, 0.3, 1.0, 1.001, 4.5, 7.99, 8.01, 40.0]
NUMBERS += [
    0.3 * (1 + 1e-9),
    1e3,
    1.001e3,
    1e6,
    1.001e6,
    1e12,
    1.001e12,
    1e30,
    1.001e30,
]
positive = st.floats(-6, 6).map(lambda power: 10.0**power)


def ratio_curve(x):
    return -mpmath.log(x)


def ratio_slope(x):
    return -1 / x


def ratio_bend(x):
    return 1 / x**2


def gamma_curve(x):
    return mpmath.loggamma(x) - x * mpmath.log(x) + x


def gamma_slope(x):
    return mpmath.digamma(x) - mpmath.log(x)


def gamma_bend(x):
    return mpmath.polygamma(1, x) - 1 / x


def entropy_curve(x):
    return x * mpmath.log(x)


def entropy_slope(x):
    return mpmath.log(x) + 1


def entropy_bend(x):
    return 1 / x


CURVES = {
    "entropy": (entropy_gap, entropy_curve, entropy_slope, entropy_bend),
    "ratio": (ratio_gap, ratio_curve, ratio_slope, ratio_bend),
    "gamma": (gamma_gap, gamma_curve, gamma_slope, gamma_bend),
}
curve = pytest.mark.parametrize("name", CURVES)


def close(got, exact):
    # Numbers of 1e30 differ in 16 digits: a change of 0.1 leaves some terms 1e-12.
    assert_close(float(got), float(exact), rtol=2e-12, atol=0)


@curve
@pytest.mark.parametrize("y", NUMBERS)
def test_value_and_gradient_agree_with_a_hundred_digits(name, y):
    ours, height, slope, bend = CURVES[name]
    with mpmath.workdps(150):  # numbers of 1e30 and steps of 1e-30 in one sum
        for x in NUMBERS:
            if x == y:
                continue
            leaves = [
                tensor(z, dtype=torch.float64, requires_grad=True) for z in (x, y)
            ]
            got = ours(*leaves)
            got.backward()
            a, b = mpmath.mpf(x), mpmath.mpf(y)
            close(got.detach(), height(a) - height(b) - (a - b) * slope(b))
            close(leaves[0].grad, slope(a) - slope(b))
            close(leaves[1].grad, -(a - b) * bend(b))


@given(positive, positive)
def test_is_never_negative(x, y):
    x, y = tensor([x, y], dtype=torch.float64)
    assert ratio_gap(x, y) >= 0
    assert gamma_gap(x, y) >= 0
    assert entropy_gap(x, y) >= 0


@curve
@pytest.mark.parametrize("x", NUMBERS)
def test_is_exactly_zero_for_the_same_number(name, x):
    x = tensor(x, dtype=torch.float64)
    assert CURVES[name][0](x, x) == 0


@curve
@settings(max_examples=25)
@given(st.floats(0.1, 20), st.floats(0.1, 20))
def test_gradients_are_derivatives_twice(name, x, y):
    leaves = [tensor(z, dtype=torch.float64, requires_grad=True) for z in (x, y)]
    assert gradcheck(CURVES[name][0], leaves, atol=1e-4)
    # Third derivatives reach 2 / 0.1^4, and differences lose half of the digits.
    assert gradgradcheck(CURVES[name][0], leaves, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("y", [0.3, 7.99, 8.01, 40.0])
@curve
def test_the_curvature_at_the_same_number_is_that_of_the_curve(name, y):
    ours, _, _, bend = CURVES[name]
    y = tensor(y, dtype=torch.float64)
    expected = tensor(float(bend(mpmath.mpf(y.item()))), dtype=torch.float64)
    for gap in (lambda x: ours(x, y), lambda x: ours(y, x)):
        assert_close(hessian(gap, y), expected)


@pytest.mark.parametrize("y", [7.9, 8.1])
def test_the_move_at_eight_leaves_no_seam(y):
    x = tensor([8.0 - 1e-9, 8.0 + 1e-9], dtype=torch.float64)
    low, high = gamma_gap(x, tensor(y, dtype=torch.float64))  # broadcasts, in float64
    # The slope is below 0.001 there: 2e-9 of it is 2e-12 at most.
    assert_close(low, high, rtol=0, atol=2e-12)


@given(positive, positive)
def test_the_logarithm_of_a_ratio_is_one(x, y):
    x, y = tensor([x, y], dtype=torch.float64)
    assert_close(log_ratio(x, y), x.log() - y.log(), rtol=1e-13, atol=1e-14)
    assert log_ratio(x, x) == 0
    assert log_ratio(x, y) == -log_ratio(y, x) or x / y > 0.5


def test_the_logarithm_is_finite_where_the_ratio_is_not():
    x, y = tensor([1e30, 1e-30])
    assert x / y == torch.inf
    assert_close(log_ratio(x, y), 60 * tensor(10.0).log())
    assert_close(log_ratio(y, x), -60 * tensor(10.0).log())


def test_a_small_change_keeps_its_digits_in_float32():
    x, y = tensor([1 + 2.0**-12, 1.0])
    exact = ratio_gap(x.double(), y.double())
    # The change is exact, and what follows rounds at 1e-7 some times.
    assert_close(ratio_gap(x, y).double(), exact, rtol=1e-6, atol=0)


@given(positive, positive)
def test_is_the_kl_of_the_families_that_it_names(x, y):
    x, y = tensor([x, y], dtype=torch.float64)
    zero = torch.zeros_like(x)
    # torch subtracts terms of the size of the ratio, or of its logarithm.
    tolerance = {"rtol": 1e-9, "atol": 1e-12}
    rates = kl_divergence(Exponential(y), Exponential(x))
    assert_close(ratio_gap(x, y), rates, **tolerance)
    widths = kl_divergence(Normal(zero, x.sqrt()), Normal(zero, y.sqrt()))
    assert_close(ratio_gap(x, y) / 2, widths, **tolerance)
    # The terms reach x log x, of which rounding leaves 1e-15.
    rounding = 1e-14 * float((x + y) * (x + y + 3).log())
    shapes = kl_divergence(Gamma(y, y), Gamma(x, x))
    assert_close(gamma_gap(x, y), shapes, rtol=1e-9, atol=1e-12 + rounding)


def test_torch_loses_float64_at_large_shapes():
    a, b = tensor([1.01e12, 1e12], dtype=torch.float64)
    limit = ratio_gap(a, b) / 2  # what large shapes tend to
    assert_close(gamma_gap(a, b), limit)
    assert abs(kl_divergence(Gamma(b, b), Gamma(a, a)) - limit) > 5 * limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "x", [-80.0, -1.0, -0.11, -0.09, -1e-3, -1e-7, 1e-7, 1e-3, 0.09, 0.11, 1.0, 80.0]
)
def test_the_gap_of_the_exponential_has_its_digits(x, dtype):
    leaf = tensor(x, dtype=dtype, requires_grad=True)
    with mpmath.workdps(40):
        exact = float(mpmath.exp(leaf.item()) - 1 - leaf.item())
        slope = float(mpmath.expm1(leaf.item()))
    gap = exp_gap(leaf)
    gap.backward()
    # At 0.11 two digits cancel: some roundings of eps, times a hundred.
    rtol = 100 * torch.finfo(dtype).eps
    assert_close([gap.item(), leaf.grad.item()], [exact, slope], rtol=rtol, atol=0)


def test_the_gap_of_the_exponential_is_never_negative_in_float32():
    x = torch.logspace(-30, 0, 10_000)
    assert (exp_gap(x) >= 0).all()
    assert (exp_gap(-x) >= 0).all()
    assert (x.exp() - 1 - x < 0).any()  # and the formula as it stands is
    assert exp_gap(tensor(-torch.inf)) == torch.inf


@given(st.floats(0.1, 10), st.floats(-0.1, 0.1))
def test_a_gap_of_near_numbers_needs_the_curvature_alone(y, change):
    y = tensor(y, dtype=torch.float64)
    x = y * (1 + change)
    squares = near_gap(x, y, torch.ones_like)  # of x^2 / 2
    assert_close(squares, (x - y).square() / 2)
    assert_close(near_gap(x, y, lambda z: z**-2), ratio_gap(x, y), rtol=1e-13, atol=0)


@pytest.mark.parametrize("gap", [log_ratio, ratio_gap, entropy_gap, gamma_gap])
def test_integers_are_refused_and_half_precision_is_rounded_once(gap):
    one, two = tensor([1.0, 3.0]), tensor([2.0, 3.25])
    with pytest.raises(ValueError, match="y must be floating point"):
        gap(one, two.long())
    half = gap(one.bfloat16(), two.bfloat16())
    assert half.dtype == torch.bfloat16
    assert_close(half, gap(one, two).bfloat16(), rtol=0, atol=0)
