"""The Fisher matrix is the curvature of the KL, and the step has the KL it says."""

import pytest
import torch
from hypothesis import given
from torch import tensor
from torch.testing import assert_close

from snippets.algorithms.trust_region.natural_gradient import (
    fisher_kl,
    fisher_matrix,
    natural_step,
    softmax_scores,
)
from snippets.exact.categorical import kl_divergence_logits
from snippets.lab.mdp import advantages, expected_return, occupancy, small_problem
from tests.strategies import logits

PROBLEM = small_problem(torch.float64)
POLICIES = logits(3, 3, largest=2.0)


def divergence(p, q, states):
    """The mean KL(p || q) over states."""
    return states @ kl_divergence_logits(p, q)


def fisher(policy):
    """The Fisher matrix of a table of logits, from every state and action."""
    scores = torch.zeros(3, 3, 9, dtype=torch.float64)  # (states, actions, dims)
    for s, block in enumerate(softmax_scores(policy)):
        scores[s, :, 3 * s : 3 * s + 3] = block
    probability = occupancy(PROBLEM, policy.softmax(-1))[:, None] * policy.softmax(-1)
    return fisher_matrix(scores.reshape(9, 9), probability.reshape(9))


def gradient(policy):
    policy = policy.clone().requires_grad_()
    expected_return(PROBLEM, policy.softmax(-1)).backward()
    return policy.grad.reshape(9)


@given(POLICIES)
def test_scores_are_the_derivatives(policy):
    jacobian = torch.autograd.functional.jacobian(lambda x: x.log_softmax(-1), policy)
    each = torch.stack([jacobian[s, :, s] for s in range(3)])
    assert_close(softmax_scores(policy), each)


@given(POLICIES)
def test_scores_average_to_zero(policy):
    mean = (policy.softmax(-1)[..., None] * softmax_scores(policy)).sum(-2)
    # A sum of three numbers below 1.
    assert_close(mean, torch.zeros_like(mean), atol=1e-15, rtol=0)


@given(POLICIES)
def test_the_fisher_matrix_is_the_hessian_of_both_directions(policy):
    states = occupancy(PROBLEM, policy.softmax(-1))
    flat = policy.reshape(9)
    for f in (
        lambda x: divergence(policy, x.reshape(3, 3), states),
        lambda x: divergence(x.reshape(3, 3), policy, states),
    ):
        hessian = torch.autograd.functional.hessian(f, flat)
        assert_close(hessian, fisher(policy), atol=1e-12, rtol=1e-9)


@given(POLICIES)
def test_the_divergence_of_no_step_has_no_gradient(policy):
    states = occupancy(PROBLEM, policy.softmax(-1))
    new = policy.clone().requires_grad_()
    divergence(policy, new, states).backward()
    assert_close(new.grad, torch.zeros_like(new), atol=1e-15, rtol=0)


@given(POLICIES)
def test_the_step_has_the_fisher_kl_that_was_asked_for(policy):
    step = natural_step(gradient(policy), fisher(policy), 0.01)
    reached = fisher_kl(fisher(policy), step)
    assert_close(reached, tensor(0.01, dtype=torch.float64))


@given(POLICIES)
def test_the_exact_divergence_approaches_the_quadratic_one(policy):
    states = occupancy(PROBLEM, policy.softmax(-1))
    for delta in (1e-5, 1e-7):
        step = natural_step(gradient(policy), fisher(policy), delta).reshape(3, 3)
        error = (divergence(policy, policy + step, states) / delta - 1).abs()
        # A third cumulant is at most the variance times the range; divided by 6 it
        # stands against half a variance. The rest is for the next order.
        assert error <= (step.amax(-1) - step.amin(-1)).max()


@given(POLICIES)
def test_no_other_step_of_the_same_length_gains_more(policy):
    g, matrix = gradient(policy), fisher(policy)
    best = natural_step(g, matrix, 0.01)
    torch.manual_seed(0)
    for other in torch.randn(20, 9, dtype=torch.float64):
        other = other * (0.01 / fisher_kl(matrix, other)).sqrt()
        # Equality where `other` is parallel.
        assert g @ other <= g @ best * (1 + 1e-9)


@given(POLICIES)
def test_the_direction_is_the_advantage(policy):
    step = natural_step(gradient(policy), fisher(policy), 0.01).reshape(3, 3)
    adv = advantages(PROBLEM, policy.softmax(-1))
    centred = adv - adv.mean(-1, keepdim=True)
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


def direct_sum(scores, policy, states):
    """Scores and weights of every state and action, with a block for each state."""
    actions = policy.shape[-1]
    blocks = [torch.block_diag(*scores[:, a, None]) for a in range(actions)]
    weights = states[:, None] * policy
    return torch.stack(blocks, 1).flatten(0, 1), weights.flatten()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(30))
def test_rounding_where_there_is_no_curvature_changes_nothing(dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    policy = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    adv = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(12, generator=generator, dtype=torch.float64)
    states = tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    p = policy.softmax(-1)
    adv = adv - (p * adv).sum(-1, keepdim=True)
    matrix = fisher_matrix(*direct_sum(softmax_scores(policy), p, states))
    g = (states[:, None] * p * adv).flatten()
    rounded = g + torch.finfo(dtype).eps * g.abs().max() * noise
    step = natural_step(rounded.to(dtype), matrix.to(dtype), 0.01).double()
    # For a table of logits the direction is the advantage, up to one number per state.
    exact = adv * (2 * 0.01 / (states[:, None] * p * adv**2).sum()).sqrt()
    difference = step.reshape(3, 4) - exact
    difference = difference - (p * difference).sum(-1, keepdim=True)
    # The rounding, times the condition of the matrix (up to 1e4).
    allowed = 1e4 * torch.finfo(dtype).eps * exact.abs().max()
    assert difference.abs().max() < allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_that_is_all_rounding_gives_a_step_of_zero(dtype):
    matrix = fisher(torch.randn(3, 3, dtype=torch.float64)).to(dtype)
    # The same number for all logits of a state changes no probability.
    nothing = tensor([1.0, 1, 1, 2, 2, 2, 3, 3, 3], dtype=dtype)
    assert (natural_step(nothing, matrix, 0.01) == 0).all()


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e12, 1e30])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_step_has_its_length_at_any_scale(size, scale):
    policy = tensor([[0.5, 0, -1], [0, 1, 0], [2, 0, 0]], dtype=torch.float64)
    g, matrix = size * gradient(policy), scale * fisher(policy)
    reached = fisher_kl(matrix, natural_step(g, matrix, 0.01))
    assert_close(reached, tensor(0.01, dtype=torch.float64))


def test_refuses_a_weight_too_few():
    with pytest.raises(ValueError, match=r"scores is \[3\], weights is \[2\]"):
        fisher_matrix(torch.zeros(3, 9), torch.ones(2))


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (2,)])
def test_refuses_a_matrix_of_another_size(shape):
    with pytest.raises(ValueError, match="fisher is"):
        fisher_kl(torch.zeros(shape), torch.zeros(2))
    with pytest.raises(ValueError, match="fisher is"):
        natural_step(torch.zeros(2), torch.zeros(shape), 0.01)


def test_refuses_a_limit_of_zero():
    with pytest.raises(ValueError, match="delta is 0"):
        natural_step(torch.ones(2), torch.eye(2), 0)
