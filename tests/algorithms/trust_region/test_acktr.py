"""The Kronecker model is a product of means, and the rate gives what it models."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from snippets.algorithms.trust_region.acktr import (
    kronecker_factors,
    kronecker_kl,
    kronecker_step,
    trust_region_rate,
)
from snippets.algorithms.trust_region.natural_gradient import softmax_scores
from snippets.exact.categorical import kl_divergence_logits
from snippets.lab.mdp import occupancy, small_problem
from tests.strategies import numbers

PROBLEM = small_problem(torch.float64)
# The weight of a linear policy on one-hot states, `(actions, states)`.
LAYERS = numbers(3, 3, largest=2.0)


def samples(weight, states):
    """Every state and action, weighted by √probability so that means are sums."""
    policy = weight.mT.softmax(-1)  # (states, actions)
    probability = (states[:, None] * policy).reshape(9, 1)
    inputs = torch.eye(3, dtype=weight.dtype)[:, None].expand(3, 3, 3).reshape(9, 3)
    scores = softmax_scores(weight.mT).reshape(9, 3)
    root = (9 * probability).sqrt()
    return inputs * root, scores * root


def exact_divergence(old, new, states):
    """The mean KL(old || new) over states."""
    return states @ kl_divergence_logits(old.mT, new.mT)


@given(LAYERS, LAYERS)
def test_the_model_is_the_kronecker_product(weight, step):
    states = occupancy(PROBLEM, weight.mT.softmax(-1))
    a, g = kronecker_factors(*samples(weight, states))
    flat = step.mT.reshape(9)  # columns of the weight, one after another
    product = 0.5 * flat @ torch.kron(a, g) @ flat
    assert_close(kronecker_kl(step, a, g), product)


@given(LAYERS, LAYERS)
def test_the_model_is_the_fisher_matrix_where_all_states_agree(column, step):
    weight = column[:, :1].expand(3, 3)
    states = tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    a, g = kronecker_factors(*samples(weight, states))
    hessian = torch.autograd.functional.hessian(
        lambda x: exact_divergence(weight, x.reshape(3, 3), states),
        weight.reshape(9),
    )
    exact = 0.5 * step.reshape(9) @ hessian @ step.reshape(9)
    assert_close(kronecker_kl(step, a, g), exact, atol=1e-12, rtol=1e-7)


def test_the_model_is_wrong_where_states_disagree():
    weight = tensor([[4.0, 0, 0], [0, 0, 0], [0, 0, 4]], dtype=torch.float64)
    states = tensor([0.8, 0.1, 0.1], dtype=torch.float64)
    a, g = kronecker_factors(*samples(weight, states))
    step = torch.zeros(3, 3, dtype=torch.float64)
    step[0, 0] = 0.01
    exact = exact_divergence(weight, weight + step, states)
    assert kronecker_kl(step, a, g) > 1.5 * exact


@given(LAYERS)
def test_the_direction_solves_the_kronecker_system(weight):
    states = occupancy(PROBLEM, weight.mT.softmax(-1))
    a, g = kronecker_factors(*samples(weight, states))
    gradient = torch.arange(9, dtype=torch.float64).reshape(3, 3)
    direction = kronecker_step(gradient, a, g, 0.1)
    identity = torch.eye(3, dtype=torch.float64)
    system = torch.kron(a + 0.1 * identity, g + 0.1 * identity)
    solved = torch.linalg.solve(system, gradient.mT.reshape(9))
    assert_close(direction.mT.reshape(9), solved)


@given(LAYERS, st.floats(1e-4, 1e-1))
def test_the_rate_spends_delta_or_stays_at_its_limit(step, delta):
    a, g = torch.eye(3, dtype=torch.float64), 2 * torch.eye(3, dtype=torch.float64)
    quadratic = kronecker_kl(step + torch.eye(3), a, g)
    rate = trust_region_rate(quadratic, delta, 0.25)
    reached = kronecker_kl(rate * (step + torch.eye(3)), a, g)
    if rate < 0.25:
        assert_close(reached, tensor(delta, dtype=torch.float64))
    else:
        # The square root and the square round once each.
        assert reached <= delta * (1 + 1e-12)


def test_a_direction_of_zero_takes_the_largest_rate():
    assert trust_region_rate(torch.zeros(()), 0.001, 0.25) == 0.25


def test_float32_stays_float32():
    a, g = kronecker_factors(torch.randn(4, 3), torch.randn(4, 2))
    direction = kronecker_step(torch.randn(2, 3), a, g, 0.1)
    assert direction.dtype == torch.float32
    assert trust_region_rate(kronecker_kl(direction, a, g), 1, 1).dtype == (
        torch.float32
    )


def test_refuses_different_numbers_of_samples():
    with pytest.raises(ValueError, match="inputs has 4 rows, scores has 3"):
        kronecker_factors(torch.ones(4, 2), torch.ones(3, 2))


@pytest.mark.parametrize(("delta", "largest"), [(0, 1), (1, 0), (-1, 1)])
def test_refuses_limits_that_are_not_positive(delta, largest):
    with pytest.raises(ValueError, match="must be positive"):
        trust_region_rate(torch.ones(()), delta, largest)


@given(numbers(2, 3, largest=2.0))
def test_a_layer_with_more_inputs_than_actions(step):
    torch.manual_seed(0)
    inputs, scores = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    a, g = kronecker_factors(inputs, scores)
    assert_close(a, sum(torch.outer(x, x) for x in inputs) / 7)
    assert_close(g, sum(torch.outer(x, x) for x in scores) / 7)
    flat, matrix = step.mT.reshape(6), torch.kron(a, g)
    assert_close(kronecker_kl(step, a, g), 0.5 * flat @ matrix @ flat)
    direction = kronecker_step(step, a, g, 0.0)
    # Condition below 100.
    solved = torch.linalg.solve(matrix, flat)
    assert_close(direction.mT.reshape(6), solved, atol=1e-10, rtol=1e-9)


def test_a_singular_factor_without_damping_is_no_number():
    one = torch.ones(2, 2)
    assert not kronecker_step(tensor([[1.0, 2], [3, 4]]), one, one, 0).isfinite().any()


def test_a_negative_quadratic_is_nan():
    assert trust_region_rate(tensor(-1.0), 0.1, 1.0).isnan()


@pytest.mark.parametrize(
    ("step", "a", "g", "name"),
    [
        ((2, 3), (2, 2), (2, 2), "input_factor"),
        ((2, 3), (3, 3), (3, 3), "score_factor"),
        ((2,), (2, 2), (2, 2), "needs 2 axes"),
    ],
)
def test_refuses_factors_of_another_layer(step, a, g, name):
    with pytest.raises(ValueError, match=name):
        kronecker_kl(torch.ones(step), torch.ones(a), torch.ones(g))


def test_refuses_a_negative_damping():
    with pytest.raises(ValueError, match="damping is -1"):
        kronecker_step(torch.ones(2, 2), torch.eye(2), torch.eye(2), -1.0)
