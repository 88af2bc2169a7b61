"""The soft optimum is the best policy, and its regret formula is exact."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from snippets.lab.mdp import action_values, expected_return, small_problem
from snippets.algorithms.regularised.optimal_policy import (
    anchor_divergence,
    objective,
    regret,
    soft_optimum,
    soft_value,
)

PROBLEM = small_problem(torch.float64)


@st.composite
def tables(draw):
    """Logits or rewards for three states and three actions."""
    row = st.lists(st.floats(-3, 3), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3)


betas = st.floats(0.1, 10)


@given(tables(), tables())
def test_the_divergence_is_the_sum_over_actions(new, ref):
    p, q = new.softmax(-1), ref.softmax(-1)
    summed = sum(p[:, a] * (p[:, a] / q[:, a]).log() for a in range(3))
    # Sums of terms of order 1 that cancel where the policies are alike.
    assert_close(anchor_divergence(new, ref), summed, atol=1e-14, rtol=1e-7)
    torchs = kl_divergence(Categorical(logits=new), Categorical(logits=ref))
    assert_close(anchor_divergence(new, ref), torchs, atol=1e-14, rtol=1e-7)


@given(tables(), tables(), tables(), betas)
def test_no_policy_beats_the_optimum(new, ref, rewards, beta):
    reached = objective(new, ref, rewards, beta)
    # Rounding of numbers of order 10.
    assert (reached <= soft_value(ref, rewards, beta) + 1e-12).all()


@given(tables(), tables(), betas)
def test_the_optimum_reaches_the_soft_value(ref, rewards, beta):
    best = soft_optimum(ref, rewards, beta)
    assert_close(objective(best, ref, rewards, beta), soft_value(ref, rewards, beta))


@given(tables(), tables(), tables(), betas)
def test_what_is_missed_is_beta_times_the_divergence(new, ref, rewards, beta):
    missed = soft_value(ref, rewards, beta) - objective(new, ref, rewards, beta)
    # Differences of numbers of order 10.
    assert_close(regret(new, ref, rewards, beta), missed, atol=1e-12, rtol=1e-7)


@given(tables(), tables(), betas)
def test_the_optimum_is_reference_times_exponential(ref, rewards, beta):
    weights = ref.softmax(-1) * (rewards / beta).exp()
    expected = weights / weights.sum(-1, keepdim=True)
    assert_close(soft_optimum(ref, rewards, beta).exp(), expected)
    # The value, by the same sum over the actions.
    z = (ref.softmax(-1) * (rewards / beta).exp()).sum(-1)
    assert_close(soft_value(ref, rewards, beta), beta * z.log())


@given(tables(), betas)
def test_action_values_of_the_reference_make_a_better_policy(ref, beta):
    q = action_values(PROBLEM, ref.softmax(-1))
    better = soft_optimum(ref, q, beta).softmax(-1)
    before = expected_return(PROBLEM, ref.softmax(-1))
    # Policy improvement, up to rounding of returns of order 10.
    assert expected_return(PROBLEM, better) >= before - 1e-12


@given(tables(), tables())
def test_the_value_lies_between_the_mean_and_the_best_reward(ref, rewards):
    mean = (ref.softmax(-1) * rewards).sum(-1)
    # To first order the gap is Var(reward) / (2 beta) < 9 / 2e4.
    assert_close(soft_value(ref, rewards, 1e4), mean, atol=5e-4, rtol=0)
    # At most beta · log(1 / probability), and no probability is below e^-8.
    assert_close(soft_value(ref, rewards, 1e-4), rewards.amax(-1), atol=8e-4, rtol=0)


def test_regret_in_the_other_direction_is_another_number():
    ref, rewards = torch.zeros(3), tensor([0.0, 1.0, 2.0])
    best = soft_optimum(ref, rewards, 1.0)
    missed = soft_value(ref, rewards, 1.0) - objective(ref, ref, rewards, 1.0)
    assert_close(anchor_divergence(ref, best), missed)
    assert (anchor_divergence(best, ref) - missed).abs() > 0.02


def test_a_masked_action_stays_masked():
    ref, rewards = tensor([0.0, 1.0, -inf]), tensor([1.0, 0.0, 9.0])
    best = soft_optimum(ref, rewards, 1.0)
    assert best[2] == -inf
    assert_close(best[:2], soft_optimum(ref[:2], rewards[:2], 1.0))
    assert_close(soft_value(ref, rewards, 1.0), soft_value(ref[:2], rewards[:2], 1.0))
    new = tensor([0.5, 0.0, -inf], requires_grad=True)
    regret(new, ref, rewards, 1.0).backward()
    assert new.grad.isfinite().all()
    assert anchor_divergence(torch.zeros(3), ref) == inf


def test_a_policy_is_at_no_distance_from_itself():
    logits = torch.randn(100, 5)
    assert (anchor_divergence(logits, logits) == 0).all()


@given(tables(), tables(), betas)
def test_the_gradient_is_the_derivative(ref, rewards, beta):
    new = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: regret(x, ref, rewards, beta), new)


def test_batches_and_float32():
    new, ref, rewards = torch.randn(3, 4, 5, 6)
    for value in (regret(new, ref, rewards, 0.5), soft_value(ref, rewards, 0.5)):
        assert value.shape == (4, 5)
        assert value.dtype == torch.float32
    assert_close(
        regret(new, ref, rewards, 0.5)[3, 4],
        regret(new[3, 4], ref[3, 4], rewards[3, 4], 0.5),
    )


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_a_price_that_is_not_positive_is_refused(beta):
    with pytest.raises(ValueError, match="beta is"):
        soft_optimum(torch.zeros(2), torch.zeros(2), beta)
    with pytest.raises(ValueError, match="beta is"):
        soft_value(torch.zeros(2), torch.zeros(2), beta)
