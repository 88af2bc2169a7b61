"""k1, k3 and `other_k3` are unbiased, k2 to second order; none loses its sign."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from snippets.estimate.estimators import k1, k2, k3, other_k3
from snippets.exact.bregman import exp_gap
from tests.strategies import two_log_policies

ALL = (k1, k2, k3, other_k3)


@given(two_log_policies())
def test_k1_and_k3_have_the_kl_as_mean(policies):
    log_p, log_q = policies
    expected = kl_divergence(Categorical(logits=log_p), Categorical(logits=log_q))
    assert_close(log_p.exp() @ k1(log_p, log_q), expected)
    assert_close(log_p.exp() @ k3(log_p, log_q), expected)


@given(two_log_policies())
def test_other_k3_has_the_other_direction_as_mean(policies):
    log_p, log_q = policies
    expected = kl_divergence(Categorical(logits=log_q), Categorical(logits=log_p))
    assert_close(log_p.exp() @ other_k3(log_p, log_q), expected)


def test_the_bias_of_k2_is_of_third_order():
    direction = tensor([1.0, -2.0, 0.5, 0.5], dtype=torch.float64)
    log_p = torch.zeros(4, dtype=torch.float64).log_softmax(-1)
    biases = []
    for size in (0.02, 0.01):
        log_q = (log_p + size * direction).log_softmax(-1)
        kl = log_p.exp() @ (log_p - log_q)
        biases.append((log_p.exp() @ k2(log_p, log_q) - kl).item())
    # Halving the step divides a third-order term by 8, up to the next order.
    assert biases[0] / biases[1] == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize("estimator", [k2, k3, other_k3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_never_negative(estimator, dtype):
    sizes = torch.logspace(-12, 1.5, 4001, dtype=dtype)
    log_ratio = torch.cat([-sizes, sizes])
    values = estimator(torch.zeros_like(log_ratio), log_ratio)
    assert (values >= 0).all()


@given(st.floats(-80, 80).filter(lambda x: x == 0 or abs(x) > 1e-12))
def test_agrees_with_thirty_digits(log_ratio):
    x = tensor(log_ratio, dtype=torch.float64)
    with mpmath.workdps(60):  # of which k3 of 1e-12 loses 24
        r, log_r = mpmath.exp(log_ratio), mpmath.mpf(log_ratio)
        less_one = mpmath.expm1(log_r)
        exact = {
            k1: -log_r,
            k2: log_r**2 / 2,
            k3: less_one - log_r,
            other_k3: r * log_r - less_one,
        }
    for estimator, expected in exact.items():
        found = estimator(torch.zeros_like(x), x).item()
        # A dozen operations, each rounded to half a unit of 2e-16; the smallest double
        # where the square underflows.
        assert found == pytest.approx(float(expected), rel=5e-15, abs=1e-307)


@given(two_log_policies())
def test_identical_policies_give_exactly_zero(policies):
    log_p, _ = policies
    for estimator in ALL:
        assert (estimator(log_p, log_p) == 0).all()


@given(two_log_policies())
def test_k3_and_other_k3_swap_roles_under_a_change_of_sampler(policies):
    log_p, log_q = policies
    weight = (log_q - log_p).exp()
    assert_close(weight * k3(log_q, log_p), other_k3(log_p, log_q))


def test_the_form_without_expm1_is_wrong_and_negative_near_zero():
    x = torch.linspace(-1e-4, 1e-4, 1001)
    naive = (x.exp() - 1) - x
    right = k3(torch.zeros_like(x), x)
    assert (naive < 0).any()
    assert (naive - x**2 / 2).abs().max() > 5e-9  # as large as the largest value
    assert_close(right, x**2 / 2 + x**3 / 6, rtol=1e-3, atol=1e-11)


def test_a_sample_that_q_cannot_give():
    log_p, log_q = tensor(-1.0), tensor(-inf)
    assert [estimator(log_p, log_q).item() for estimator in ALL] == [inf, inf, inf, 1]


def test_the_gradient_of_other_k3_is_finite_where_q_is_zero():
    log_p = tensor([-1.0, -1.0], requires_grad=True)
    other_k3(log_p, tensor([-inf, -2.0])).sum().backward()
    assert log_p.grad.isfinite().all()


def test_k3_overflows_in_float32_where_q_is_exp_89_times_as_likely():
    assert k3(tensor(-89.0), tensor(0.0)) == inf
    assert k3(tensor(-88.0), tensor(0.0)) == tensor(88.0).expm1() - 88
    double = k3(tensor(-89.0).double(), tensor(0.0).double()).item()
    assert double == pytest.approx(math.exp(89))


def test_k3_misses_what_q_puts_where_p_puts_nothing():
    p, q = tensor([1.0, 0.0]), tensor([0.5, 0.5])
    seen = k3(p.log(), q.log())[0]  # the only action that p samples
    kl = -q[0].log()
    assert_close(kl - seen, q[1])


@pytest.mark.parametrize("estimator", ALL)
def test_samples_of_other_shapes_are_refused(estimator):
    with pytest.raises(ValueError, match=r"log_q is \[4\], log_p is \[5, 1\]"):
        estimator(torch.zeros(5, 1), torch.zeros(4))


def test_what_p_itself_cannot_give_is_no_estimate():
    """As after top-k filtering of P alone, or of both."""
    for estimator, expected in ((k1, -inf), (k2, inf), (other_k3, inf)):
        assert estimator(tensor(-inf), tensor(-1.0)) == expected
    assert k3(tensor(-inf), tensor(-1.0)).isnan()
    for estimator in ALL:
        assert estimator(tensor(-inf), tensor(-inf)).isnan()


@pytest.mark.parametrize("drift", [-60.0, -30.0, -1.0, 1.0, 30.0, 60.0])
def test_drifted_samples_keep_value_and_gradient_in_float32(drift):
    with mpmath.workdps(30):
        u = mpmath.exp(drift)
        values = {k3: u - 1 - drift, other_k3: u * drift - u + 1}
        slopes = {k3: u - 1, other_k3: u * drift}
    for estimator, expected in values.items():
        log_q = tensor(drift, requires_grad=True)
        found = estimator(tensor(0.0), log_q)
        found.backward()
        # exp of 60 has the rounding of its argument, 60 * 6e-8.
        assert found.item() == pytest.approx(float(expected), rel=1e-5)
        assert log_q.grad.item() == pytest.approx(float(slopes[estimator]), rel=1e-5)


def test_other_k3_overflows_to_infinity_not_to_nan():
    assert other_k3(tensor(-95.0), tensor(-1.0)) == inf


@given(two_log_policies())
def test_k3_is_the_gap_of_exp_from_its_tangent(policies):
    log_p, log_q = policies
    assert torch.equal(k3(log_p, log_q), exp_gap(log_q - log_p))


@pytest.mark.parametrize("estimator", ALL)
def test_gradient_is_the_derivative(estimator):
    both = torch.randn(2, 7, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: estimator(x[0], x[1]), both)
