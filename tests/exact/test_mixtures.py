"""Bounds lie above the integral, samples agree with it, and torch has no rule."""

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.autograd.functional import hessian
from torch.distributions import kl_divergence
from torch.testing import assert_close

from snippets.exact.gaussian import kl_gaussian
from snippets.exact.mixtures import (
    kl_mixture_sampled,
    matched_bound,
    mixture,
    variational_bound,
)


@st.composite
def two_mixtures(draw):
    """Two mixtures of as many components, in one dimension."""
    count = draw(st.integers(1, 3))

    def row(low, high):
        numbers = st.lists(st.floats(low, high), min_size=count, max_size=count)
        return tensor(draw(numbers), dtype=torch.float64)

    def one():
        return mixture(row(-1, 1), row(-2, 2)[:, None], row(-0.7, 0.7).exp()[:, None])

    return one(), one()


def integral(p, q):
    """KL(P || Q) on a fine grid that both fit into."""
    x = torch.linspace(-25, 25, 20_001, dtype=torch.float64)[:, None]
    log_p, log_q = p.log_prob(x), q.log_prob(x)
    return torch.trapezoid(log_p.exp() * (log_p - log_q), x[:, 0])


def test_the_grid_is_good_to_ten_digits():
    p = mixture(tensor([0.3, -0.2]), tensor([[-1.0], [1.5]]), tensor([[0.5], [1.0]]))
    q = mixture(tensor([0.0]), tensor([[0.0]]), tensor([[2.0]]))

    def density(m):
        weights = m.mixture_distribution.probs.tolist()
        means = m.component_distribution.mean[:, 0].tolist()
        stds = m.component_distribution.stddev[:, 0].tolist()
        rows = list(zip(weights, means, stds, strict=True))
        return lambda x: sum(w * mpmath.npdf(x, a, b) for w, a, b in rows)

    one, other = density(p), density(q)
    exact = mpmath.quad(
        lambda x: one(x) * mpmath.log(one(x) / other(x)), [-20, -5, -1, 1, 5, 20]
    )
    # The parameters are float32.
    assert_close(integral(p, q).item(), float(exact), rtol=1e-6, atol=0)


@given(two_mixtures())
def test_both_bounds_are_bounds(mixtures):
    exact = integral(*mixtures)
    assert matched_bound(*mixtures) >= exact - 1e-9  # the grid's error
    assert variational_bound(*mixtures, 20) >= exact - 1e-9


@given(two_mixtures())
def test_more_iterations_are_never_looser(mixtures):
    bounds = [variational_bound(*mixtures, n) for n in (1, 2, 5, 50)]
    for tight, loose in zip(bounds[1:], bounds, strict=False):
        assert tight <= loose + 1e-12  # rounding


@given(two_mixtures())
def test_the_variational_bound_does_not_need_an_order(mixtures):
    p, q = mixtures
    turned = mixture(
        q.mixture_distribution.logits.flip(0),
        q.component_distribution.base_dist.loc.flip(0),
        q.component_distribution.base_dist.scale.flip(0),
    )
    assert_close(variational_bound(p, turned, 5), variational_bound(p, q, 5))


@given(two_mixtures())
def test_one_component_is_a_gaussian(mixtures):
    p, q = (
        mixture(torch.zeros(1).double(), *(x[:1] for x in (b.loc, b.scale)))
        for b in (m.component_distribution.base_dist for m in mixtures)
    )
    rows = [
        x[0]
        for m in (p, q)
        for b in [m.component_distribution.base_dist]
        for x in (b.loc, b.scale)
    ]
    assert_close(matched_bound(p, q), kl_gaussian(*rows))
    assert_close(variational_bound(p, q, 1), kl_gaussian(*rows))


def test_samples_agree_within_their_error():
    torch.manual_seed(0)
    p = mixture(tensor([0.3, -0.2]), tensor([[-1.0], [1.5]]), tensor([[0.5], [1.0]]))
    q = mixture(tensor([0.0, 0.0]), tensor([[0.0], [1.0]]), tensor([[2.0], [1.0]]))
    estimate = kl_mixture_sampled(p, q, 100_000)
    # Five standard errors: a right value is outside once in two million seeds.
    assert abs(estimate.mean - integral(p, q)) < 5 * estimate.error


def test_few_samples_can_say_less_than_zero_and_are_right_on_average():
    torch.manual_seed(0)
    mean = torch.zeros(10_000, 1, 1)
    p, q = (mixture(mean[..., 0], mean + x, torch.ones_like(mean)) for x in (0.0, 0.1))
    estimate = kl_mixture_sampled(p, q, 2)
    assert (estimate.mean < 0).any()
    error = estimate.mean.std() / len(mean) ** 0.5
    # Five standard errors, as above.
    assert abs(estimate.mean.mean() - 0.1**2 / 2) < 5 * error


def test_both_bounds_are_exactly_zero_for_one_and_the_same_gaussian():
    one = mixture(torch.zeros(1), tensor([[0.3]]), tensor([[0.7]]))
    assert matched_bound(one, one) == 0
    assert variational_bound(one, one, 3) == 0
    many = mixture(tensor([0.3, -0.2]), tensor([[-1.0], [1.5]]), torch.ones(2, 1))
    assert matched_bound(many, many) == 0


@pytest.mark.parametrize(
    "bound", [matched_bound, lambda p, q: variational_bound(p, q, 3)]
)
def test_the_curvature_of_one_gaussian_is_the_fisher_information(bound):
    logits, mean, std = tensor([[0.0], [0.5], [0.3]], dtype=torch.float64)
    fixed = mixture(logits, mean[:, None], std[:, None])

    def moved(x):
        return mixture(logits, x[:, None], std[:, None])

    for kl in (lambda x: bound(moved(x), fixed), lambda x: bound(fixed, moved(x))):
        assert_close(hessian(kl, mean).squeeze(), std[0] ** -2)


def test_keeps_batches():
    one = mixture(torch.zeros(4, 2), torch.randn(4, 2, 3), torch.ones(4, 2, 3))
    other = mixture(torch.zeros(4, 5), torch.randn(4, 5, 3), torch.ones(4, 5, 3))
    assert variational_bound(one, other, 3).shape == (4,)
    assert kl_mixture_sampled(one, other, 10).mean.shape == (4,)
    assert matched_bound(one, one).shape == (4,)


def test_torch_has_no_rule():
    one = mixture(torch.zeros(2), torch.zeros(2, 1), torch.ones(2, 1))
    with pytest.raises(NotImplementedError):
        kl_divergence(one, one)


def test_refuses_components_that_are_no_gaussians():
    laplace = torch.distributions.Laplace(torch.zeros(2, 1), torch.ones(2, 1))
    odd = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=torch.zeros(2)),
        torch.distributions.Independent(laplace, 1),
    )
    with pytest.raises(ValueError, match="components must be"):
        matched_bound(odd, odd)


def test_samples_carry_no_gradient_to_p_and_the_right_one_to_q():
    torch.manual_seed(0)
    logits, std = torch.zeros(1), torch.ones(1, 1)
    mean_p, mean_q = (tensor([[x]], requires_grad=True) for x in (0.0, 0.5))
    p, q = (mixture(logits, x, std) for x in (mean_p, mean_q))
    estimate = kl_mixture_sampled(p, q, 100_000)
    slope_p, slope_q = torch.autograd.grad(
        estimate.mean, (mean_p, mean_q), allow_unused=True
    )
    assert slope_p is None
    # The gradient is a mean of 100,000 numbers of deviation 1.
    assert abs(slope_q - 0.5) < 5 / 100_000**0.5


def test_a_masked_component_takes_no_part():
    mean, std = tensor([[-1.0], [1.5], [0.0]]), torch.ones(3, 1)
    free_p, free_q = tensor([0.3, -0.2]), tensor([0.1, 0.4])
    hidden = tensor([-inf])
    short = [mixture(x, mean[:2], std[:2]) for x in (free_p, free_q)]
    rows = [torch.cat([x, hidden]).requires_grad_() for x in (free_p, free_q)]
    long = [mixture(x, mean, std) for x in rows]
    for bound in (matched_bound, lambda p, q: variational_bound(p, q, 4)):
        assert_close(bound(*long), bound(*short))
        for slope in torch.autograd.grad(bound(*long), rows, retain_graph=True):
            assert slope.isfinite().all()
    assert_close(variational_bound(long[0], short[1], 4), variational_bound(*short, 4))
    assert_close(variational_bound(short[0], long[1], 4), variational_bound(*short, 4))


def test_refuses_shapes_that_do_not_match():
    with pytest.raises(ValueError, match=r"mean is \[3, 1\]"):
        mixture(torch.zeros(2), torch.zeros(3, 1), torch.ones(3, 1))
    with pytest.raises(ValueError, match=r"std is \[2\]"):
        mixture(torch.zeros(2), torch.zeros(2, 1), torch.ones(2))
    one = mixture(torch.zeros(2), torch.zeros(2, 1), torch.ones(2, 1))
    with pytest.raises(ValueError, match="iterations is 0"):
        variational_bound(one, one, 0)
    with pytest.raises(ValueError, match="1 samples"):
        kl_mixture_sampled(one, one, 1)


@given(two_mixtures(), st.floats(-1e-3, 1e-3))
def test_both_bounds_are_never_negative_however_close(mixtures, change):
    p, _ = mixtures
    part = p.component_distribution.base_dist
    near = mixture(p.mixture_distribution.logits, part.loc + change, part.scale)
    assert matched_bound(p, near) >= 0
    assert variational_bound(p, near, 3) >= 0
