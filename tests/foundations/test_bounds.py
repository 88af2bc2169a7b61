"""Every bound holds on every policy, and each is vacuous where the page says so."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from snippets.lab import mdp
from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.bounds import bretagnolle_huber, pinsker, return_bound
from snippets.foundations.neighbours import total_variation


@st.composite
def two_policies(draw):
    """Logits of two policies over the same 1 to 5 actions."""
    actions = draw(st.integers(1, 5))
    row = st.lists(st.floats(-8, 8), min_size=actions, max_size=actions)
    return [tensor(draw(row), dtype=torch.float64) for _ in "PQ"]


@given(two_policies())
def test_both_bound_total_variation(rows):
    kl = kl_divergence_logits(*rows).clamp(min=0)  # a root of -1e-17 is nan
    distance = total_variation(*rows)
    slack = 1e-7  # the root of a rounding of the KL
    assert distance <= pinsker(kl) + slack
    assert distance <= bretagnolle_huber(kl) + slack


def test_pinsker_is_better_near_and_says_nothing_far():
    near, far = tensor(0.1), tensor(2.5)
    assert pinsker(near) < bretagnolle_huber(near)
    assert bretagnolle_huber(far) < 1 < pinsker(far)


def test_pinsker_is_tight_for_a_coin():
    coin = tensor([0.5, 0.5], dtype=torch.float64).log()
    moved = tensor([0.501, 0.499], dtype=torch.float64).log()
    kl = kl_divergence_logits(coin, moved)
    # Both are 0.001, to second order in it.
    assert abs(pinsker(kl) / total_variation(coin, moved) - 1) < 1e-5


@st.composite
def policies(draw):
    """Logits of a policy for the small problem."""
    row = st.lists(st.floats(-2, 2), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3)


@given(policies(), policies())
def test_the_return_is_never_below_its_bound(old, new):
    problem = mdp.small_problem(torch.float64)
    before, after = old.softmax(-1), new.softmax(-1)
    gained = mdp.advantages(problem, before)
    mean = (mdp.occupancy(problem, before) * (after * gained).sum(-1)).sum()
    surrogate = mdp.expected_return(problem, before) + mean / (1 - problem.discount)
    kl = kl_divergence_logits(old, new).max()
    bound = return_bound(surrogate, kl, gained.abs().max(), problem.discount)
    assert mdp.expected_return(problem, after) >= bound - 1e-9  # rounding


@given(policies(), policies())
def test_pinsker_halves_the_penalty(old, new):
    problem = mdp.small_problem(torch.float64)
    before, after = old.softmax(-1), new.softmax(-1)
    gained = mdp.advantages(problem, before)
    mean = (mdp.occupancy(problem, before) * (after * gained).sum(-1)).sum()
    surrogate = mdp.expected_return(problem, before) + mean / (1 - problem.discount)
    kl = kl_divergence_logits(old, new).max()
    bound = return_bound(surrogate, kl / 2, gained.abs().max(), problem.discount)
    assert mdp.expected_return(problem, after) >= bound - 1e-9  # rounding


def test_the_penalty_is_the_theorems():
    bound = return_bound(tensor(0.0), tensor(0.01), tensor(2.0), 0.9)
    assert math.isclose(bound, -4 * 2 * 0.9 / 0.1**2 * 0.01, rel_tol=1e-6)  # float32


@pytest.mark.parametrize("discount", [1.0, -0.1])
def test_refuses_a_discount_that_is_none(discount):
    with pytest.raises(ValueError, match="discount is"):
        return_bound(tensor(0.0), tensor(0.0), tensor(1.0), discount)


def test_the_bound_on_the_return_is_exact_without_a_step():
    bound = return_bound(tensor(3.0), tensor(0.0), tensor(1.0), 0.9)
    assert bound == 3
