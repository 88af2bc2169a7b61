"""Checks the best-of-n policy against every way of drawing n samples."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from snippets.algorithms.language_models.best_of_n import best_of_n, best_of_n_kl_bound
from snippets.algorithms.regularised.optimal_policy import (
    optimal_policy,
    regularised_objective,
)
from snippets.exact.categorical import kl_divergence_logits
from tests.strategies import logits


@st.composite
def problems(draw):
    """A reference and rewards, of which some are equal."""
    ref = draw(st.integers(2, 5).flatmap(logits))
    integers = st.lists(st.integers(0, 3), min_size=len(ref), max_size=len(ref))
    return ref, torch.tensor(draw(integers)).double()


def chosen(ref, rewards, n):
    return best_of_n(ref_logits=ref, rewards=rewards, n=n)


def kl(ref, rewards, n):
    """KL(best of n || ref), as the page computes it."""
    return kl_divergence_logits(chosen(ref, rewards, n), ref)


def by_drawing(ref, rewards, n):
    """Every tuple of n samples, with its first best one."""
    total = torch.zeros_like(ref)
    for drawn in itertools.product(range(len(ref)), repeat=n):
        best = max(
            drawn, key=lambda completion: rewards[completion]
        )  # max keeps the first
        total[best] += ref.softmax(-1)[list(drawn)].prod()
    return total


@given(problems(), st.integers(1, 3))
def test_the_policy_is_that_of_every_tuple_of_samples(problem, n):
    ref, rewards = problem
    assert_close(chosen(ref, rewards, n).exp(), by_drawing(ref, rewards, n))


@given(problems(), st.integers(1, 3))
def test_ties_may_as_well_be_broken_at_random(problem, n):
    ref, rewards = problem
    total = torch.zeros_like(ref)
    for drawn in itertools.product(range(len(ref)), repeat=n):
        top = max(rewards[completion] for completion in drawn)
        best = [completion for completion in drawn if rewards[completion] == top]
        for completion in best:
            total[completion] += ref.softmax(-1)[list(drawn)].prod() / len(best)
    assert_close(chosen(ref, rewards, n).exp(), total)


@given(problems(), st.integers(1, 3))
def test_the_kl_is_that_of_every_tuple_of_samples(problem, n):
    ref, rewards = problem
    p, q = by_drawing(ref, rewards, n), ref.softmax(-1)
    assert_close(kl(ref, rewards, n), torch.special.xlogy(p, p / q).sum())


@given(problems(), st.integers(1, 50))
def test_the_kl_is_that_of_the_rewards(problem, n):
    ref, rewards = problem
    levels = rewards.unique()
    merged = torch.stack([ref[rewards == level].logsumexp(-1) for level in levels])
    assert_close(kl(merged, levels, n), kl(*problem, n))


@given(problems(), st.integers(1, 10_000))
def test_no_completion_is_more_than_n_times_as_likely(problem, n):
    ref, rewards = problem
    log_ratio = chosen(ref, rewards, n) - ref.log_softmax(-1)
    assert log_ratio.max() <= math.log(n) + 1e-12  # rounding, as below


@given(problems(), st.integers(1, 10_000))
def test_the_bound_is_never_passed(problem, n):
    found = kl(*problem, n)
    rounding = 1e-12  # of sums of a few log-probabilities, at most n = 1e4 times
    assert found <= best_of_n_kl_bound(n) + rounding


@given(problems())
def test_the_limit_is_the_rarity_of_the_best(problem):
    ref, rewards = problem
    best = ref.softmax(-1)[rewards == rewards.max()].sum()
    assert_close(kl(ref, rewards, 10**7), -best.log())


@pytest.mark.parametrize("n", [4, 16])
def test_the_bound_is_reached_where_no_completion_has_a_mass_of_its_own(n):
    gaps = []
    for completions in (500, 1000, 2000):
        ref = torch.zeros(completions).double()
        rewards = torch.arange(completions).double()
        gaps.append(best_of_n_kl_bound(n) - kl(ref, rewards, n))
    quartered = torch.stack(gaps[1:]) / torch.stack(gaps[:-1])
    # What is lost by cutting a density into cells is of the order of their squared
    # width; the next order is (n / completions) ** 2 of that, below 2e-3 here.
    assert_close(quartered, torch.full_like(quartered, 0.25), rtol=2e-3, atol=0)


@given(problems())
def test_one_sample_is_the_reference(problem):
    ref, rewards = problem
    assert_close(chosen(ref, rewards, 1), ref.log_softmax(-1))


@given(problems(), st.integers(1, 10**9))
def test_where_no_completion_is_better_nothing_is_chosen(problem, n):
    ref, rewards = problem
    assert torch.equal(chosen(ref, 0 * rewards, n), ref.log_softmax(-1))
    # Single precision too: no rounding is multiplied by n.
    assert torch.equal(
        chosen(ref.float(), 0 * rewards.float(), n), ref.float().log_softmax(-1)
    )


@given(problems(), st.integers(1, 10**9))
def test_the_kl_keeps_its_digits_in_single_precision(problem, n):
    ref, rewards = problem
    found = kl(ref.float(), rewards.float(), n)
    assert found >= 0
    # Logits below 3 are rounded by 2e-7, and probabilities by as much of themselves.
    assert_close(found.double(), kl(ref, rewards, n), rtol=1e-4, atol=1e-5)


@given(problems(), st.integers(2, 50))
def test_the_tilted_policy_has_no_lower_objective(problem, n):
    ref, rewards = problem
    for beta in (0.1, 0.3, 1.0, 3.0):
        tilted = optimal_policy(ref_logits=ref, rewards=rewards, beta=beta)
        both = [
            regularised_objective(
                new_logits=x, ref_logits=ref, rewards=rewards, beta=beta
            )
            for x in (tilted, chosen(ref, rewards, n))
        ]
        assert both[0] - both[1] >= -1e-12  # rounding of sums near zero


@pytest.mark.parametrize("rarity", [1e-30, 1e-300])
def test_a_rare_best_completion_keeps_its_digits(rarity):
    ref = torch.tensor([0.0, math.log(rarity)]).double()
    found = chosen(ref, torch.tensor([0.0, 1.0]).double(), 1000)[1]
    # n p to first order; the next is smaller by n p = 1e-27
    assert_close(found.item(), math.log(1000 * rarity))


def test_a_best_completion_whose_probability_underflows_is_n_times_as_likely():
    ref = torch.tensor([0.0, -1e4])  # a soft mask
    found = chosen(ref, torch.tensor([0.0, 1.0]), 16) - ref
    assert_close(found[1], torch.tensor(16.0).log(), rtol=0, atol=1e-3)  # of 1e4


def test_what_the_reference_never_says_is_never_chosen():
    ref = torch.tensor([0.0, 1.0, -torch.inf], requires_grad=True)
    for rewards in ([0.0, 1.0, 2.0], [1.0, 2.0, 0.0], [1.0, 0.0, 1.0]):
        values = torch.tensor(rewards)
        found = chosen(ref, values, 4)
        assert found[2] == -torch.inf
        assert_close(found[:2], chosen(ref[:2], values[:2], 4))
        (slope,) = torch.autograd.grad(kl(ref, values, 4), ref)
        pair = ref[:2].detach().requires_grad_()
        (expected,) = torch.autograd.grad(kl(pair, values[:2], 4), pair)
        assert_close(slope, torch.tensor([*expected, 0.0]))


@given(problems(), st.integers(1, 6))
def test_the_gradient_is_the_derivative(problem, n):
    ref, rewards = problem
    assert torch.autograd.gradcheck(
        lambda x: chosen(x, rewards, n), ref.requires_grad_()
    )


def test_a_reward_of_nan_spoils_its_own_row_only():
    ref, rewards = torch.zeros(2, 2), torch.tensor([[0.0, torch.nan], [0.0, 1.0]])
    found = chosen(ref, rewards, 2)
    assert found[0].isnan().all()
    assert_close(found[1].exp(), torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    generator = torch.Generator().manual_seed(0)
    ref = (3 * torch.randn(4, 20, generator=generator)).to(dtype)
    rewards = torch.randint(5, (4, 20), generator=generator).to(dtype)
    found = chosen(ref, rewards, 16)
    assert torch.equal(found, chosen(ref.float(), rewards.float(), 16).to(dtype))


def test_batches_and_both_precisions():
    ref = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, -1.0]])
    rewards = torch.tensor([[0.0, 1.0, 1.0], [2.0, 1.0, 0.0]])
    found = kl(ref, rewards, 8)
    assert found.dtype == torch.float32
    rows = [kl(*row, 8) for row in zip(ref, rewards, strict=True)]
    assert_close(found, torch.stack(rows))
    assert_close(found.double(), kl(ref.double(), rewards.double(), 8))


def test_unusable_arguments_are_named():
    two = torch.zeros(2)
    for n in (0, -1, math.nan):
        with pytest.raises(ValueError, match=f"n is {n}"):
            chosen(two, two, n)
        with pytest.raises(ValueError, match=f"n is {n}"):
            best_of_n_kl_bound(n)
    for wrong in (torch.zeros(1), torch.zeros(1, 2), torch.zeros(2).long()):
        with pytest.raises(ValueError, match="rewards"):
            chosen(two, wrong, 2)
