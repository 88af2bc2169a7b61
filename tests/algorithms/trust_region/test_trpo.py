"""TRPO's pieces are what linear algebra and enumeration say, and its step is safe."""

from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nan, tensor
from torch.testing import assert_close

from snippets.algorithms.trust_region.trpo import (
    conjugate_gradient,
    fisher_product,
    full_step,
    line_search,
)
from snippets.exact.categorical import kl_divergence_logits
from snippets.exact.gaussian import kl_gaussian
from snippets.lab.mdp import (
    advantages,
    expected_return,
    occupancy,
    small_problem,
    small_target,
    target_return,
)
from tests.strategies import logits

PROBLEM = small_problem(torch.float64)
POLICIES = logits(3, 3, largest=2.0)
SCALES = [1e-12, 1e-6, 1.0, 1e6, 1e12]


def surroundings(old):
    """Surrogate and mean KL around a policy, as functions of flat parameters."""
    states = occupancy(PROBLEM, old.softmax(-1))
    weights = states[:, None] * advantages(PROBLEM, old.softmax(-1))

    def surrogate(x):
        return (weights * x.reshape(3, 3).softmax(-1)).sum()

    def mean_kl(x):
        return states @ kl_divergence_logits(old, x.reshape(3, 3))

    return surrogate, mean_kl


def update(old, delta, damping=1e-9):
    """One TRPO update of a table of logits."""
    surrogate, mean_kl = surroundings(old)
    flat = old.reshape(9).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(surrogate(flat), flat)
    curved = partial(fisher_product, mean_kl, flat, damping=damping)
    step = full_step(gradient, curved, delta, 20)
    return line_search(surrogate, mean_kl, flat.detach(), step, delta, 10).parameters


@given(POLICIES, POLICIES)
def test_the_divergence_is_the_sum_over_actions(old, new):
    p, q = old.softmax(-1), new.softmax(-1)
    for s in range(3):
        summed = sum(p[s, a] * (p[s, a] / q[s, a]).log() for a in range(3))
        assert_close(kl_divergence_logits(old, new)[s], summed)


@given(POLICIES)
def test_the_product_is_that_of_the_fisher_matrix(old):
    _, mean_kl = surroundings(old)
    p = old.softmax(-1)
    states = occupancy(PROBLEM, p)
    blocks = [
        w * (torch.diag(row) - row[:, None] * row)
        for w, row in zip(states, p, strict=True)
    ]
    vector = torch.arange(9, dtype=torch.float64)
    curved = fisher_product(mean_kl, old.reshape(9), vector, 0.5)
    expected = torch.block_diag(*blocks) @ vector + 0.5 * vector
    assert_close(curved, expected, atol=1e-12, rtol=1e-9)


@given(st.integers(1, 8))
def test_conjugate_gradients_solve(dims):
    torch.manual_seed(dims)
    half = torch.randn(dims, dims, dtype=torch.float64)
    matrix = half @ half.T + torch.eye(dims)
    vector = torch.randn(dims, dtype=torch.float64)
    solved = conjugate_gradient(lambda v: matrix @ v, vector, 2 * dims)
    # Condition at most about 100; twice as many steps as exact arithmetic needs.
    assert_close(solved, torch.linalg.solve(matrix, vector), atol=1e-8, rtol=1e-6)


@given(POLICIES, st.sampled_from([0.001, 0.01, 0.1]))
def test_an_update_improves_within_the_limit(old, delta):
    surrogate, mean_kl = surroundings(old)
    new = update(old, delta)
    assert mean_kl(new) <= delta
    assert surrogate(new) >= surrogate(old.reshape(9))


@given(POLICIES)
def test_a_small_update_spends_its_limit(old):
    _, mean_kl = surroundings(old)
    # The quadratic model is right to the order of the step, √delta = 0.001; a step
    # that overshoots is halved, and then has a quarter of the KL.
    assert 0.2e-6 < mean_kl(update(old, 1e-6)) <= 1e-6


def test_a_run_of_exact_updates_reaches_the_best_policy():
    policy = torch.zeros(3, 3, dtype=torch.float64)
    for _ in range(60):
        policy = update(policy, 0.1).reshape(3, 3)
    square = torch.eye(3, dtype=torch.float64)
    every = [square[list(actions)] for actions in product(range(3), repeat=3)]
    best = expected_return(PROBLEM, torch.stack(every)).max()
    reached = expected_return(PROBLEM, policy.softmax(-1))
    # A softmax approaches a corner and never reaches it.
    assert 0.999 * best < reached <= best


@given(POLICIES, POLICIES)
def test_the_lower_bound_of_the_paper_holds(old, new):
    p, q = old.softmax(-1), new.softmax(-1)
    adv = advantages(PROBLEM, p)
    scale = 1 - PROBLEM.discount
    surrogate = (occupancy(PROBLEM, p) * (q * adv).sum(-1)).sum() / scale
    largest = kl_divergence_logits(old, new).max()
    c = 4 * adv.abs().max() * PROBLEM.discount / scale**2
    bound = expected_return(PROBLEM, p) + surrogate - c * largest
    # Equal policies make it an equation, up to rounding of numbers of order 10.
    assert expected_return(PROBLEM, q) >= bound - 1e-12


def test_the_first_order_says_nothing_and_the_second_everything():
    old = torch.randn(3, 3, dtype=torch.float64)
    _, mean_kl = surroundings(old)
    at = old.reshape(9).clone().requires_grad_()
    value = mean_kl(at)
    (slope,) = torch.autograd.grad(value, at)
    assert value == 0
    # Differences of two probabilities.
    assert_close(slope, torch.zeros_like(slope), atol=1e-15, rtol=0)
    vector = tensor([1.0, 0, 0] * 3, dtype=torch.float64)
    assert fisher_product(mean_kl, old.reshape(9), vector, 0).norm() > 0


def test_a_product_is_a_constant_and_leaves_the_parameters_as_they_were():
    old = torch.zeros(3, 3, dtype=torch.float64)
    _, mean_kl = surroundings(old)
    parameters = old.reshape(9)
    vector = torch.ones(9, dtype=torch.float64, requires_grad=True)
    curved = fisher_product(mean_kl, parameters, 2 * vector, 0.5)
    assert not curved.requires_grad
    assert not parameters.requires_grad


@pytest.mark.parametrize("size", SCALES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conjugate_gradients_solve_at_any_scale(size, scale, dtype):
    matrix = scale * tensor([[2.0, 1.0], [1.0, 3.0]], dtype=dtype)
    vector = size * tensor([1.0, -4.0], dtype=dtype)
    solved = conjugate_gradient(lambda v: matrix @ v, vector, 2)
    expected = torch.linalg.solve(matrix.double(), vector.double())
    # Two steps of a matrix of condition 3.
    rtol = 100 * torch.finfo(dtype).eps
    assert_close(solved.double(), expected, rtol=rtol, atol=0)


def test_conjugate_gradients_of_zero_are_zero():
    nothing = torch.zeros(3)
    assert_close(conjugate_gradient(lambda v: 2 * v, nothing, 5), nothing)


@pytest.mark.parametrize("seed", range(100))
def test_rounding_where_there_is_no_curvature_is_left_out(seed):
    torch.manual_seed(seed)
    p = (4 * torch.rand(3, dtype=torch.float64) - 2).softmax(-1)
    matrix = torch.diag(p) - p[:, None] * p
    vector = matrix @ torch.randn(3, dtype=torch.float64)
    # Adding a constant to all logits changes no probability.
    rounded = vector + 1e-16 * vector.abs().max()
    solved = conjugate_gradient(lambda v: matrix @ v, rounded, 9)
    # Condition below 1e3 against 1e-16, and steps enough to start on the rounding.
    assert_close(matrix @ solved, vector, atol=0, rtol=1e-6)
    assert solved.mean().abs() < 1e-4 * solved.abs().max()


@pytest.mark.parametrize("size", SCALES)
@pytest.mark.parametrize("delta", [1e-12, 1e-6, 1.0])
def test_the_full_step_has_the_quadratic_kl_at_any_scale(size, delta):
    matrix = tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    gradient = size * tensor([1.0, -4.0], dtype=torch.float64)
    step = full_step(gradient, lambda v: matrix @ v, delta, 2)
    reached = 0.5 * step @ matrix @ step
    assert_close(reached, tensor(delta, dtype=torch.float64), rtol=1e-12, atol=0)
    assert gradient @ step > 0


def test_the_full_step_of_no_gradient_is_zero():
    assert (full_step(torch.zeros(3), lambda v: 2 * v, 0.01, 5) == 0).all()


@pytest.mark.parametrize("size", SCALES)
def test_the_line_search_says_which_fraction_passed(size):
    old = torch.zeros(2, dtype=torch.float64)
    step = size * torch.ones(2, dtype=torch.float64)
    for halvings in range(5):
        # The KL of a step is its square: a limit on the square of a fraction.
        limit = 2 * (size * 0.5**halvings) ** 2
        found = line_search(torch.sum, lambda x: x @ x, old, step, limit, 5)
        assert found.fraction == 0.5**halvings
        assert_close(found.parameters, step * 0.5**halvings)


def test_a_kl_equal_to_the_limit_passes_and_an_equal_surrogate_does_not():
    old, step = torch.zeros(1), torch.ones(1)
    assert line_search(torch.sum, torch.sum, old, step, 1.0, 1).fraction == 1
    level = line_search(lambda x: 0 * x.sum(), torch.sum, old, step, 1.0, 3)
    assert level.fraction == 0


def test_the_old_parameters_return_when_no_length_passes():
    old = torch.zeros(9)
    worse = line_search(lambda x: -x.sum(), lambda _: old.sum(), old, old + 1, 1.0, 4)
    too_far = line_search(torch.sum, torch.norm, old, old + 9, 0.1, 3)
    unknown = line_search(torch.sum, lambda x: x.sum() * nan, old, old + 1, 1.0, 3)
    for found in (worse, too_far, unknown):
        assert found.fraction == 0
        assert_close(found.parameters, old)


@given(st.sampled_from([1, 2, 8]))
def test_a_mean_over_dimensions_lets_the_joint_divergence_grow(dims):
    target = small_target(dims, torch.float64)
    old = torch.zeros(3 * dims, dtype=torch.float64)
    log_std = torch.zeros(dims, dtype=torch.float64)

    def surrogate(x):
        return target_return(target, x.reshape(3, dims), log_std)

    def joint(x):
        mean, std = x.reshape(3, dims), log_std.exp().expand(3, dims)
        return target.weights @ kl_gaussian(old.reshape(3, dims), std, mean, std)

    def averaged(x):
        return joint(x) / dims

    reached = []
    for mean_kl in (joint, averaged):
        at = old.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(surrogate(at), at)
        step = full_step(
            gradient, partial(fisher_product, mean_kl, old, damping=0), 0.01, 10
        )
        reached.append(joint(old + step))
    # Only the mean moves, so the KL is quadratic and the model exact.
    assert_close(reached[0], tensor(0.01, dtype=torch.float64))
    assert_close(reached[1], dims * reached[0])


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda v: conjugate_gradient(abs, v, 0), "iterations"),
        (lambda v: full_step(v, abs, 0.0, 3), "delta"),
        (lambda v: line_search(abs, abs, v, v, 0.0, 3), "delta"),
        (lambda v: line_search(abs, abs, v, v, 1.0, 0), "tries"),
        (lambda v: line_search(abs, abs, v, v[:1], 1.0, 3), "step"),
        (lambda v: fisher_product(abs, v, v[:1], 0.0), "vector"),
        (lambda v: conjugate_gradient(abs, v.long(), 3), "vector"),
    ],
)
def test_refuses_by_name(call, name):
    with pytest.raises(ValueError, match=name):
        call(torch.ones(3))
