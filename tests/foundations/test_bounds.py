"""Every bound holds on every policy, and each is vacuous where the page says so."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.bounds import bretagnolle_huber, pinsker, return_bound
from snippets.foundations.neighbours import total_variation
from snippets.lab import mdp
from tests.strategies import two_policies


@given(two_policies(largest=8.0))
def test_both_bound_total_variation(rows):
    kl = kl_divergence_logits(*rows)
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
    bound = return_bound(
        surrogate=surrogate,
        largest_kl=kl,
        largest_advantage=gained.abs().max(),
        discount=problem.discount,
    )
    assert mdp.expected_return(problem, after) >= bound - 1e-9  # rounding


@given(policies(), policies())
def test_pinsker_halves_the_penalty(old, new):
    problem = mdp.small_problem(torch.float64)
    before, after = old.softmax(-1), new.softmax(-1)
    gained = mdp.advantages(problem, before)
    mean = (mdp.occupancy(problem, before) * (after * gained).sum(-1)).sum()
    surrogate = mdp.expected_return(problem, before) + mean / (1 - problem.discount)
    kl = kl_divergence_logits(old, new).max()
    bound = return_bound(
        surrogate=surrogate,
        largest_kl=kl / 2,
        largest_advantage=gained.abs().max(),
        discount=problem.discount,
    )
    assert mdp.expected_return(problem, after) >= bound - 1e-9  # rounding


def bounded(surrogate, largest_kl, largest_advantage, discount):
    return return_bound(
        surrogate=tensor(surrogate),
        largest_kl=tensor(largest_kl),
        largest_advantage=tensor(largest_advantage),
        discount=discount,
    )


def test_the_penalty_is_the_theorems():
    bound = bounded(0.0, 0.01, 2.0, 0.9)
    assert math.isclose(bound, -4 * 2 * 0.9 / 0.1**2 * 0.01, rel_tol=1e-6)  # float32


@pytest.mark.parametrize("discount", [1.0, -0.1])
def test_refuses_a_discount_that_is_none(discount):
    with pytest.raises(ValueError, match="discount is"):
        bounded(0.0, 0.0, 1.0, discount)


def test_the_bound_on_the_return_is_exact_without_a_step():
    assert bounded(3.0, 0.0, 1.0, 0.9) == 3


@pytest.mark.parametrize(("advantage", "discount"), [(0.0, 0.9), (1.0, 0.0)])
def test_an_infinite_kl_does_not_matter_where_its_weight_is_zero(advantage, discount):
    assert bounded(3.0, inf, advantage, discount) == 3


def test_a_largest_advantage_below_zero_is_nan():
    assert bounded(3.0, 0.1, -1.0, 0.9).isnan()


def test_the_arguments_of_the_theorem_have_names():
    with pytest.raises(TypeError, match="positional"):
        return_bound(tensor(0.0), tensor(0.0), tensor(1.0), 0.9)
    with pytest.raises(ValueError, match=r"largest_kl is \[2, 1\], surrogate is \[2\]"):
        bounded([0.0, 0.0], [[0.0], [0.0]], [1.0, 1.0], 0.9)


@pytest.mark.parametrize("bound", [pinsker, bretagnolle_huber])
def test_a_kl_below_zero_counts_as_none(bound):
    kl = tensor([-1e-8, 0.0, -3.0], requires_grad=True)
    assert (bound(kl) == 0).all()
    bound(kl).sum().backward()
    assert (kl.grad == 0).all()


def test_an_infinite_kl_allows_everything():
    assert bretagnolle_huber(tensor(inf)) == 1
    assert pinsker(tensor(inf)) == inf
