"""The KL of Gaussians with full covariance: torch's, a rotation's, and stable."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nan, tensor
from torch.autograd.functional import hessian
from torch.distributions import MultivariateNormal, kl_divergence
from torch.testing import assert_close

from snippets.exact.gaussian import kl_gaussian
from snippets.exact.multivariate_gaussian import kl_multivariate_gaussian


@st.composite
def two_gaussians(draw):
    """Means and Cholesky factors of P and Q over 1 to 4 dimensions."""
    dims = draw(st.integers(1, 4))

    def numbers(count, low, high):
        row = st.lists(st.floats(low, high), min_size=count, max_size=count)
        return tensor(draw(row), dtype=torch.float64)

    def factor():
        below = numbers(dims * dims, -1, 1).reshape(dims, dims).tril(-1)
        return below + numbers(dims, -1.5, 1.5).exp().diag()

    return numbers(dims, -3, 3), factor(), numbers(dims, -3, 3), factor()


@given(two_gaussians())
def test_agrees_with_torch(gaussians):
    mean_p, factor_p, mean_q, factor_q = gaussians
    p = MultivariateNormal(mean_p, scale_tril=factor_p)
    q = MultivariateNormal(mean_q, scale_tril=factor_q)
    # Conditions reach 1e4: solving loses that many digits in either.
    expected = kl_divergence(p, q)
    assert_close(kl_multivariate_gaussian(*gaussians), expected, rtol=1e-7, atol=1e-9)


@given(two_gaussians())
def test_is_the_diagonal_kl_where_nothing_is_correlated(gaussians):
    mean_p, factor_p, mean_q, factor_q = gaussians
    std_p, std_q = factor_p.diagonal(), factor_q.diagonal()
    full = kl_multivariate_gaussian(mean_p, std_p.diag(), mean_q, std_q.diag())
    assert_close(full, kl_gaussian(mean_p, std_p, mean_q, std_q))


@given(two_gaussians())
def test_a_rotation_of_the_action_changes_nothing(gaussians):
    mean_p, factor_p, mean_q, factor_q = gaussians
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(len(mean_p), len(mean_p)).double()).Q

    def turned(mean, factor):
        covariance = turn @ factor @ factor.T @ turn.T
        return turn @ mean, torch.linalg.cholesky((covariance + covariance.T) / 2)

    rows = (*turned(mean_p, factor_p), *turned(mean_q, factor_q))
    # Forming a covariance squares the condition of 1e4.
    plain = kl_multivariate_gaussian(*gaussians)
    assert_close(kl_multivariate_gaussian(*rows), plain, rtol=1e-6, atol=1e-8)


def test_the_mean_log_ratio_of_samples_of_p_is_within_its_error():
    torch.manual_seed(0)
    p = MultivariateNormal(torch.zeros(2), scale_tril=tensor([[1.0, 0.0], [0.8, 0.6]]))
    q = MultivariateNormal(torch.ones(2), scale_tril=tensor([[1.5, 0.0], [-0.5, 1.0]]))
    drawn = p.sample((100_000,))
    log_ratio = p.log_prob(drawn) - q.log_prob(drawn)
    error = log_ratio.std() / len(drawn) ** 0.5
    exact = kl_multivariate_gaussian(p.loc, p.scale_tril, q.loc, q.scale_tril)
    # Five standard errors: a right value is outside once in two million seeds.
    assert abs(log_ratio.mean() - exact) < 5 * error


@given(two_gaussians())
def test_is_exactly_zero_for_the_same_policy(gaussians):
    mean, factor, *_ = gaussians
    assert kl_multivariate_gaussian(mean, factor, mean, factor) == 0


def test_the_curvature_at_the_same_policy_is_the_fisher_information():
    mean = tensor([0.5, -1.0], dtype=torch.float64)
    factor = tensor([[1.0, 0.0], [0.5, 0.3]], dtype=torch.float64)
    fisher = (factor @ factor.T).inverse()  # of the means
    for kl in (
        lambda x: kl_multivariate_gaussian(x, factor, mean, factor),
        lambda x: kl_multivariate_gaussian(mean, factor, x, factor),
    ):
        assert_close(hessian(kl, mean), fisher)


def test_keeps_its_digits_where_the_policies_nearly_agree():
    mean, factor = torch.zeros(2), tensor([[1.0, 0.0], [0.5, 0.3]])
    rows = mean, factor * 1.001, mean, factor
    exact = kl_multivariate_gaussian(*(x.double() for x in rows))
    # The change is exact where it is small; the solve rounds it a few times at 1e-7.
    rtol = 1e-5
    assert_close(kl_multivariate_gaussian(*rows).double(), exact, rtol=rtol, atol=0)


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_units_do_not_matter(scale):
    mean_p, mean_q = tensor([0.0, 1.0]), tensor([1.0, 0.0])
    factor_p, factor_q = torch.eye(2), tensor([[2.0, 0.0], [0.5, 1.0]])
    rows = mean_p, factor_p, mean_q, factor_q
    plain = kl_multivariate_gaussian(*rows)
    assert_close(kl_multivariate_gaussian(*(x * scale for x in rows)), plain)


def test_agrees_with_quadrature_in_two_dimensions():
    factor_p = tensor([[1.0, 0.0], [0.5, 0.8]], dtype=torch.float64)
    factor_q = tensor([[1.2, 0.0], [-0.3, 1.0]], dtype=torch.float64)
    mean_p, mean_q = torch.zeros(2).double(), tensor([0.5, 0.0], dtype=torch.float64)
    line = torch.linspace(-10, 10, 201, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)

    def log_density(mean, factor):
        precision = (factor @ factor.T).inverse()
        centred = grid - mean
        quadratic = (centred @ precision * centred).sum(-1)
        return -quadratic / 2 - math.log(2 * math.pi) - factor.det().log()

    p, q = log_density(mean_p, factor_p), log_density(mean_q, factor_q)
    exact = (p.exp() * (p - q)).sum() * (line[1] - line[0]) ** 2
    # A sum over a grid ten times finer than a Gaussian has errors below rounding.
    assert_close(kl_multivariate_gaussian(mean_p, factor_p, mean_q, factor_q), exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    mean, factor = torch.zeros(2, dtype=dtype), torch.eye(2, dtype=dtype)
    kl = kl_multivariate_gaussian(mean + 0.3, factor, mean, 2 * factor)
    shift = torch.tensor(0.3, dtype=dtype).double() / 2
    exact = shift.square() + 1 / 4 - 1 + 2 * tensor(2.0).double().log()
    eps = torch.finfo(dtype).eps
    # Rounding to nearest is off by at most half a unit in the last place.
    assert_close(kl.double(), exact, rtol=0.51 * eps, atol=0)


def test_keeps_batches():
    mean, factor = torch.zeros(5, 3), torch.eye(3).expand(5, 3, 3)
    assert kl_multivariate_gaussian(mean, factor, mean + 1, factor).shape == (5,)


@pytest.mark.parametrize(
    "factor",
    [
        [[1.0, 0.5], [0.5, 1.0]],  # not lower triangular
        [[1.0, 0.0], [0.5, -1.0]],
        [[1.0, 0.0], [0.5, nan]],
        [[0.0, 0.0], [0.5, 1.0]],
    ],
)
def test_what_is_no_factor_makes_its_row_nan(factor):
    mean, good = torch.zeros(2, 2), torch.eye(2).repeat(2, 1, 1)
    wrong = good.clone()
    wrong[1] = tensor(factor)
    for rows in ((mean, good, mean, wrong), (mean, wrong, mean, good)):
        kl = kl_multivariate_gaussian(*rows)
        assert kl[0] == 0
        assert kl[1].isnan()


@given(two_gaussians(), st.floats(-1e-3, 1e-3))
def test_is_never_negative_in_float32_however_close(gaussians, change):
    mean, factor, other, _ = (x.float() for x in gaussians)
    near = (mean + change * other, factor * (1 + change))
    assert kl_multivariate_gaussian(mean, factor, *near) >= 0
    assert kl_multivariate_gaussian(*near, mean, factor) >= 0


@given(two_gaussians())
def test_gradient_is_the_derivative(gaussians):
    leaves = [x.requires_grad_() for x in gaussians]

    def kl(mean_p, factor_p, mean_q, factor_q):
        rows = mean_p, factor_p.tril(), mean_q, factor_q.tril()
        return kl_multivariate_gaussian(*rows)

    # Deviations reach exp(-1.5): slopes reach 1e4, and differences lose digits.
    assert torch.autograd.gradcheck(kl, leaves, rtol=1e-2, atol=1e-3)


def test_refuses_shapes_that_do_not_match():
    with pytest.raises(ValueError, match="factor_p is"):
        kl_multivariate_gaussian(
            torch.zeros(4, 2), torch.eye(2), torch.zeros(4, 2), torch.eye(2)
        )
    with pytest.raises(ValueError, match="mean_p is"):
        kl_multivariate_gaussian(
            torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3)
        )
