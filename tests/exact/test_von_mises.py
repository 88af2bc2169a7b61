"""`kl_von_mises` is the integral over the circle; torch 2.13.0 has no rule."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.autograd.functional import hessian
from torch.distributions import VonMises, kl_divergence
from torch.testing import assert_close

from snippets.exact.gaussian import kl_gaussian
from snippets.exact.von_mises import kl_von_mises

angle, concentration = st.floats(-3, 3), st.floats(0, 50)


def double(*numbers):
    return [tensor(number, dtype=torch.float64) for number in numbers]


@pytest.mark.parametrize("row", [(0, 1, 1, 2), (0.5, 10, -1, 3), (0, 0, 2, 5)])
def test_agrees_with_quadrature(row):
    mean_p, k, mean_q, c = row
    with mpmath.workdps(30):

        def density(x, mean, kappa):
            return mpmath.exp(kappa * mpmath.cos(x - mean)) / (
                2 * mpmath.pi * mpmath.besseli(0, kappa)
            )

        def integrand(x):
            p = density(x, mean_p, k)
            return p * mpmath.log(p / density(x, mean_q, c))

        exact = float(mpmath.quad(integrand, [-mpmath.pi, 0, mpmath.pi]))
    got = kl_von_mises(*double(*map(float, row))).item()
    assert_close(got, exact, rtol=1e-12, atol=1e-14)


@given(angle, concentration)
def test_is_exactly_zero_for_the_same_policy(mean, kappa):
    mean, kappa = double(mean, kappa)
    assert kl_von_mises(mean, kappa, mean, kappa) == 0


@given(angle, concentration, angle, concentration)
def test_is_not_negative_and_turns_do_not_matter(m, k, n, c):
    kl = kl_von_mises(*double(m, k, n, c))
    assert kl >= 0
    assert_close(kl_von_mises(*double(m + 2 * math.pi, k, n, c)), kl)


@given(angle, st.floats(0.1, 50), angle, st.floats(0.1, 50))
def test_gradient_is_the_derivative(m, k, n, c):
    leaves = [x.requires_grad_() for x in double(m, k, n, c)]
    assert torch.autograd.gradcheck(kl_von_mises, leaves)


CONCENTRATIONS = [0.0, 0.3, 5.0, 29.9, 30.1, 40.0, 1e3, 1e6, 1.01e6, 1e12, 1e30]


def bessel(kappa):
    """Logarithm of I0(kappa), and I1(kappa) / I0(kappa), from 150 digits."""
    if kappa < 2000:
        zero, one = (mpmath.besseli(order, kappa) for order in (0, 1))
        return mpmath.log(zero), one / zero
    # DLMF 10.40.1; the next terms are smaller by more than 2000 each.
    sums = []
    for order in (0, 1):
        term = total = mpmath.mpf(1)
        for k in range(1, 60):
            term *= ((2 * k - 1) ** 2 - 4 * order**2) / (8 * k * kappa)
            total += term
        sums.append(total)
    logarithm = kappa - mpmath.log(2 * mpmath.pi * kappa) / 2 + mpmath.log(sums[0])
    return logarithm, sums[1] / sums[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", CONCENTRATIONS)
def test_is_right_up_to_huge_concentrations(k, dtype):
    rows = [(k, c, shift) for c in CONCENTRATIONS for shift in (0.0, 1e-7, 3.0)]
    rows += [(k, 1.01 * k, 0.0)]
    one, other, shift = tensor(rows, dtype=dtype).unbind(1)
    got = kl_von_mises(shift, one, 0 * shift, other).tolist()
    each = zip(one.tolist(), other.tolist(), shift.tolist(), got, strict=True)
    for a, b, x, value in each:
        with mpmath.workdps(150):
            a, b = mpmath.mpf(a), mpmath.mpf(b)
            (log_p, ratio), (log_q, _) = bessel(a), bessel(b)
            exact = float(log_q - log_p + ratio * (a - b * mpmath.cos(x)))
        # float32 rounds once. A hundredth is a KL of 1e-5, beside logarithms of 100.
        assert_close(value, exact, rtol=max(1e-9, torch.finfo(dtype).eps), atol=1e-15)


def test_the_series_meets_the_functions_at_thirty():
    below, above = tensor([30 - 1e-9, 30 + 1e-9], dtype=torch.float64)
    zero, other = double(0.0, 20.0)
    ends = [kl_von_mises(zero, k, zero, other) for k in (below, above)]
    # The slope is 1/3 nat at most: 2e-9 of it.
    assert_close(*ends, rtol=0, atol=1e-9)


@given(angle, st.floats(25, 40), angle, st.floats(25, 40))
def test_gradient_is_the_derivative_on_both_sides_of_the_series(m, k, n, c):
    leaves = [x.requires_grad_() for x in double(m, k, n, c)]
    assert torch.autograd.gradcheck(kl_von_mises, leaves, atol=1e-4)


@pytest.mark.parametrize("kappa", [0.5, 2.0, 50.0])
def test_the_curvature_at_the_same_policy_is_the_fisher_information(kappa):
    ratio = float(mpmath.besseli(1, kappa) / mpmath.besseli(0, kappa))
    fisher = double([kappa * ratio, 1 - ratio / kappa - ratio**2])[0].diag()
    (p,) = double([0.7, kappa])
    for kl in (lambda x: kl_von_mises(*x, *p), lambda x: kl_von_mises(*p, *x)):
        # At 50 the fourth digit of the ratio is the first of the second number.
        assert_close(hessian(kl, p), fisher, rtol=1e-9, atol=1e-12)


def test_gradient_is_finite_for_the_uniform_and_the_huge():
    rows = [[0.0, 1.0], [0.0, 1e30], [0.5, 2.0], [1e30, 0.0]]
    leaves = [tensor(x, dtype=torch.float64, requires_grad=True) for x in rows]
    slopes = torch.autograd.grad(kl_von_mises(*leaves).sum(), leaves, create_graph=True)
    assert all(slope.isfinite().all() for slope in slopes)
    bends = torch.autograd.grad(sum(slope.sum() for slope in slopes), leaves)
    assert all(bend.isfinite().all() for bend in bends)


def test_a_narrow_one_is_a_gaussian():
    rows = double(0.0, 1e8, 1e-4, 2e8)
    gaussian = (x[None] for x in (rows[0], rows[1] ** -0.5, rows[2], rows[3] ** -0.5))
    # The circle is a line up to the inverse of the concentration.
    assert_close(kl_von_mises(*rows), kl_gaussian(*gaussian), rtol=1e-6, atol=0)


def test_samples_agree_within_their_error():
    torch.manual_seed(0)
    p, q = VonMises(tensor(0.0), tensor(2.0)), VonMises(tensor(1.0), tensor(1.0))
    drawn = p.sample((50_000,))
    log_ratio = p.log_prob(drawn) - q.log_prob(drawn)
    error = log_ratio.std() / len(drawn) ** 0.5
    exact = kl_von_mises(p.loc, p.concentration, q.loc, q.concentration)
    # Five standard errors: a right value is outside once in two million seeds.
    assert abs(log_ratio.mean() - exact) < 5 * error


def test_torch_has_no_rule():
    p = VonMises(tensor(0.0), tensor(1.0))
    with pytest.raises(NotImplementedError):
        kl_divergence(p, p)


@pytest.mark.parametrize("wrong", [-1.0, inf, nan])
@pytest.mark.parametrize("place", [1, 3])
def test_what_is_no_concentration_makes_its_row_nan(wrong, place):
    rows = torch.ones(4, 2)
    rows[place, 1] = wrong
    assert kl_von_mises(*rows).isnan().tolist() == [False, True]


def test_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match=r"mean_q is \[4, 1\]"):
        kl_von_mises(torch.ones(4), torch.ones(4), torch.ones(4, 1), torch.ones(4))


@pytest.mark.parametrize("c", [0.0, 1e-3])
@pytest.mark.parametrize("k", [0.0, 0.5, 2.0])
def test_the_gradient_reaches_the_uniform_distribution(k, c):
    rows = double(0.0, k, 1.0, c)
    leaf = rows[3].requires_grad_()
    (slope,) = torch.autograd.grad(kl_von_mises(*rows), leaf)
    # The mean cosine of Q, less that of P as Q sees it.
    ratios = [float(mpmath.besseli(1, x) / mpmath.besseli(0, x)) for x in (c, k)]
    assert_close(
        slope.item(), ratios[0] - ratios[1] * math.cos(1), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("k", [0.0, 1e-3, 1.0, 29.9, 49.9, 50.1, 1e3, 1e12, 1e30])
@pytest.mark.parametrize("change", [1e-12, 1e-7, 1e-3, 0.05, -0.05])
def test_keeps_its_digits_where_the_concentrations_nearly_agree(k, change):
    c = k + abs(change) if k == 0 else k * (1 + change)
    with mpmath.workdps(150):
        (log_p, ratio), (log_q, _) = bessel(mpmath.mpf(k)), bessel(mpmath.mpf(c))
        exact = float(log_q - log_p - ratio * (mpmath.mpf(c) - mpmath.mpf(k)))
    got = kl_von_mises(*double(0.0, k, 0.0, c)).item()
    assert_close(got, exact, rtol=1e-11, atol=0)


@given(angle, concentration, st.floats(-1e-2, 1e-2))
def test_is_never_negative_however_close(m, k, change):
    for dtype in (torch.float32, torch.float64):
        one = [x.to(dtype) for x in double(m, k)]
        assert kl_von_mises(*one, one[0] + change, one[1] * (1 + change)) >= 0
