"""`kl_gaussian` sums over action dimensions, and refuses what would sum over others."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.autograd.functional import hessian
from torch.distributions import Independent, Normal, kl_divergence
from torch.testing import assert_close

from snippets.exact.gaussian import kl_gaussian


@st.composite
def two_gaussians(draw):
    """Means and standard deviations of P and Q over 1 to 4 dimensions."""
    dims = draw(st.integers(1, 4))

    def row(low, high):
        numbers = st.lists(st.floats(low, high), min_size=dims, max_size=dims)
        return tensor(draw(numbers), dtype=torch.float64)

    return row(-5, 5), row(-3, 3).exp(), row(-5, 5), row(-3, 3).exp()


@given(two_gaussians())
def test_agrees_with_torch(gaussians):
    mean_p, std_p, mean_q, std_q = gaussians
    p, q = Independent(Normal(mean_p, std_p), 1), Independent(Normal(mean_q, std_q), 1)
    assert_close(kl_gaussian(*gaussians), kl_divergence(p, q))


@pytest.mark.parametrize(
    "parameters", [(0, 1, 1, 2), (0.5, 0.3, 0, 1), (2, 3, -1, 0.5)]
)
def test_agrees_with_quadrature(parameters):
    mean_p, std_p, mean_q, std_q = parameters
    with mpmath.workdps(30):

        def integrand(x):
            p = mpmath.npdf(x, mean_p, std_p)
            q = mpmath.npdf(x, mean_q, std_q)
            return p * mpmath.log(p / q)

        ends = [mean_p + k * std_p for k in range(-12, 13, 3)]
        exact = float(mpmath.quad(integrand, ends))
    rows = (tensor([x], dtype=torch.float64) for x in parameters)
    # Beyond 12 deviations P holds 4e-33 of its mass.
    assert_close(kl_gaussian(*rows).item(), exact, rtol=1e-12, atol=0)


def test_the_mean_log_ratio_of_samples_of_p_is_within_its_error():
    torch.manual_seed(0)
    p = tensor([0.0, 1.0]), tensor([1.0, 0.5])
    q = tensor([0.5, 0.5]), tensor([1.2, 0.8])
    drawn = Normal(*p).sample((100_000,))
    log_ratio = (Normal(*p).log_prob(drawn) - Normal(*q).log_prob(drawn)).sum(-1)
    error = log_ratio.std() / len(drawn) ** 0.5
    # Five standard errors: a right value is outside once in two million seeds.
    assert abs(log_ratio.mean() - kl_gaussian(*p, *q)) < 5 * error


@given(two_gaussians())
def test_is_exactly_zero_for_the_same_policy(gaussians):
    mean, std, *_ = gaussians
    assert kl_gaussian(mean, std, mean, std) == 0


@given(two_gaussians())
def test_gradient_is_the_derivative(gaussians):
    leaves = [x.requires_grad_() for x in gaussians]
    # The smallest deviation is exp(-3): slopes reach 1e5, and differences lose digits.
    assert torch.autograd.gradcheck(kl_gaussian, leaves, rtol=1e-2)


@given(two_gaussians())
def test_independent_dimensions_add_up(gaussians):
    alone = [
        kl_gaussian(*row) for row in zip(*(x.split(1) for x in gaussians), strict=True)
    ]
    assert_close(kl_gaussian(*gaussians), torch.stack(alone).sum())


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_units_do_not_matter(scale):
    rows = tensor([[0.0], [1.0], [1.0], [2.0]]) * scale
    plain = tensor(math.log(2) + 2 / 8 - 1 / 2)
    assert_close(kl_gaussian(*rows), plain.float())


@pytest.mark.parametrize(("narrow", "wide"), [(1e-30, 1e30), (1e-30, 1.0), (1e-9, 1.0)])
def test_a_ratio_that_underflows_has_a_finite_divergence(narrow, wide):
    mean = tensor([0.0])
    std_p = tensor([narrow], requires_grad=True)
    kl = kl_gaussian(mean, std_p, mean, tensor([wide]))
    assert_close(
        kl.item(), math.log(wide) - math.log(narrow) - 1 / 2, rtol=1e-6, atol=0
    )
    kl.backward()
    assert_close(std_p.grad, tensor([-1 / narrow]))


def test_what_float32_cannot_hold_is_infinite_not_nan():
    mean, narrow, wide = tensor([0.0]), tensor([1e-30]), tensor([1e30])
    assert kl_gaussian(mean, wide, mean, narrow) == inf
    assert kl_gaussian(wide, narrow, mean, narrow) == inf


@given(st.integers(1, 20), st.floats(1e-3, 1e3))
def test_keeps_its_digits_where_the_widths_nearly_agree(power, scale):
    mean, std = tensor([0.0]), tensor([scale])
    wider = std * (1 + 2.0**-power)
    exact = kl_gaussian(*(x.double() for x in (mean, wider, mean, std)))
    # The change is exact where it is small: what follows rounds at 1e-7 a few times.
    assert_close(kl_gaussian(mean, wider, mean, std).double(), exact, rtol=1e-6, atol=0)


@given(st.floats(1e-3, 1e3), st.floats(-1e-6, 1e-6))
def test_is_never_negative(scale, change):
    mean, std = tensor([0.0]), tensor([scale])
    assert kl_gaussian(mean, std * (1 + change), mean, std) >= 0


def test_gradient_vanishes_at_the_same_policy():
    rows = [tensor([x], requires_grad=True) for x in (0.3, 0.7, 0.3, 0.7)]
    kl_gaussian(*rows).backward()
    assert all(row.grad == 0 for row in rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    torch.manual_seed(0)
    mean_p, mean_q = torch.randn(2, 8, 6).to(dtype)
    std_p, std_q = torch.rand(2, 8, 6).add(0.5).to(dtype)
    rows = mean_p, std_p, mean_q, std_q
    exact = kl_gaussian(*(x.double() for x in rows))
    # Rounding to nearest is off by at most half a unit in the last place.
    eps = torch.finfo(dtype).eps
    assert_close(kl_gaussian(*rows).double(), exact, rtol=0.51 * eps, atol=0)


def test_an_empty_batch_has_no_divergences():
    empty = torch.ones(0, 3)
    assert kl_gaussian(empty, empty, empty, empty).shape == (0,)


def test_one_deviation_can_serve_a_whole_batch():
    mean, std = torch.randn(5, 3), tensor([0.5, 1.0, 2.0])
    full = kl_gaussian(mean, std.expand(5, 3), -mean, std.expand(5, 3))
    assert_close(kl_gaussian(mean, std, -mean, std), full)


def test_mixed_types_are_promoted():
    mean, std = tensor([3.0]), tensor([1.0])
    half = kl_gaussian(mean.bfloat16(), std, mean.bfloat16() * 0, std)
    assert half.dtype == torch.float32
    assert_close(half, tensor(4.5))


@pytest.mark.parametrize("place", range(4))
def test_refuses_integers(place):
    rows = [torch.ones(1) for _ in range(4)]
    rows[place] = rows[place].long()
    with pytest.raises(ValueError, match="must be floating point"):
        kl_gaussian(*rows)


def test_is_differentiable_twice():
    rows = [tensor([x], dtype=torch.float64) for x in (0.3, 0.7, 0.5, 0.9)]
    leaves = [x.requires_grad_() for x in rows]
    assert torch.autograd.gradgradcheck(kl_gaussian, leaves)


def test_the_curvature_at_the_same_policy_is_the_fisher_information():
    mean, std = tensor([[0.5, -1.0], [0.3, 2.0]], dtype=torch.float64)
    p = torch.cat([mean, std])
    fisher = torch.cat([std**-2, 2 * std**-2]).diag()
    for kl in (
        lambda x: kl_gaussian(*x.split(2), mean, std),
        lambda x: kl_gaussian(mean, std, *x.split(2)),
    ):
        assert_close(hessian(kl, p), fisher)


def test_torch_leaves_the_sum_to_the_caller():
    p = Normal(torch.zeros(4, 2), torch.ones(4, 2))
    assert kl_divergence(p, p).shape == (4, 2)


def test_torch_turns_a_batch_into_a_square():
    row, column = Normal(torch.zeros(4), 1.0), Normal(torch.zeros(4, 1), 1.0)
    assert kl_divergence(row, column).shape == (4, 4)


@pytest.mark.parametrize(
    "shapes", [[(4,), (4, 1)], [(4, 1), (4, 2)], [(), ()], [(4, 2), (1, 2)]]
)
def test_refuses_shapes_that_only_broadcasting_would_mend(shapes):
    p, q = (torch.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"mean_q|mean_p|std_p"):
        kl_gaussian(p, p, q, q)


@pytest.mark.parametrize("wrong", [0.0, -1.0, nan, inf])
@pytest.mark.parametrize("place", [1, 3])
def test_a_deviation_that_is_not_positive_makes_its_row_nan(wrong, place):
    rows = [torch.ones(2, 3) for _ in range(4)]
    rows[place][1, 2] = wrong
    kl = kl_gaussian(*rows)
    assert kl[0] == 0
    assert kl[1].isnan()


def test_a_small_change_keeps_its_digits_in_float32():
    torch.manual_seed(0)
    mean, std = torch.zeros(1000, 1), torch.full((1000, 1), 0.01)
    new = std * (1 + 1e-3 * torch.randn(1000, 1))
    exact = kl_gaussian(mean.double(), new.double(), mean.double(), std.double())
    ours = kl_gaussian(mean, new, mean, std)
    # The change is a difference of neighbours, and exact; what follows rounds at 1e-7.
    assert_close(ours.double(), exact, rtol=1e-6, atol=0)
    theirs = kl_divergence(Normal(mean, new), Normal(mean, std))[:, 0]
    assert ((theirs - exact) / exact).abs().median() > 1e-5  # torch's is worse
