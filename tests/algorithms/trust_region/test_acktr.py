"""The Kronecker model is a product of means, and the rate spends what it models."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from snippets.algorithms.trust_region.acktr import (
    kronecker_factors,
    kronecker_step,
    quadratic_divergence,
    trust_region_rate,
)
from snippets.lab.mdp import small_problem, visitation
from snippets.algorithms.trust_region.natural_gradient import softmax_scores

PROBLEM = small_problem(torch.float64)


@st.composite
def layers(draw):
    """The weight of a linear policy on one-hot states, `(actions, states)`."""
    row = st.lists(st.floats(-2, 2), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3)


def samples(weight, states):
    """Every state and action, weighted by √probability so that means are sums."""
    policy = weight.mT.softmax(-1)  # (states, actions)
    probability = (states[:, None] * policy).reshape(9, 1)
    inputs = torch.eye(3, dtype=weight.dtype)[:, None].expand(3, 3, 3).reshape(9, 3)
    scores = softmax_scores(weight.mT).reshape(9, 3)
    root = (9 * probability).sqrt()
    return inputs * root, scores * root


def exact_divergence(old, new, states):
    """The mean KL(old || new), summed over every state and action."""
    p, q = old.mT.softmax(-1), new.mT.softmax(-1)
    return sum(
        states[s] * p[s, a] * (p[s, a] / q[s, a]).log()
        for s in range(3)
        for a in range(3)
    )


@given(layers(), layers())
def test_the_model_is_the_kronecker_product(weight, step):
    states = visitation(PROBLEM, weight.mT.softmax(-1))
    a, g = kronecker_factors(*samples(weight, states))
    flat = step.mT.reshape(9)  # columns of the weight, one after another
    product = 0.5 * flat @ torch.kron(a, g) @ flat
    assert_close(quadratic_divergence(step, a, g), product)


@given(layers(), layers())
def test_the_model_is_the_fisher_matrix_where_all_states_agree(column, step):
    weight = column[:, :1].expand(3, 3)
    states = tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    a, g = kronecker_factors(*samples(weight, states))
    hessian = torch.autograd.functional.hessian(
        lambda x: exact_divergence(weight, x.reshape(3, 3), states),
        weight.reshape(9),
    )
    exact = 0.5 * step.reshape(9) @ hessian @ step.reshape(9)
    assert_close(quadratic_divergence(step, a, g), exact, atol=1e-12, rtol=1e-7)


def test_the_model_is_wrong_where_states_disagree():
    weight = tensor([[4.0, 0, 0], [0, 0, 0], [0, 0, 4]], dtype=torch.float64)
    states = tensor([0.8, 0.1, 0.1], dtype=torch.float64)
    a, g = kronecker_factors(*samples(weight, states))
    step = torch.zeros(3, 3, dtype=torch.float64)
    step[0, 0] = 0.01
    exact = exact_divergence(weight, weight + step, states)
    assert quadratic_divergence(step, a, g) > 1.5 * exact


@given(layers())
def test_the_direction_solves_the_kronecker_system(weight):
    states = visitation(PROBLEM, weight.mT.softmax(-1))
    a, g = kronecker_factors(*samples(weight, states))
    gradient = torch.arange(9, dtype=torch.float64).reshape(3, 3)
    direction = kronecker_step(gradient, a, g, 0.1)
    identity = torch.eye(3, dtype=torch.float64)
    system = torch.kron(a + 0.1 * identity, g + 0.1 * identity)
    solved = torch.linalg.solve(system, gradient.mT.reshape(9))
    assert_close(direction.mT.reshape(9), solved)


@given(layers(), st.floats(1e-4, 1e-1))
def test_the_rate_spends_delta_or_stays_at_its_limit(step, delta):
    a, g = torch.eye(3, dtype=torch.float64), 2 * torch.eye(3, dtype=torch.float64)
    quadratic = quadratic_divergence(step + torch.eye(3), a, g)
    rate = trust_region_rate(quadratic, delta, 0.25)
    spent = quadratic_divergence(rate * (step + torch.eye(3)), a, g)
    if rate < 0.25:
        assert_close(spent, tensor(delta, dtype=torch.float64))
    else:
        # The square root and the square round once each.
        assert spent <= delta * (1 + 1e-12)


def test_a_direction_of_zero_takes_the_largest_rate():
    assert trust_region_rate(torch.zeros(()), 0.001, 0.25) == 0.25


def test_float32_stays_float32():
    a, g = kronecker_factors(torch.randn(4, 3), torch.randn(4, 2))
    direction = kronecker_step(torch.randn(2, 3), a, g, 0.1)
    assert direction.dtype == torch.float32
    assert trust_region_rate(quadratic_divergence(direction, a, g), 1, 1).dtype == (
        torch.float32
    )


def test_refuses_different_numbers_of_samples():
    with pytest.raises(ValueError, match="4 inputs, 3 scores"):
        kronecker_factors(torch.ones(4, 2), torch.ones(3, 2))


@pytest.mark.parametrize(("delta", "largest"), [(0, 1), (1, 0), (-1, 1)])
def test_refuses_limits_that_are_not_positive(delta, largest):
    with pytest.raises(ValueError, match="both positive"):
        trust_region_rate(torch.ones(()), delta, largest)
