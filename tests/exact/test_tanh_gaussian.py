"""Squashing changes neither KL; clipping lowers both."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.autograd.functional import hessian
from torch.distributions import (
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
)
from torch.testing import assert_close

from snippets.exact.gaussian import kl_gaussian
from snippets.exact.tanh_gaussian import kl_clipped_gaussian, tanh_log_density


@st.composite
def two_gaussians(draw):
    """Means and standard deviations of P and Q over 1 to 3 dimensions."""
    dims = draw(st.integers(1, 3))

    def row(low, high):
        numbers = st.lists(st.floats(low, high), min_size=dims, max_size=dims)
        return tensor(draw(numbers), dtype=torch.float64)

    return row(-2, 2), row(-2, 1).exp(), row(-2, 2), row(-2, 1).exp()


def squashed(mean, std):
    base = Independent(Normal(mean, std), 1)
    return TransformedDistribution(base, TanhTransform(cache_size=1))


@pytest.mark.parametrize("parameters", [(0, 1, 1, 2), (0.5, 0.3, 0, 1)])
def test_agrees_with_quadrature_over_the_action(parameters):
    mean_p, std_p, mean_q, std_q = parameters
    with mpmath.workdps(30):

        def density(action, mean, std):
            return mpmath.npdf(mpmath.atanh(action), mean, std) / (1 - action**2)

        def integrand(action):
            p = density(action, mean_p, std_p)
            return p * mpmath.log(p / density(action, mean_q, std_q)) if p else 0

        ends = [mpmath.tanh(mean_p + k * std_p) for k in range(-9, 10, 3)]
        exact = float(mpmath.quad(integrand, ends))
    rows = (tensor([x], dtype=torch.float64) for x in parameters)
    # Beyond nine deviations P holds 2e-19 of its mass.
    assert_close(kl_gaussian(*rows).item(), exact, rtol=1e-10, atol=0)


def test_the_mean_log_ratio_of_squashed_samples_is_within_its_error():
    torch.manual_seed(0)
    p = tensor([0.0, 1.0]), tensor([1.0, 0.5])
    q = tensor([0.5, 0.5]), tensor([1.2, 0.8])
    before = Normal(*p).sample((100_000,))
    log_p, log_q = (
        tanh_log_density(mean=mean, std=std, before=before) for mean, std in (p, q)
    )
    log_ratio = log_p - log_q
    error = log_ratio.std() / len(before) ** 0.5
    # Five standard errors: a right value is outside once in two million seeds.
    assert abs(log_ratio.mean() - kl_gaussian(*p, *q)) < 5 * error


@given(two_gaussians())
def test_the_density_is_that_of_torch(gaussians):
    mean, std, before, _ = gaussians
    expected = squashed(mean, std).log_prob(before.tanh())
    # torch recovers the sample with atanh, which loses digits towards the ends.
    assert_close(
        tanh_log_density(mean=mean, std=std, before=before),
        expected,
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "row", [(0.0, 1.0, 20.0), (0.25, 1e-3, 0.251), (-2.0, 0.125, -2.5), (1.0, 1e3, 0.0)]
)
def test_the_density_agrees_with_sixty_digits(row):
    with mpmath.workdps(60):
        mean, std, before = (mpmath.mpf(x) for x in row)
        slope = 1 - mpmath.tanh(before) ** 2
        exact = float(mpmath.log(mpmath.npdf(before, mean, std) / slope))
    mean, std, before = (tensor([x], dtype=torch.float64) for x in row)
    got = tanh_log_density(mean=mean, std=std, before=before).item()
    # A sample one deviation of 1e-3 away from 0.25 has lost eight bits of the distance.
    assert_close(got, exact, rtol=1e-12, atol=0)


def test_the_density_is_right_where_tanh_rounds_to_one():
    far = tensor([20.0])
    assert far.tanh() == 1
    with mpmath.workdps(60):
        slope = 1 - mpmath.tanh(20) ** 2
        exact = float(mpmath.log(mpmath.npdf(20) / slope))
    for before in (far, -far):
        got = tanh_log_density(mean=0 * far, std=far / 20, before=before).item()
        assert_close(got, exact, rtol=1e-6, atol=0)


def test_the_density_and_its_gradient_are_finite_far_out():
    mean, std = torch.zeros(1, requires_grad=True), torch.ones(1, requires_grad=True)
    for x in (1e3, -1e3, 1e15, -1e15):
        before = tensor([x], requires_grad=True)
        density = tanh_log_density(mean=mean, std=std, before=before)
        assert density.isfinite()
        for slope in torch.autograd.grad(density, (mean, std, before)):
            assert slope.isfinite()


@given(two_gaussians())
def test_the_gradient_of_the_density_is_the_derivative(gaussians):
    leaves = [x.requires_grad_() for x in gaussians[:3]]

    def density(mean, std, before):
        return tanh_log_density(mean=mean, std=std, before=before)

    # Deviations reach exp(-2): slopes reach 1e4, and differences lose digits.
    assert torch.autograd.gradcheck(density, leaves, rtol=1e-2)


def test_a_density_without_a_positive_deviation_is_nan():
    std = tensor([[1.0], [0.0], [-1.0]])
    density = tanh_log_density(mean=torch.zeros(3, 1), std=std, before=torch.ones(3, 1))
    assert density.isnan().tolist() == [False, True, True]


def test_the_density_refuses_a_batch_beside_a_column():
    with pytest.raises(ValueError, match="std is"):
        tanh_log_density(
            mean=torch.zeros(3, 2), std=torch.ones(3, 1), before=torch.zeros(3, 2)
        )


@given(two_gaussians())
def test_clipped_dimensions_add_up(gaussians):
    alone = [
        kl_clipped_gaussian(*row, -1.0, 1.0)
        for row in zip(*(x.split(1) for x in gaussians), strict=True)
    ]
    whole = kl_clipped_gaussian(*gaussians, -1.0, 1.0)
    assert_close(whole, torch.stack(alone).sum())


@given(two_gaussians(), st.floats(-2, 0), st.floats(0.1, 2))
def test_clipping_never_raises_the_divergence(gaussians, low, high):
    clipped = kl_clipped_gaussian(*gaussians, low, high)
    whole = kl_gaussian(*gaussians)
    assert 0 <= clipped <= whole * (1 + 1e-12)  # rounding of a dozen terms


@pytest.mark.parametrize("parameters", [(0, 1, 1, 2), (0.5, 0.3, 0, 1), (2, 1, -1, 1)])
def test_clipping_agrees_with_quadrature(parameters):
    mean_p, std_p, mean_q, std_q = parameters
    with mpmath.workdps(30):

        def integrand(x):
            p, q = mpmath.npdf(x, mean_p, std_p), mpmath.npdf(x, mean_q, std_q)
            return p * mpmath.log(p / q)

        def atom(p, q):
            return p * mpmath.log(p / q)

        below = [mpmath.ncdf(-1, m, s) for m, s in ((mean_p, std_p), (mean_q, std_q))]
        above = [mpmath.ncdf(-1, -m, s) for m, s in ((mean_p, std_p), (mean_q, std_q))]
        exact = mpmath.quad(integrand, [-1, 0, 1]) + atom(*below) + atom(*above)
    rows = (tensor([x], dtype=torch.float64) for x in parameters)
    got = kl_clipped_gaussian(*rows, -1.0, 1.0).item()
    assert_close(got, float(exact), rtol=1e-12, atol=0)


@given(two_gaussians())
def test_gradient_of_the_clipped_divergence_is_the_derivative(gaussians):
    leaves = [x.requires_grad_() for x in gaussians]

    def clipped(*rows):
        return kl_clipped_gaussian(*rows, -1.0, 1.0)

    # Slopes reach 1e4 where a deviation is exp(-2): differences lose digits.
    assert torch.autograd.gradcheck(clipped, leaves, rtol=1e-2)


@given(two_gaussians())
def test_is_exactly_zero_for_the_same_policy(gaussians):
    mean, std, *_ = gaussians
    assert kl_clipped_gaussian(mean, std, mean, std, -1.0, 1.0) == 0


def test_the_curvature_at_the_same_policy_is_the_fisher_information():
    p = tensor([[0.5], [0.3]], dtype=torch.float64)
    fisher = tensor([0.3**-2, 2 * 0.3**-2], dtype=torch.float64).diag()
    for kl in (
        lambda x: kl_gaussian(*x, *p).sum(),
        lambda x: kl_gaussian(*p, *x).sum(),
    ):
        assert_close(hessian(kl, p).reshape(2, 2), fisher)


def test_the_curvature_of_the_clipped_divergence_is_what_clipping_leaves_of_it():
    mean, std = 0.2, 0.8
    low, high = ((x - mean) / std for x in (-1.0, 1.0))
    inside = mpmath.quad(lambda z: z**2 * mpmath.npdf(z), [low, high])
    ends = mpmath.npdf(low) ** 2 / mpmath.ncdf(low)
    ends += mpmath.npdf(high) ** 2 / mpmath.ncdf(-high)
    fisher = tensor(float((inside + ends) / std**2), dtype=torch.float64)  # of the mean
    p = tensor([mean, std], dtype=torch.float64)[:, None]
    for kl in (
        lambda x: kl_clipped_gaussian(x, p[1], *p, -1.0, 1.0).sum(),
        lambda x: kl_clipped_gaussian(*p, x, p[1], -1.0, 1.0).sum(),
    ):
        assert_close(hessian(kl, p[0]).squeeze(), fisher)


def test_bounds_far_away_clip_nothing():
    rows = [tensor([x], dtype=torch.float64) for x in (0.0, 1.0, 1.0, 2.0)]
    expected = tensor(math.log(2) + 2 / 8 - 1 / 2, dtype=torch.float64)
    assert_close(kl_clipped_gaussian(*rows, -30.0, 30.0), expected)


def test_refuses_bounds_in_the_wrong_order():
    one = tensor([1.0])
    with pytest.raises(ValueError, match="low is 1"):
        kl_clipped_gaussian(one, one, one, one, 1.0, -1.0)


@pytest.mark.parametrize("place", [1, 3])
def test_clipping_gives_nan_where_the_gaussian_does(place):
    rows = [torch.ones(2, 1) for _ in range(4)]
    rows[place][1] = -1.0
    assert kl_clipped_gaussian(*rows, -1.0, 1.0).isnan().tolist() == [False, True]


def test_clipping_refuses_what_the_gaussian_refuses():
    one = tensor([1.0])
    with pytest.raises(ValueError, match="mean_p is"):
        kl_clipped_gaussian(one, one, torch.ones(4, 2), one, -1.0, 1.0)
    with pytest.raises(ValueError, match="std_q must be floating point"):
        kl_clipped_gaussian(one, one, one, one.long(), -1.0, 1.0)


@pytest.mark.parametrize(("low", "high"), [(-inf, 0.4), (-0.4, inf), (-inf, inf)])
def test_a_clip_on_one_side_only_is_finite_in_value_and_gradient(low, high):
    rows = [0.2, 0.7, -0.1, 1.1]
    leaves = [tensor([x], dtype=torch.float64, requires_grad=True) for x in rows]
    kl = kl_clipped_gaussian(*leaves, low, high)
    far = [x if abs(x) < inf else math.copysign(40, x) for x in (low, high)]
    # A bound 50 deviations away has a mass of 1e-545 beyond it.
    assert_close(kl, kl_clipped_gaussian(*leaves, *far), rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(
        lambda *x: kl_clipped_gaussian(*x, low, high), leaves
    )
    if low == -inf and high == inf:
        assert_close(kl, kl_gaussian(*leaves))


@pytest.mark.parametrize("change", [1e-9, 1e-6, 1e-3, 0.05, 0.12, 1.0])
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-inf, 0.0), (0.5, 3.0)])
def test_a_small_change_keeps_its_digits(change, bounds):
    mean, std, low, high = map(mpmath.mpf, (0.2, 0.8, *bounds))
    with mpmath.workdps(60):
        moved = mpmath.mpf(0.2 + change), mpmath.mpf(0.8 * (1 + change))

        def integrand(x):
            p, q = mpmath.npdf(x, mean, std), mpmath.npdf(x, *moved)
            return p * mpmath.log(p / q)

        least = max(low, mean - 40 * std)
        exact = mpmath.quad(integrand, mpmath.linspace(least, high, 12))
        for end, sign in ((low, 1), (high, -1)):
            p = mpmath.ncdf(sign * (end - mean) / std)
            if p:
                q = mpmath.ncdf(sign * (end - moved[0]) / moved[1])
                exact += p * mpmath.log(p / q)
    rows = [tensor([float(x)], dtype=torch.float64) for x in (mean, std, *moved)]
    got = kl_clipped_gaussian(*rows, *bounds).item()
    # Float64 rounds the numbers, of which the change is what counts.
    assert_close(got, float(exact), rtol=1e-12 + 1e-15 / change, atol=0)


@given(two_gaussians(), st.floats(-1e-3, 1e-3))
def test_clipping_is_never_negative_however_close(gaussians, change):
    mean, std, other, _ = (x.float() for x in gaussians)
    near = mean + change * other, std * (1 + change)
    for bounds in ((-1.0, 1.0), (-inf, 0.5)):
        assert kl_clipped_gaussian(mean, std, *near, *bounds) >= 0


def test_clipping_in_half_precision_is_rounded_once():
    rows = [tensor([x], dtype=torch.bfloat16) for x in (0.0, 1.0, 0.5, 2.0)]
    exact = kl_clipped_gaussian(*(x.double() for x in rows), -1.0, 1.0)
    got = kl_clipped_gaussian(*rows, -1.0, 1.0)
    # Rounding to nearest is off by at most half a unit in the last place.
    eps = torch.finfo(torch.bfloat16).eps
    assert_close(got.double(), exact, rtol=0.51 * eps, atol=0)
    assert got.dtype == torch.bfloat16


def test_a_policy_that_always_saturates_is_finite():
    one = tensor([1.0])
    kl = kl_clipped_gaussian(50 * one, one, -50 * one, one, -1.0, 1.0)
    # P always takes the upper end; Q takes it beyond 51 deviations.
    assert_close(kl, -torch.special.log_ndtr(tensor(-51.0)))
