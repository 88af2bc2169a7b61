"""Errors cover, coefficients minimise, and the Gaussian boundary is where it is."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import inf, mp, quad, sqrt
from torch import tensor
from torch.distributions import Normal
from torch.testing import assert_close

from snippets.estimate.estimators import k1, k3
from snippets.estimate.variance import (
    best_coefficient,
    control_variate,
    effective_sample_size,
    k3_variance_is_finite,
    mean_and_error,
)
from tests.strategies import two_log_policies


def variance(weights, values):
    """The exact variance of values with these probabilities."""
    return weights @ (values - weights @ values).square()


@given(two_log_policies(2, largest=2.0), st.floats(-2, 3))
def test_every_coefficient_is_unbiased(policies, coefficient):
    log_p, log_q = policies
    values = control_variate(log_p, log_q, coefficient)
    assert_close(log_p.exp() @ values, log_p.exp() @ (log_p - log_q))


@given(two_log_policies(2, largest=2.0))
def test_the_ends_of_the_family_are_k1_and_k3(policies):
    log_p, log_q = policies
    zero, one = (control_variate(log_p, log_q, c) for c in (0.0, 1.0))
    assert torch.equal(zero, k1(log_p, log_q))
    assert torch.equal(one, k3(log_p, log_q))


@given(two_log_policies(2, largest=2.0), st.floats(-1, 2))
def test_no_coefficient_has_less_variance_on_the_batch(policies, other):
    samples = [row.repeat(3) for row in policies]
    best = best_coefficient(*samples)
    least, more = (control_variate(*samples, c).var() for c in (best, other))
    assert least <= more + 1e-12  # variances of order 1, in float64


@given(two_log_policies(2, largest=2.0))
def test_k3_beats_k1_exactly_above_one_half(policies):
    uniform = torch.full_like(policies[0], -len(policies[0])).log_softmax(-1)
    log_p, log_q = uniform, policies[1]  # each action once is a fair batch
    best = best_coefficient(log_p, log_q)
    spread = [variance(log_p.exp(), f(log_p, log_q)) for f in (k1, k3)]
    if (best - 0.5).abs() > 1e-6 and spread[0] > 1e-12:
        assert (spread[1] < spread[0]) == (best > 0.5)


def test_the_best_coefficient_is_that_of_the_samples_not_of_k3():
    log_p, log_q = torch.zeros(3), tensor([0.1, -0.2, 1.5])
    ratio = log_q.exp().double()
    covariance = torch.cov(torch.stack([log_q.double(), ratio]))
    expected = covariance[0, 1] / covariance[1, 1]
    assert_close(best_coefficient(log_p, log_q).double(), expected, rtol=1e-5, atol=0)


def test_equal_ratios_have_coefficient_zero_and_estimate_zero():
    same = torch.randn(2, 5)
    assert (best_coefficient(same, same) == 0).all()
    assert (control_variate(same, same, 0.7) == 0).all()


def test_the_coefficient_has_no_gradient():
    log_p = torch.randn(5, requires_grad=True)
    assert not best_coefficient(log_p, torch.randn(5)).requires_grad


def test_the_error_covers_the_mean_as_often_as_it_says():
    torch.manual_seed(0)
    estimates = mean_and_error(torch.randn(4000, 50) + 3)
    inside = (estimates.mean - 3).abs() < 2 * estimates.error
    # Student's t with 49 degrees: 94.9 %. 4000 trials scatter by 0.35 %.
    assert inside.double().mean().item() == pytest.approx(0.949, abs=4 * 0.0035)


def test_the_error_of_two_samples_is_half_their_distance():
    mean, error = mean_and_error(tensor([1.0, 4.0]))
    assert (mean, error) == (2.5, 1.5)


def test_one_sample_has_no_error():
    with pytest.raises(ValueError, match="values has 1 samples"):
        mean_and_error(torch.zeros(3, 1))


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.floats(-500, 500))
def test_effective_size_lies_between_one_and_all_and_ignores_the_scale(weights, shift):
    log_weights = tensor(weights, dtype=torch.float64)
    size = effective_sample_size(log_weights)
    assert 1 - 1e-9 <= size <= len(weights) + 1e-9
    shifted = effective_sample_size(log_weights + shift)
    assert_close(shifted, size, rtol=1e-9, atol=0)  # exp of a rounded sum


@given(st.integers(1, 50), st.integers(0, 50))
def test_effective_size_counts_equal_weights(used, unused):
    log_weights = torch.cat([torch.zeros(used), torch.full((unused,), -torch.inf)])
    assert effective_sample_size(log_weights) == used


@pytest.mark.parametrize("std_p", [1e-3, 0.2, 1.0, 3.0, 300.0])
@pytest.mark.parametrize(("ratio", "finite"), [(1.4, True), (1.4143, False)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_boundary_is_the_square_root_of_two(std_p, ratio, finite, dtype):
    both = tensor([[std_p, std_p], [std_p / 2, ratio * std_p]], dtype=dtype)
    assert k3_variance_is_finite(*both).item() is finite


def test_the_boundary_does_not_overflow_in_half_precision():
    std = tensor([300.0], dtype=torch.float16)  # its square is beyond 65504
    assert k3_variance_is_finite(std, std)
    assert not k3_variance_is_finite(std, 2 * std)


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_no_variance_is_finite_for_a_width_that_is_not_positive(std):
    assert not k3_variance_is_finite(tensor([1.0]), tensor([std]))
    assert not k3_variance_is_finite(tensor([std]), tensor([1.0]))


def test_inside_the_boundary_the_variance_is_the_integral():
    mp.dps = 20
    std_q = 1.3
    log_r = lambda x: x**2 / 2 - x**2 / (2 * std_q**2) - mp.log(std_q)  # noqa: E731
    density = lambda x: mp.exp(-(x**2) / 2) / sqrt(2 * mp.pi)  # noqa: E731
    second = quad(lambda x: density(x) * mp.exp(2 * log_r(x)), [-inf, 0, inf])
    expected = 1 / (std_q * sqrt(2 - std_q**2))  # closed form of E[r^2], at 1.69 < 2
    assert float(second) == pytest.approx(float(expected), rel=1e-8)
    assert k3_variance_is_finite(torch.ones(1), tensor([std_q]))


def test_outside_the_boundary_the_truncated_integral_grows_without_end():
    # E[r^2] over |x| < L, for the reference N(0, 2^2): its integrand is
    # exp(+x^2 / 4) / (4 sqrt(2 pi)) and each step of L multiplies the integral.
    grid = torch.linspace(-20, 20, 40001, dtype=torch.float64)
    integrand = (2 * Normal(0, 2).log_prob(grid) - Normal(0, 1).log_prob(grid)).exp()
    parts = [
        integrand[grid.abs() < limit].sum().item() for limit in (5.0, 10.0, 15.0, 20.0)
    ]
    assert all(b > 100 * a for a, b in itertools.pairwise(parts))
    assert not k3_variance_is_finite(torch.ones(1), tensor([2.0]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_k3_scatters_more_than_k1_with_a_wide_reference(seed):
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randn(100_000, generator=generator)
    log_p, log_q = Normal(0, 1).log_prob(actions), Normal(0, 2).log_prob(actions)
    spread = [f(log_p, log_q).std() for f in (k1, k3)]
    assert spread[1] > 3 * spread[0]
    assert best_coefficient(log_p, log_q) < 0.2


def test_shapes():
    log_p, log_q = torch.randn(2, 3, 4, 5)
    assert mean_and_error(log_p).error.shape == (3, 4)
    assert effective_sample_size(log_p).shape == (3, 4)
    assert best_coefficient(log_p, log_q).shape == (3, 4)
    assert k3_variance_is_finite(log_p.exp(), log_q.exp()).shape == (3, 4)


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=9))
def test_effective_size_is_the_square_of_the_sum_over_the_sum_of_squares(log_weights):
    size = effective_sample_size(tensor(log_weights, dtype=torch.float64))
    with mp.workdps(30):
        weights = [mp.exp(x) for x in log_weights]
        expected = sum(weights) ** 2 / sum(x**2 for x in weights)
    assert size.item() == pytest.approx(float(expected), rel=1e-12)


def test_effective_size_of_weights_one_two_three_is_36_over_14():
    log_weights = tensor([1.0, 2.0, 3.0], dtype=torch.float64).log()
    assert_close(effective_sample_size(log_weights).item(), 36 / 14)


def test_without_any_weight_or_with_an_infinite_one_there_is_no_size():
    for log_weights in (tensor([-torch.inf] * 2), tensor([0.0, torch.inf])):
        assert effective_sample_size(log_weights).isnan()


def test_no_sample_has_no_size_and_no_coefficient():
    with pytest.raises(ValueError, match="log_weights has no sample"):
        effective_sample_size(torch.zeros(3, 0))
    with pytest.raises(ValueError, match="log_p has no sample"):
        best_coefficient(torch.zeros(3, 0), torch.zeros(3, 0))


@pytest.mark.parametrize("log_ratio", [0.3, -2.0, 40.0, -40.0])
@pytest.mark.parametrize("samples", [3, 7, 10])
def test_equal_ratios_that_are_not_one_have_coefficient_zero_too(log_ratio, samples):
    """Their mean is rounded, so their spread is: not to be divided by itself."""
    log_p = torch.zeros(samples)
    assert best_coefficient(log_p, torch.full_like(log_p, log_ratio)) == 0


@pytest.mark.parametrize("shift", [-60.0, -30.0, 30.0, 60.0])
def test_a_coefficient_of_drifted_samples_keeps_its_digits_in_float32(shift):
    log_u = tensor([0.1, -0.2, 1.5, 0.4])
    found = best_coefficient(torch.zeros(4), log_u + shift)
    u = (log_u.double() + shift).exp()
    covariance = torch.cov(torch.stack([log_u.double(), u]))
    expected = covariance[0, 1] / covariance[1, 1]
    # The shift rounds the log-ratios to 60 * 6e-8.
    assert_close(found.double(), expected, rtol=1e-4, atol=0)


def test_one_coefficient_per_row_is_applied_to_its_row():
    log_p, log_q = -torch.rand(2, 3, 5, dtype=torch.float64)
    best = best_coefficient(log_p, log_q)
    found = control_variate(log_p, log_q, best)
    for row in range(3):
        expected = control_variate(log_p[row], log_q[row], best[row].item())
        assert_close(found[row], expected)


@pytest.mark.parametrize("shape", [(3, 5), (5,), (1,), (3, 1)])
def test_a_coefficient_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="coefficient is"):
        control_variate(torch.zeros(3, 5), torch.zeros(3, 5), torch.zeros(shape))


def test_a_sample_that_q_cannot_give_is_infinite_for_every_coefficient():
    log_p, log_q = tensor([-1.0, -1.0]), tensor([-1.0, -torch.inf])
    for coefficient in (0.0, 0.5, 1.0, 2.0):
        found = control_variate(log_p, log_q, coefficient)
        assert found.tolist() == [0, torch.inf]


def test_close_policies_keep_their_digits_near_coefficient_one():
    log_u = torch.linspace(-1e-4, 1e-4, 101)
    found = control_variate(torch.zeros(101), log_u, 1.0)
    exact = log_u.double().expm1() - log_u.double()
    # Relative to a value of 5e-9 that float32 holds with 6e-8 of itself.
    assert_close(found.double(), exact, rtol=1e-6, atol=1e-16)
