"""The Fisher matrix is the curvature of the KL, and the step spends what it says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from snippets.lab.mdp import (
    advantages,
    expected_return,
    small_problem,
    visitation,
)
from snippets.algorithms.trust_region.natural_gradient import (
    fisher_matrix,
    natural_step,
    quadratic_divergence,
    softmax_scores,
)

PROBLEM = small_problem(torch.float64)


@st.composite
def logits(draw):
    """Logits of a policy for the small problem, away from its corners."""
    row = st.lists(st.floats(-2, 2), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3)


def divergence(p, q, states):
    """The mean KL(p || q) over states, summed over every action."""
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return sum(
        states[s] * p[s, a].exp() * (p[s, a] - q[s, a])
        for s in range(3)
        for a in range(3)
    )


def fisher(policy):
    """The Fisher matrix of a table of logits, from every state and action."""
    scores = torch.zeros(3, 3, 9, dtype=torch.float64)  # (states, actions, dims)
    for s, block in enumerate(softmax_scores(policy)):
        scores[s, :, 3 * s : 3 * s + 3] = block
    probability = visitation(PROBLEM, policy.softmax(-1))[:, None] * policy.softmax(-1)
    return fisher_matrix(scores.reshape(9, 9), probability.reshape(9))


def gradient(policy):
    policy = policy.clone().requires_grad_()
    expected_return(PROBLEM, policy.softmax(-1)).backward()
    return policy.grad.reshape(9)


@given(logits())
def test_scores_are_the_derivatives(policy):
    jacobian = torch.autograd.functional.jacobian(lambda x: x.log_softmax(-1), policy)
    each = torch.stack([jacobian[s, :, s] for s in range(3)])
    assert_close(softmax_scores(policy), each)


@given(logits())
def test_scores_average_to_zero(policy):
    mean = (policy.softmax(-1)[..., None] * softmax_scores(policy)).sum(-2)
    # A sum of three numbers below 1.
    assert_close(mean, torch.zeros_like(mean), atol=1e-15, rtol=0)


@given(logits())
def test_the_fisher_matrix_is_the_hessian_of_both_directions(policy):
    states = visitation(PROBLEM, policy.softmax(-1))
    flat = policy.reshape(9)
    for f in (
        lambda x: divergence(policy, x.reshape(3, 3), states),
        lambda x: divergence(x.reshape(3, 3), policy, states),
    ):
        hessian = torch.autograd.functional.hessian(f, flat)
        assert_close(hessian, fisher(policy), atol=1e-12, rtol=1e-9)


@given(logits())
def test_the_divergence_of_no_step_has_no_gradient(policy):
    states = visitation(PROBLEM, policy.softmax(-1))
    new = policy.clone().requires_grad_()
    divergence(policy, new, states).backward()
    assert_close(new.grad, torch.zeros_like(new), atol=1e-15, rtol=0)


@given(logits())
def test_the_step_has_the_quadratic_divergence_that_was_asked_for(policy):
    step = natural_step(gradient(policy), fisher(policy), 0.01)
    spent = quadratic_divergence(fisher(policy), step)
    assert_close(spent, tensor(0.01, dtype=torch.float64))


@given(logits())
def test_the_exact_divergence_approaches_the_quadratic_one(policy):
    states = visitation(PROBLEM, policy.softmax(-1))
    for delta in (1e-5, 1e-7):
        step = natural_step(gradient(policy), fisher(policy), delta).reshape(3, 3)
        error = (divergence(policy, policy + step, states) / delta - 1).abs()
        # A third cumulant is at most the variance times the range; divided by 6 it
        # stands against half a variance. The rest is for the next order.
        assert error <= (step.amax(-1) - step.amin(-1)).max()


@given(logits())
def test_no_other_step_of_the_same_length_gains_more(policy):
    g, matrix = gradient(policy), fisher(policy)
    best = natural_step(g, matrix, 0.01)
    torch.manual_seed(0)
    for other in torch.randn(20, 9, dtype=torch.float64):
        other = other * (0.01 / quadratic_divergence(matrix, other)).sqrt()
        # Equality where `other` is parallel.
        assert g @ other <= g @ best * (1 + 1e-9)


@given(logits())
def test_the_direction_is_the_advantage(policy):
    step = natural_step(gradient(policy), fisher(policy), 0.01).reshape(3, 3)
    gained = advantages(PROBLEM, policy.softmax(-1))
    centred = gained - gained.mean(-1, keepdim=True)
    # The pseudo-inverse of a matrix with eigenvalues down to about 1e-3.
    assert_close(step / step.norm(), centred / centred.norm(), atol=1e-6, rtol=1e-6)


def test_a_gradient_of_zero_gives_a_step_of_zero():
    matrix = fisher(torch.zeros(3, 3, dtype=torch.float64))
    nothing = torch.zeros(9, dtype=torch.float64)
    assert_close(natural_step(nothing, matrix, 0.01), nothing)


def test_float32_agrees():
    policy = torch.zeros(3, 3, dtype=torch.float64)
    g, matrix = gradient(policy), fisher(policy)
    step = natural_step(g.float(), matrix.float(), 0.01)
    # Single precision through a pseudo-inverse of condition about 10.
    assert_close(step.double(), natural_step(g, matrix, 0.01), atol=1e-5, rtol=1e-4)
    assert step.dtype == torch.float32


def test_scores_batch():
    batch = torch.randn(5, 2, 4)
    assert_close(softmax_scores(batch)[3, 1], softmax_scores(batch[3, 1]))


def test_refuses_a_weight_too_few():
    with pytest.raises(ValueError, match="weights 2"):
        fisher_matrix(torch.zeros(3, 9), torch.ones(2))


def test_refuses_to_spend_nothing():
    with pytest.raises(ValueError, match="delta is 0"):
        natural_step(torch.ones(2), torch.eye(2), 0)
