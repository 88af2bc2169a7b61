"""Checks the frontier by sums, by ascent from the reference, and near its start."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from snippets.algorithms.language_models.overoptimisation import (
    fit_reward_curve,
    frontier,
)
from snippets.algorithms.regularised.optimal_policy import regularised_objective
from snippets.exact.categorical import kl_divergence_logits
from tests.strategies import numbers

BETAS = torch.tensor([3.0, 1.0, 0.3]).double()


@st.composite
def problems(draw):
    """A reference, a proxy and a true reward of four completions."""
    return [draw(numbers(4, largest=2)) for _ in range(3)]


def path(ref, proxy, true, betas):
    return frontier(ref_logits=ref, proxy_rewards=proxy, true_rewards=true, betas=betas)


def objective(new, ref, rewards, beta):
    return regularised_objective(
        new_logits=new, ref_logits=ref, rewards=rewards, beta=beta
    )


def fit(distance, rewards, bend):
    return fit_reward_curve(distance=distance, rewards=rewards, bend=bend)


def tilted(ref, proxy, beta):
    """The optimum as probabilities, from its definition."""
    weights = ref.softmax(-1) * (proxy / beta).exp()
    return weights / weights.sum()


@given(problems())
def test_the_gains_and_the_distance_are_sums_over_the_completions(problem):
    ref, proxy, true = problem
    found = path(ref, proxy, true, BETAS)
    for i, beta in enumerate(BETAS):
        policy = tilted(ref, proxy, beta)
        kl = (policy * (policy / ref.softmax(-1)).log()).sum()
        # The sum is of numbers near one, so its error is that of float64 near one.
        assert_close(found.distance[i] ** 2, kl, rtol=1e-9, atol=1e-14)
        assert_close(found.proxy[i], (policy - ref.softmax(-1)) @ proxy)
        assert_close(found.true[i], (policy - ref.softmax(-1)) @ true)


@given(problems(), problems())
def test_no_policy_is_above_the_frontier_of_the_proxy(problem, other):
    ref, proxy, true = problem
    found = path(ref, proxy, true, BETAS)
    for i, beta in enumerate(BETAS):
        start = (ref.softmax(-1) * proxy).sum()
        here = found.proxy[i] + start - beta * found.distance[i] ** 2
        assert here >= objective(other[0], ref, proxy, float(beta)) - 1e-12  # rounding


def ascend(ref, proxy, beta):
    """Logits that gradient ascent on the penalised proxy ends at."""
    logits = ref.clone().requires_grad_()
    # Until the gradient is 1e-10, not until a step looks small.
    options = {"tolerance_grad": 1e-10, "tolerance_change": 0.0, "max_iter": 500}
    optimiser = torch.optim.LBFGS([logits], line_search_fn="strong_wolfe", **options)

    def loss():
        optimiser.zero_grad()
        value = -objective(logits, ref, proxy, beta)
        value.backward()
        return value

    optimiser.step(loss)
    return logits.detach()


def test_ascent_on_the_penalised_proxy_ends_on_the_path():
    generator = torch.Generator().manual_seed(0)
    ref, proxy, true = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    found = path(ref, proxy, true, BETAS)
    for i, beta in enumerate(BETAS.tolist()):
        policy = ascend(ref, proxy, beta)
        moved = policy.softmax(-1) - ref.softmax(-1)
        # A gradient of 1e-10, over curvatures of 0.01 and more.
        tolerance = {"rtol": 1e-6, "atol": 1e-8}
        kl = kl_divergence_logits(policy, ref)
        assert_close(found.distance[i] ** 2, kl, **tolerance)
        assert_close(found.true[i], moved @ true, **tolerance)
        assert_close(found.proxy[i], moved @ proxy, **tolerance)


@given(problems())
def test_the_truth_rises_while_it_goes_along_with_the_proxy(problem):
    ref, proxy, true = problem
    for beta in BETAS:
        policy = tilted(ref, proxy, beta)
        together = policy @ (proxy * true) - (policy @ proxy) * (policy @ true)
        step = 1e-4  # in 1 / beta: the error of a central difference is its square
        betas = 1 / (1 / beta + torch.tensor([-step, step]).double())
        moved = path(ref, proxy, true, betas).true.diff()[0] / (2 * step)
        assert_close(moved, together, rtol=1e-5, atol=1e-6)


@given(problems())
def test_the_proxy_and_the_distance_only_rise(problem):
    ref, proxy, true = problem
    found = path(ref, proxy, true, BETAS)
    assert (found.proxy.diff() >= -1e-12).all()  # rounding of means of numbers below 2
    assert (found.distance.diff() >= -1e-12).all()


@given(problems())
def test_a_proxy_that_is_right_never_misleads(problem):
    ref, _, true = problem
    found = path(ref, true, true, BETAS)
    assert (found.true.diff() >= -1e-12).all()  # rounding of means of numbers below 2
    assert (found.true >= -1e-12).all()


@given(problems())
def test_a_proxy_of_the_opposite_sign_loses_what_it_gains(problem):
    ref, _, true = problem
    found = path(ref, -true, true, BETAS)
    assert_close(found.true, -found.proxy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_proxy_that_says_nothing_goes_nowhere(dtype):
    generator = torch.Generator().manual_seed(0)
    eps = torch.finfo(dtype).eps
    for _ in range(200):
        ref = torch.randn(6, generator=generator, dtype=dtype)
        same = torch.full_like(ref, 0.3)
        found = path(ref, same, ref, BETAS)
        # Twenty steps of rounding, in a logit below 5. A root of a KL that is rounded
        # before would be nan, or about the root of eps.
        assert (found.distance < 100 * eps).all()


def test_near_the_reference_the_distance_keeps_its_digits():
    generator = torch.Generator().manual_seed(0)
    ref, proxy = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    policy = ref.softmax(-1)
    variance = policy @ proxy.square() - (policy @ proxy) ** 2
    beta = torch.tensor([1e6]).double()
    found = path(ref, proxy, proxy, beta)
    # The next term of the series is 1 / beta smaller, and log-probabilities have an
    # error of 1e-16 in steps of 1 / beta.
    assert_close(found.distance, (variance / 2).sqrt() / beta, rtol=1e-5, atol=0)
    assert_close(found.proxy, variance / beta, rtol=1e-5, atol=0)


def test_far_from_the_reference_the_distance_is_that_of_the_best_completion():
    ref = torch.tensor([0.0, 1.0, -2.0]).double()
    found = path(ref, torch.tensor([0.0, 0.5, 1.0]).double(), ref, BETAS[:1] / 1e4)
    assert_close(found.distance**2, -ref.log_softmax(-1)[2:])


def test_a_curve_of_the_family_is_found_again():
    distance = torch.linspace(0.1, 3.0, 30).double()
    for shape in (distance, distance.log()):
        found = fit(distance, distance * (2.0 - 0.5 * shape), shape)
        assert_close(found.alpha, torch.tensor(2.0).double())
        assert_close(found.beta, torch.tensor(0.5).double())
        assert found.residual < 1e-12  # float64, of numbers near 3


def test_a_residual_is_in_units_of_reward():
    distance = torch.tensor([1.0, 2.0, 3.0]).double()
    gain = torch.tensor([0.0, 1.0, 0.0]).double()
    found = fit(distance, gain, distance)
    left = gain - distance * (found.alpha - found.beta * distance)
    assert_close(found.residual, left.square().mean().sqrt())
    assert found.residual > 0.1


def test_a_fit_cannot_be_improved():
    distance = torch.tensor([1.0, 2.0, 3.0]).double()
    gain = torch.tensor([0.0, 1.0, 0.0]).double()
    found = fit(distance, gain, distance)
    for a in (-1e-3, 0.0, 1e-3):
        for b in (-1e-3, 0.0, 1e-3):
            curve = distance * (found.alpha + a - (found.beta + b) * distance)
            assert (gain - curve).square().mean().sqrt() >= found.residual - 1e-12


def test_a_masked_completion_stays_out_and_float32_is_kept():
    ref = torch.tensor([0.0, 0.5, -torch.inf])
    rewards = torch.tensor([0.0, 1.0, 9.0])
    found = path(ref, rewards, rewards, BETAS.float())
    alone = path(ref[:2], rewards[:2], rewards[:2], BETAS.float())
    for masked, unmasked in zip(found, alone, strict=True):
        assert masked.dtype == torch.float32
        assert_close(masked, unmasked)


def test_the_gradient_is_finite_where_the_distance_is_zero():
    same = torch.full((3,), 0.5, requires_grad=True)
    found = path(torch.zeros(3), same, torch.arange(3.0), BETAS.float())
    assert (found.distance == 0).all()
    (slope,) = torch.autograd.grad(found.distance.sum() + found.true.sum(), same)
    assert slope.isfinite().all()


@given(problems())
def test_the_distance_has_the_slope_of_its_square(problem):
    ref, proxy, true = problem
    proxy = proxy + torch.arange(4.0)  # no proxy that says nothing
    proxy.requires_grad_()
    distance = path(ref, proxy, true, BETAS).distance
    (found,) = torch.autograd.grad((distance**2).sum(), proxy)
    new = torch.stack([(ref + proxy / b).log_softmax(-1) for b in BETAS])
    (exact,) = torch.autograd.grad(kl_divergence_logits(new, ref).sum(), proxy)
    assert_close(found, exact)


@pytest.mark.parametrize("beta", [0.0, -1.0, torch.nan])
def test_a_beta_that_is_not_positive_is_nan(beta):
    two = torch.tensor([0.0, 1.0])
    found = path(two, two, two, torch.tensor([beta, 1.0]))
    for each in found:
        assert each[0].isnan()
        assert each[1].isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    generator = torch.Generator().manual_seed(0)
    given_ = [x.to(dtype) for x in torch.randn(3, 20, generator=generator)]
    betas = BETAS.to(dtype)
    wide = path(*(x.float() for x in given_), betas.float())
    for half, exact in zip(path(*given_, betas), wide, strict=True):
        assert torch.equal(half, exact.to(dtype))


def test_unusable_arguments_are_named():
    two, betas = torch.zeros(2), torch.ones(1)
    for wrong in (torch.zeros(1), torch.zeros(1, 2), torch.zeros(2).long()):
        with pytest.raises(ValueError, match="proxy_rewards"):
            path(two, wrong, two, betas)
        with pytest.raises(ValueError, match="true_rewards"):
            path(two, two, wrong, betas)
    with pytest.raises(ValueError, match="betas"):
        path(two, two, two, torch.ones(1).long())
    with pytest.raises(ValueError, match="distance has 2 points"):
        fit(two, two, two)
    with pytest.raises(ValueError, match="bend"):
        fit(torch.zeros(3), torch.zeros(3), torch.zeros(1))


def test_a_bend_that_is_not_finite_has_no_fit():
    distance = torch.arange(3.0)  # the reference itself is among the points
    assert all(x.isnan() for x in fit(distance, distance, distance.log()))


@given(numbers(6), numbers(6))
def test_a_fit_is_that_of_a_library(rewards, noise):
    distance = torch.linspace(0.5, 3, 6).double()
    bend = distance + noise
    columns = torch.stack([distance, -distance * bend], -1)
    solution = torch.linalg.lstsq(columns, rewards[:, None]).solution[:, 0]
    found = fit(distance, rewards, bend)
    if torch.linalg.cond(columns) < 1e3:  # of which float64 leaves 1e-13
        assert_close(torch.stack(found[:2]), solution, rtol=1e-9, atol=1e-9)
