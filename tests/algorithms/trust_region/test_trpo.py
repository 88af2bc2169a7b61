"""TRPO's pieces are what linear algebra and enumeration say, and its step is safe."""

from functools import partial
from itertools import product

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.distributions import Independent, Normal, kl_divergence
from torch.testing import assert_close

from snippets.lab.mdp import (
    advantages,
    expected_return,
    small_problem,
    small_target,
    target_return,
    visitation,
)
from snippets.algorithms.trust_region.trpo import (
    categorical_divergence,
    conjugate_gradient,
    fisher_product,
    full_step,
    gaussian_divergence,
    line_search,
)

PROBLEM = small_problem(torch.float64)


@st.composite
def logits(draw):
    """Logits of a policy for the small problem, away from its corners."""
    row = st.lists(st.floats(-2, 2), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3)


def surroundings(old):
    """Surrogate and mean KL around a policy, as functions of flat parameters."""
    states = visitation(PROBLEM, old.softmax(-1))
    weights = states[:, None] * advantages(PROBLEM, old.softmax(-1))

    def surrogate(x):
        return (weights * x.reshape(3, 3).softmax(-1)).sum()

    def divergence(x):
        return states @ categorical_divergence(old, x.reshape(3, 3))

    return surrogate, divergence


def update(old, delta, damping=1e-9):
    """One TRPO update of a table of logits."""
    surrogate, divergence = surroundings(old)
    flat = old.reshape(9).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(surrogate(flat), flat)
    curved = partial(fisher_product, divergence, flat, damping=damping)
    step = full_step(gradient, curved, delta, 20)
    return line_search(surrogate, divergence, flat.detach(), step, delta, 10)


@given(logits(), logits())
def test_the_divergence_is_the_sum_over_actions(old, new):
    p, q = old.softmax(-1), new.softmax(-1)
    for s in range(3):
        summed = sum(p[s, a] * (p[s, a] / q[s, a]).log() for a in range(3))
        assert_close(categorical_divergence(old, new)[s], summed)


@given(logits(), logits())
def test_identical_policies_diverge_by_exactly_zero(old, log_std):
    assert (categorical_divergence(old, old) == 0).all()
    assert (gaussian_divergence(old, log_std, old, log_std) == 0).all()


def test_a_masked_action_is_as_good_as_absent():
    old, new = tensor([[0.0, 1, -inf]]), tensor([[1.0, 0, -inf]]).requires_grad_()
    masked = categorical_divergence(old, new)
    assert_close(masked, categorical_divergence(old[:, :2], new[:, :2]))
    masked.sum().backward()
    assert new.grad.isfinite().all()


@given(logits(), logits(), logits(), logits())
def test_the_gaussian_divergence_is_that_of_torch(mean, log_std, new, new_log_std):
    old = Independent(Normal(mean, log_std.exp()), 1)
    other = Independent(Normal(new, new_log_std.exp()), 1)
    ours = gaussian_divergence(mean, log_std, new, new_log_std)
    assert_close(ours, kl_divergence(old, other))


@given(logits())
def test_the_product_is_that_of_the_fisher_matrix(old):
    _, divergence = surroundings(old)
    p = old.softmax(-1)
    states = visitation(PROBLEM, p)
    blocks = [
        w * (torch.diag(row) - row[:, None] * row)
        for w, row in zip(states, p, strict=True)
    ]
    vector = torch.arange(9, dtype=torch.float64)
    curved = fisher_product(divergence, old.reshape(9), vector, 0.5)
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


def test_conjugate_gradients_of_zero_are_zero():
    nothing = torch.zeros(3)
    assert_close(conjugate_gradient(lambda v: 2 * v, nothing, 5), nothing)


@given(logits(), st.sampled_from([0.001, 0.01, 0.1]))
def test_an_update_improves_within_the_limit(old, delta):
    surrogate, divergence = surroundings(old)
    new = update(old, delta)
    assert divergence(new) <= delta
    assert surrogate(new) >= surrogate(old.reshape(9))


@given(logits())
def test_a_small_update_spends_its_limit(old):
    _, divergence = surroundings(old)
    # The quadratic model is right to the order of the step, √delta = 0.001; a step
    # that overshoots is halved, and spends a quarter.
    assert 0.2e-6 < divergence(update(old, 1e-6)) <= 1e-6


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


def test_the_old_parameters_return_when_no_length_passes():
    old = torch.zeros(9)
    worse = line_search(lambda x: -x.sum(), lambda _: old.sum(), old, old + 1, 1.0, 4)
    too_far = line_search(lambda x: x.sum(), lambda x: x.norm(), old, old + 9, 0.1, 3)
    assert_close(worse, old)
    assert_close(too_far, old)


@given(logits(), logits())
def test_the_lower_bound_of_the_paper_holds(old, new):
    p, q = old.softmax(-1), new.softmax(-1)
    gained = advantages(PROBLEM, p)
    scale = 1 - PROBLEM.discount
    surrogate = (visitation(PROBLEM, p) * (q * gained).sum(-1)).sum() / scale
    largest = categorical_divergence(old, new).max()
    c = 4 * gained.abs().max() * PROBLEM.discount / scale**2
    bound = expected_return(PROBLEM, p) + surrogate - c * largest
    # Equal policies make it an equation, up to rounding of numbers of order 10.
    assert expected_return(PROBLEM, q) >= bound - 1e-12


@given(st.sampled_from([1, 2, 8]))
def test_a_mean_over_dimensions_lets_the_joint_divergence_grow(dims):
    target = small_target(dims, torch.float64)
    old = torch.zeros(3 * dims, dtype=torch.float64)
    log_std = torch.zeros(dims, dtype=torch.float64)

    def surrogate(x):
        return target_return(target, x.reshape(3, dims), log_std)

    def joint(x):
        mean = x.reshape(3, dims)
        per_state = gaussian_divergence(old.reshape(3, dims), log_std, mean, log_std)
        return target.weights @ per_state

    def averaged(x):
        return joint(x) / dims

    spent = []
    for divergence in (joint, averaged):
        at = old.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(surrogate(at), at)
        step = full_step(
            gradient, partial(fisher_product, divergence, old, damping=0), 0.01, 10
        )
        spent.append(joint(old + step))
    # Only the mean moves, so the KL is quadratic and the model exact.
    assert_close(spent[0], tensor(0.01, dtype=torch.float64))
    assert_close(spent[1], dims * spent[0])


def test_the_first_order_says_nothing_and_the_second_everything():
    old = torch.randn(3, 3, dtype=torch.float64)
    _, divergence = surroundings(old)
    at = old.reshape(9).clone().requires_grad_()
    value = divergence(at)
    (slope,) = torch.autograd.grad(value, at)
    assert value == 0
    # Differences of two probabilities.
    assert_close(slope, torch.zeros_like(slope), atol=1e-15, rtol=0)
    vector = tensor([1.0, 0, 0] * 3, dtype=torch.float64)
    assert fisher_product(divergence, old.reshape(9), vector, 0).norm() > 0


@given(logits())
def test_float32_agrees(old):
    new = old.flip(0)
    ours = categorical_divergence(old.float(), new.float())
    # Logits up to 2 carry errors of 1e-7; the sum has three terms.
    assert_close(ours.double(), categorical_divergence(old, new), atol=1e-6, rtol=1e-5)
    assume(old.std() > 0.1)
    assert ours.dtype == torch.float32
