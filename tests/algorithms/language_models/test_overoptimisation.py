"""Checks the frontier by sums, by ascent from the reference, and near its start."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from snippets.algorithms.language_models.overoptimisation import fit, frontier
from snippets.algorithms.regularised.optimal_policy import anchor_divergence, objective

numbers = st.floats(-2, 2)
BETAS = torch.tensor([3.0, 1.0, 0.3]).double()


@st.composite
def problems(draw):
    """A reference, a proxy and a true reward of four answers."""
    lists = [draw(st.lists(numbers, min_size=4, max_size=4)) for _ in range(3)]
    return [torch.tensor(values).double() for values in lists]


def tilted(ref, proxy, beta):
    """The optimum as probabilities, from its definition."""
    weights = ref.softmax(-1) * (proxy / beta).exp()
    return weights / weights.sum()


@given(problems())
def test_the_gains_and_the_distance_are_sums_over_the_answers(problem):
    ref, proxy, true = problem
    found = frontier(ref, proxy, true, BETAS)
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
    found = frontier(ref, proxy, true, BETAS)
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


def test_ascent_on_the_penalised_proxy_ends_on_the_frontier():
    generator = torch.Generator().manual_seed(0)
    ref, proxy, true = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    found = frontier(ref, proxy, true, BETAS)
    for i, beta in enumerate(BETAS.tolist()):
        policy = ascend(ref, proxy, beta)
        moved = policy.softmax(-1) - ref.softmax(-1)
        # A gradient of 1e-10, over curvatures of 0.01 and more.
        tolerance = {"rtol": 1e-6, "atol": 1e-8}
        kl = anchor_divergence(policy, ref)
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
        prices = 1 / (1 / beta + torch.tensor([-step, step]).double())
        moved = frontier(ref, proxy, true, prices).true.diff()[0] / (2 * step)
        assert_close(moved, together, rtol=1e-5, atol=1e-6)


@given(problems())
def test_the_proxy_and_the_distance_only_rise(problem):
    ref, proxy, true = problem
    found = frontier(ref, proxy, true, BETAS)
    assert (found.proxy.diff() >= -1e-12).all()  # rounding of means of numbers below 2
    assert (found.distance.diff() >= -1e-12).all()


@given(problems())
def test_a_proxy_that_is_right_never_misleads(problem):
    ref, _, true = problem
    found = frontier(ref, true, true, BETAS)
    assert (found.true.diff() >= -1e-12).all()  # rounding of means of numbers below 2
    assert (found.true >= -1e-12).all()


@given(problems())
def test_a_proxy_of_the_opposite_sign_loses_what_it_gains(problem):
    ref, _, true = problem
    found = frontier(ref, -true, true, BETAS)
    assert_close(found.true, -found.proxy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_proxy_that_says_nothing_goes_nowhere(dtype):
    generator = torch.Generator().manual_seed(0)
    eps = torch.finfo(dtype).eps
    for _ in range(200):
        ref = torch.randn(6, generator=generator, dtype=dtype)
        same = torch.full_like(ref, 0.3)
        found = frontier(ref, same, ref, BETAS)
        # Twenty steps of rounding, in a logit below 5. A root of a KL that is rounded
        # before would be nan, or about the root of eps.
        assert (found.distance < 100 * eps).all()


def test_near_the_reference_the_distance_keeps_its_digits():
    generator = torch.Generator().manual_seed(0)
    ref, proxy = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    policy = ref.softmax(-1)
    variance = policy @ proxy.square() - (policy @ proxy) ** 2
    beta = torch.tensor([1e6]).double()
    found = frontier(ref, proxy, proxy, beta)
    # The next term of the series is 1 / beta smaller, and log-probabilities have an
    # error of 1e-16 in steps of 1 / beta.
    assert_close(found.distance, (variance / 2).sqrt() / beta, rtol=1e-5, atol=0)
    assert_close(found.proxy, variance / beta, rtol=1e-5, atol=0)


def test_far_from_the_reference_the_distance_is_that_of_the_best_answer():
    ref = torch.tensor([0.0, 1.0, -2.0]).double()
    found = frontier(ref, torch.tensor([0.0, 0.5, 1.0]).double(), ref, BETAS[:1] / 1e4)
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


def test_a_masked_answer_stays_out_and_float32_is_kept():
    ref = torch.tensor([0.0, 0.5, -torch.inf])
    rewards = torch.tensor([0.0, 1.0, 9.0])
    found = frontier(ref, rewards, rewards, BETAS.float())
    alone = frontier(ref[:2], rewards[:2], rewards[:2], BETAS.float())
    for masked, unmasked in zip(found, alone, strict=True):
        assert masked.dtype == torch.float32
        assert_close(masked, unmasked)


def test_unusable_arguments_are_named():
    two = torch.zeros(2)
    with pytest.raises(ValueError, match="beta is"):
        frontier(two, two, two, torch.tensor([0.0]))
    with pytest.raises(ValueError, match="proxy_rewards has"):
        frontier(two, two[:1], two, torch.tensor([1.0]))
    with pytest.raises(ValueError, match="true_rewards has"):
        frontier(two, two, two[:1], torch.tensor([1.0]))
    with pytest.raises(ValueError, match="distance has 2 points"):
        fit(two, two, two)
    with pytest.raises(ValueError, match="shape is not finite"):
        fit(torch.arange(3.0), torch.zeros(3), torch.arange(3.0).log())
