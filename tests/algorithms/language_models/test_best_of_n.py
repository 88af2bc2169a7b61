"""Checks the best-of-n policy against every way of drawing n samples."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from snippets.algorithms.language_models.best_of_n import best_divergence, best_of_n, divergence_bound
from snippets.algorithms.regularised.optimal_policy import anchor_divergence, soft_optimum

finite = st.floats(-3, 3)


@st.composite
def problems(draw):
    """A reference and rewards, of which some are equal."""
    actions = draw(st.integers(2, 5))
    logits = draw(st.lists(finite, min_size=actions, max_size=actions))
    rewards = draw(st.lists(st.integers(0, 3), min_size=actions, max_size=actions))
    return torch.tensor(logits).double(), torch.tensor(rewards).double()


def by_drawing(ref, rewards, n):
    """Every tuple of n samples, with its first best one."""
    total = torch.zeros_like(ref)
    for drawn in itertools.product(range(len(ref)), repeat=n):
        best = max(drawn, key=lambda answer: rewards[answer])  # max keeps the first
        total[best] += ref.softmax(-1)[list(drawn)].prod()
    return total


@given(problems(), st.integers(1, 3))
def test_the_policy_is_that_of_every_tuple_of_samples(problem, n):
    ref, rewards = problem
    assert_close(best_of_n(ref, rewards, n).exp(), by_drawing(ref, rewards, n))


@given(problems(), st.integers(1, 3))
def test_ties_may_as_well_be_broken_at_random(problem, n):
    ref, rewards = problem
    total = torch.zeros_like(ref)
    for drawn in itertools.product(range(len(ref)), repeat=n):
        top = max(rewards[answer] for answer in drawn)
        best = [answer for answer in drawn if rewards[answer] == top]
        for answer in best:
            total[answer] += ref.softmax(-1)[list(drawn)].prod() / len(best)
    assert_close(best_of_n(ref, rewards, n).exp(), total)


@given(problems(), st.integers(1, 3))
def test_the_divergence_is_that_of_every_tuple_of_samples(problem, n):
    ref, rewards = problem
    p, q = by_drawing(ref, rewards, n), ref.softmax(-1)
    assert_close(best_divergence(ref, rewards, n), torch.special.xlogy(p, p / q).sum())


@given(problems(), st.integers(1, 50))
def test_the_divergence_is_that_of_the_rewards(problem, n):
    ref, rewards = problem
    levels = rewards.unique()
    merged = torch.stack([ref[rewards == level].logsumexp(-1) for level in levels])
    assert_close(best_divergence(merged, levels, n), best_divergence(*problem, n))


@given(problems(), st.integers(1, 10_000))
def test_no_answer_is_more_than_n_times_as_likely(problem, n):
    ref, rewards = problem
    log_ratio = best_of_n(ref, rewards, n) - ref.log_softmax(-1)
    assert log_ratio.max() <= math.log(n) + 1e-12  # rounding, as below


@given(problems(), st.integers(1, 10_000))
def test_the_bound_is_never_passed(problem, n):
    divergence = best_divergence(*problem, n)
    rounding = 1e-12  # of sums of a few log-probabilities, at most n = 1e4 times
    assert divergence <= divergence_bound(n) + rounding


@given(problems())
def test_the_limit_is_the_rarity_of_the_best(problem):
    ref, rewards = problem
    best = ref.softmax(-1)[rewards == rewards.max()].sum()
    assert_close(best_divergence(ref, rewards, 10**7), -best.log())


@pytest.mark.parametrize("n", [4, 16])
def test_the_bound_is_reached_where_no_answer_has_a_mass_of_its_own(n):
    gaps = []
    for answers in (500, 1000, 2000):
        ref, rewards = torch.zeros(answers).double(), torch.arange(answers)
        gaps.append(divergence_bound(n) - best_divergence(ref, rewards, n))
    quartered = torch.stack(gaps[1:]) / torch.stack(gaps[:-1])
    # What is lost by cutting a density into cells is of the order of their squared
    # width; the next order is (n / answers) ** 2 of that, below 2e-3 here.
    assert_close(quartered, torch.full_like(quartered, 0.25), rtol=2e-3, atol=0)


@given(problems())
def test_one_sample_is_the_reference(problem):
    ref, rewards = problem
    assert torch.equal(best_of_n(ref, rewards, 1), ref.log_softmax(-1))
    assert best_divergence(ref, rewards, 1) == 0


@given(problems(), st.integers(1, 10**9))
def test_where_no_answer_is_better_nothing_is_chosen(problem, n):
    ref, rewards = problem
    assert best_divergence(ref, torch.zeros_like(rewards), n) == 0
    # Single precision too: no rounding is multiplied by n.
    assert best_divergence(ref.float(), torch.zeros(len(ref)), n) == 0


@given(problems(), st.integers(1, 10**9))
def test_no_divergence_is_negative_in_single_precision(problem, n):
    ref, rewards = problem
    divergence = best_divergence(ref.float(), rewards.float(), n)
    # Exact is 0 or more; a sum of a few terms below 10 rounds by less than this.
    assert divergence >= -1e-6
    assert_close(
        divergence.double(), best_divergence(ref, rewards, n), rtol=1e-4, atol=1e-5
    )


@given(problems(), st.integers(2, 50))
def test_the_tilted_policy_of_equal_divergence_earns_no_less(problem, n):
    ref, rewards = problem
    chosen = best_of_n(ref, rewards, n)
    for beta in (0.1, 0.3, 1.0, 3.0):
        tilted = soft_optimum(ref, rewards, beta)
        gains = ((tilted.exp() - chosen.exp()) * rewards).sum()
        spent = anchor_divergence(tilted, ref) - anchor_divergence(chosen, ref)
        assert gains - beta * spent >= -1e-12  # rounding of sums near zero


def test_a_rare_best_answer_keeps_its_digits():
    rarity = 1e-30
    ref = torch.tensor([0.0, math.log(rarity)]).double()
    found = best_of_n(ref, torch.tensor([0.0, 1.0]), 1000)[1]
    # n p to first order; the next is smaller by n p = 1e-27
    assert_close(found, torch.tensor(1000 * rarity).double().log())


def test_what_the_reference_never_says_is_never_chosen():
    ref = torch.tensor([0.0, 1.0, -torch.inf])
    for rewards in ([0.0, 1.0, 2.0], [1.0, 2.0, 0.0], [1.0, 0.0, 1.0]):
        chosen = best_of_n(ref, torch.tensor(rewards), 4)
        assert chosen[2] == -torch.inf
        assert_close(chosen[:2], best_of_n(ref[:2], torch.tensor(rewards[:2]), 4))
        assert best_divergence(ref, torch.tensor(rewards), 4).isfinite()


def test_batches_and_both_precisions():
    ref = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, -1.0]])
    rewards = torch.tensor([[0.0, 1.0, 1.0], [2.0, 1.0, 0.0]])
    divergence = best_divergence(ref, rewards, 8)
    assert divergence.dtype == torch.float32
    rows = [best_divergence(*row, 8) for row in zip(ref, rewards, strict=True)]
    assert_close(divergence, torch.stack(rows))
    assert_close(divergence.double(), best_divergence(ref.double(), rewards, 8))


def test_unusable_arguments_are_named():
    with pytest.raises(ValueError, match="n is 0"):
        best_of_n(torch.zeros(2), torch.zeros(2), 0)
    with pytest.raises(ValueError, match="n is 0"):
        divergence_bound(0)
    with pytest.raises(ValueError, match="rewards"):
        best_of_n(torch.zeros(2), torch.tensor([0.0, torch.nan]), 2)
