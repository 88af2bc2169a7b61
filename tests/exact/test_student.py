"""`kl_student` integrates to ten digits, from Cauchy to nearly Gaussian."""

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.autograd.functional import hessian
from torch.distributions import StudentT, kl_divergence
from torch.testing import assert_close

from snippets.exact import student
from snippets.exact.gaussian import kl_gaussian
from snippets.exact.student import kl_student

df, mean, scale = st.floats(1, 100), st.floats(-3, 3), st.floats(0.2, 5)
row = st.tuples(df, mean, scale, df, mean, scale)


def double(numbers):
    return [tensor(number, dtype=torch.float64) for number in numbers]


@pytest.mark.parametrize(
    "numbers",
    [
        (1, 0, 1, 1, 1, 2),
        (3, 0, 1, 5, 1, 0.5),
        (30, 0, 2, 1, -1, 1),
        (1, 3, 1, 50, 0, 1),
        (0.2, 0, 1, 0.5, 1, 2),
        (5, 0, 1, 5, 0, 0.04),
        (5, 0, 1, 5, 3, 25),
    ],
)
def test_agrees_with_quadrature(numbers):
    with mpmath.workdps(30):
        v, m, s, w, n, t = (mpmath.mpf(x) for x in numbers)

        def log_density(x, df, mean, scale):
            z = (x - mean) / scale
            constant = mpmath.loggamma((df + 1) / 2) - mpmath.loggamma(df / 2)
            constant -= mpmath.log(df * mpmath.pi) / 2 + mpmath.log(scale)
            return constant - (df + 1) / 2 * mpmath.log1p(z * z / df)

        def integrand(x):
            log_p = log_density(x, v, m, s)
            return mpmath.exp(log_p) * (log_p - log_density(x, w, n, t))

        # x = m + s sinh(u): what is beyond sinh(400) has 1e-34 of P's mass.
        def stretched(u):
            return integrand(m + s * mpmath.sinh(u)) * s * mpmath.cosh(u)

        ends = [-400, -100, -20, -5, -2, 0, 2, 5, 20, 100, 400]
        exact = float(mpmath.quad(stretched, ends))
    got = kl_student(*double(map(float, numbers))).item()
    assert_close(got, exact, rtol=1e-11, atol=0)


@given(df, mean, scale)
def test_is_exactly_zero_for_the_same_policy(v, m, s):
    p = double((v, m, s))
    assert kl_student(*p, *p) == 0


@given(row)
def test_is_not_negative(numbers):
    assert kl_student(*double(numbers)) >= 0


@given(row)
def test_gradient_is_the_derivative(numbers):
    leaves = [x.requires_grad_() for x in double(numbers)]
    assert torch.autograd.gradcheck(kl_student, leaves, atol=1e-4)


def test_the_curvature_at_the_same_policy_is_the_fisher_information():
    p = tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    v, _, s = p.tolist()
    fisher = [(v + 1) / (v + 3) / s**2, 2 * v / (v + 3) / s**2]  # mean and scale
    for kl in (lambda x: kl_student(*x, *p), lambda x: kl_student(*p, *x)):
        curvature = hessian(kl, p)
        # The rule has ten digits; the mean shares nothing with the scale.
        expected = tensor(fisher, dtype=torch.float64).diag()
        assert_close(curvature[1:, 1:], expected, rtol=1e-9, atol=1e-12)


def test_cauchy_has_a_formula():
    p, q = double((1.0, 0.5, 2.0)), double((1.0, -1.0, 0.5))
    # log of ((s + t)² + (m - n)²) / (4 s t): Chyzak and Nielsen, arXiv:1905.10965.
    spread = (p[2] + q[2]) ** 2 + (p[1] - q[1]) ** 2
    assert_close(kl_student(*p, *q), (spread / (4 * p[2] * q[2])).log())


def test_many_degrees_of_freedom_are_a_gaussian():
    p, q = double((1e5, 0.0, 1.0)), double((1e5, 1.0, 2.0))
    gaussian = kl_gaussian(*(x[None] for x in (*p[1:], *q[1:])))
    # Student's t differs from the Gaussian by the inverse of its degrees.
    assert_close(kl_student(*p, *q), gaussian, rtol=1e-4, atol=0)


def test_samples_agree_within_their_error():
    torch.manual_seed(0)
    p, q = StudentT(3.0, 0.0, 1.0), StudentT(5.0, 1.0, 2.0)
    drawn = p.sample((100_000,))
    log_ratio = p.log_prob(drawn) - q.log_prob(drawn)
    error = log_ratio.std() / len(drawn) ** 0.5
    exact = kl_student(*(tensor(x) for x in (3.0, 0.0, 1.0, 5.0, 1.0, 2.0)))
    # Five standard errors: a right value is outside once in two million seeds.
    assert abs(log_ratio.mean() - exact) < 5 * error


def test_torch_has_no_rule():
    p = StudentT(3.0)
    with pytest.raises(NotImplementedError):
        kl_divergence(p, p)


@pytest.mark.parametrize("wrong", [0.05, 0.0, -1.0, inf, nan])
@pytest.mark.parametrize("place", [0, 3])
def test_degrees_of_freedom_that_the_points_do_not_reach_make_their_row_nan(
    wrong, place
):
    rows = torch.ones(6, 2)
    rows[place, 1] = wrong
    assert kl_student(*rows).isnan().tolist() == [False, True]


@pytest.mark.parametrize("wrong", [0.0, -1.0, inf, nan])
@pytest.mark.parametrize("place", [2, 5])
def test_a_scale_that_is_not_positive_makes_its_row_nan(wrong, place):
    rows = torch.ones(6, 2)
    rows[place, 1] = wrong
    assert kl_student(*rows).isnan().tolist() == [False, True]


def test_nearly_infinite_degrees_of_freedom_are_a_gaussian():
    p, q = double((1e16, 0.0, 1.0)), double((1e16, 0.1, 1.0))
    assert_close(kl_student(*p, *q).item(), 0.1**2 / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("half", [49.99, 50.01])
def test_the_series_of_the_constant_meets_lgamma(half):
    with mpmath.workdps(40):
        constant = mpmath.loggamma(half + 0.5) - mpmath.loggamma(half)
        exact = float(constant - mpmath.log(2 * half * mpmath.pi) / 2)
    df, mode = double((2 * half, 0.0))
    assert_close(student._log_density(df, mode).item(), exact, rtol=1e-12, atol=0)


@given(row, st.floats(-1e-2, 1e-2))
def test_is_never_negative_however_close(numbers, change):
    p = double(numbers[:3])
    near = double(x * (1 + change) for x in numbers[:3])
    assert kl_student(*p, *near) >= 0
    assert kl_student(*(x.float() for x in (*p, *near))) >= 0


def test_refuses_shapes_that_differ():
    one = tensor(1.0)
    with pytest.raises(ValueError, match="scale_q is"):
        kl_student(one, one, one, one, one, torch.ones(2))
