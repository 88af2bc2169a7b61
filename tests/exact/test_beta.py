"""`kl_beta` is the integral, and torch's, over bounded actions."""

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.autograd.functional import hessian
from torch.distributions import Beta, Independent, kl_divergence
from torch.testing import assert_close

from snippets.exact.beta import kl_beta


@st.composite
def two_policies(draw):
    """Concentrations of P and Q over 1 to 3 dimensions."""
    dims = draw(st.integers(1, 3))
    row = st.lists(st.floats(-2, 4), min_size=dims, max_size=dims)
    return [tensor(draw(row), dtype=torch.float64).exp() for _ in "abcd"]


@given(two_policies())
def test_agrees_with_torch(rows):
    a, b, c, d = rows
    expected = kl_divergence(Independent(Beta(a, b), 1), Independent(Beta(c, d), 1))
    # torch's terms of up to 500 cancel: each is rounded at 1e-13.
    assert_close(kl_beta(*rows), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rows", [(1, 1, 2, 3), (5, 2, 1, 1), (1.5, 2, 3, 0.5)])
def test_agrees_with_quadrature(rows):
    with mpmath.workdps(30):
        a, b, c, d = (mpmath.mpf(x) for x in rows)

        def integrand(x):
            log_p = (a - 1) * mpmath.log(x) + (b - 1) * mpmath.log(1 - x)
            log_q = (c - 1) * mpmath.log(x) + (d - 1) * mpmath.log(1 - x)
            log_p -= mpmath.log(mpmath.beta(a, b))
            log_q -= mpmath.log(mpmath.beta(c, d))
            return mpmath.exp(log_p) * (log_p - log_q)

        exact = float(mpmath.quad(integrand, [0, 0.5, 1]))
    got = kl_beta(*(tensor([float(x)], dtype=torch.float64) for x in rows)).item()
    assert_close(got, exact, rtol=1e-12, atol=0)


def test_samples_agree_within_their_error():
    torch.manual_seed(0)
    rows = [tensor([x]) for x in (2.0, 3.0, 1.5, 1.0)]
    p, q = Beta(*rows[:2]), Beta(*rows[2:])
    drawn = p.sample((100_000,))
    log_ratio = p.log_prob(drawn) - q.log_prob(drawn)
    error = log_ratio.std() / len(drawn) ** 0.5
    # Five standard errors: a right value is outside once in two million seeds.
    assert abs(log_ratio.mean() - kl_beta(*rows)) < 5 * error


@given(two_policies())
def test_is_exactly_zero_for_the_same_policy(rows):
    assert kl_beta(*rows[:2], *rows[:2]) == 0


@given(two_policies())
def test_is_never_negative(rows):
    assert kl_beta(*rows) >= -1e-26  # a change in the last bits, squared


@given(two_policies())
def test_mirroring_the_action_changes_nothing(rows):
    a, b, c, d = rows
    assert_close(kl_beta(a, b, c, d), kl_beta(b, a, d, c), rtol=1e-9, atol=1e-11)


@settings(max_examples=25)
@given(two_policies())
def test_gradient_is_the_derivative(rows):
    # Concentrations reach exp(-2), where slopes reach 500: differences lose digits.
    leaves = [x.requires_grad_() for x in rows]
    assert torch.autograd.gradcheck(kl_beta, leaves, rtol=1e-2, atol=1e-4)


def test_the_curvature_at_the_same_policy_is_the_fisher_information():
    a, b = 2.0, 0.7
    own, other, both = (float(mpmath.polygamma(1, x)) for x in (a, b, a + b))
    fisher = tensor([[own - both, -both], [-both, other - both]], dtype=torch.float64)
    p = tensor([[a], [b]], dtype=torch.float64)
    for kl in (lambda x: kl_beta(*x, *p).sum(), lambda x: kl_beta(*p, *x).sum()):
        assert_close(hessian(kl, p).reshape(2, 2), fisher)


SIZES = [1e-30, 1e-8, 0.3, 1.0, 40.0, 1e3, 1e6, 1e12, 1e30]


def exact_kl(a, b, c, d):
    """The formula of the page, with 150 digits: its terms differ by 1e30."""
    with mpmath.workdps(150):
        a, b, c, d = (mpmath.mpf(x) for x in (a, b, c, d))
        kl = mpmath.log(mpmath.beta(c, d)) - mpmath.log(mpmath.beta(a, b))
        kl += (a - c) * mpmath.digamma(a) + (b - d) * mpmath.digamma(b)
        return float(kl + (c - a + d - b) * mpmath.digamma(a + b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a", SIZES)
def test_is_right_from_tiny_to_huge(a, dtype):
    rows = [(a, b, 1.01 * a, 0.99 * b) for b in SIZES]
    rows += [(a, b, b, a) for b in SIZES] + [(b, 3.0, a, 1e9) for b in SIZES]
    rows = tensor(rows, dtype=dtype)
    got = kl_beta(*rows[..., None].unbind(1)).tolist()
    for row, value in zip(rows.tolist(), got, strict=True):
        exact = exact_kl(*row)
        if exact > torch.finfo(dtype).max:
            assert value == inf, row
        else:
            # float32 rounds once. A share of 1e-8 beside another that jumps from 3 to
            # 1e9 is what is left of 1e9.
            assert_close(value, exact, rtol=2e-6, atol=1e-15, msg=str(row))


def test_float64_loses_its_digits_in_torch_at_huge_concentrations():
    a = tensor([1e12], dtype=torch.float64)
    exact = exact_kl(1e12, 1e12, 1.000001e12, 1e12)
    assert_close(kl_beta(a, a, a * 1.000001, a).item(), exact, rtol=1e-6, atol=0)
    loses = kl_divergence(Beta(a, a), Beta(a * 1.000001, a)).item()
    assert abs(loses - exact) > 0.001 * exact


def test_float32_keeps_its_digits_at_large_concentrations():
    a, b = tensor([3000.0]), tensor([5000.0])
    exact = kl_beta(*(x.double() for x in (a, b, a * 1.01, b)))
    assert_close(kl_beta(a, b, a * 1.01, b).double(), exact, rtol=1e-4, atol=0)
    loses = kl_divergence(Beta(a, b), Beta(a * 1.01, b))
    assert abs(loses - exact) > 0.01 * exact


def test_uniform_against_uniform_is_zero_in_torch_too():
    flat = Beta(tensor(1.0), tensor(1.0))
    assert kl_divergence(flat, flat) == 0


@pytest.mark.parametrize("wrong", [0.0, -1.0, nan, inf])
@pytest.mark.parametrize("place", range(4))
def test_a_concentration_that_is_not_positive_makes_its_row_nan(wrong, place):
    rows = torch.ones(4, 2, 1)  # of two actions
    rows[place, 1] = wrong
    kl = kl_beta(*rows)
    assert kl[0] == 0
    assert kl[1].isnan()


def test_refuses_integers():
    one = tensor([1.0])
    with pytest.raises(ValueError, match="beta_p must be floating point"):
        kl_beta(one, one.long(), one, one)


def test_refuses_shapes_that_broadcasting_would_square():
    with pytest.raises(ValueError, match=r"alpha_q is \[4, 1\]"):
        kl_beta(torch.ones(4), torch.ones(4), torch.ones(4, 1), torch.ones(4))
