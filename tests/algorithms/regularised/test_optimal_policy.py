"""The optimal policy is the best policy, and its regret formula is exact."""

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from snippets.algorithms.regularised.optimal_policy import (
    optimal_policy,
    optimal_value,
    regret,
    regularised_objective,
)
from snippets.exact.categorical import kl_divergence_logits
from snippets.lab.mdp import action_values, expected_return, small_problem

PROBLEM = small_problem(torch.float64)


@st.composite
def tables(draw):
    """Logits or rewards for three states and three actions."""
    row = st.lists(st.floats(-3, 3), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3)


betas = st.floats(0.1, 10)


def named(ref, rewards, beta):
    """The arguments of a problem, by name."""
    return {"ref_logits": ref, "rewards": rewards, "beta": beta}


def with_digits(ref, rewards, beta):
    """Beta log Z of one row, with forty digits."""
    with mpmath.workdps(40):
        weights = [mpmath.exp(x) for x in ref.tolist()]
        gains = [mpmath.exp(mpmath.mpf(r) / beta) for r in rewards.tolist()]
        z = mpmath.fdot(weights, gains) / mpmath.fsum(weights)
        return float(beta * mpmath.log(z))


@given(tables(), tables())
def test_the_divergence_of_the_objective_is_the_sum_over_actions(new, ref):
    p, q = new.softmax(-1), ref.softmax(-1)
    summed = sum(p[:, a] * (p[:, a] / q[:, a]).log() for a in range(3))
    kl = kl_divergence_logits(new, ref)
    # Sums of terms of order 1 that cancel where the policies are alike.
    assert_close(kl, summed, atol=1e-14, rtol=1e-7)
    rewards = torch.randn(3, 3, dtype=torch.float64)
    objective = regularised_objective(new_logits=new, **named(ref, rewards, 0.7))
    assert_close(objective, (p * rewards).sum(-1) - 0.7 * kl)


@given(tables(), tables(), tables(), betas)
def test_no_policy_beats_the_optimum(new, ref, rewards, beta):
    problem = named(ref, rewards, beta)
    reached = regularised_objective(new_logits=new, **problem)
    # Rounding of numbers of order 10.
    assert (reached <= optimal_value(**problem) + 1e-12).all()


@given(tables(), tables(), betas)
def test_the_optimum_reaches_the_optimal_value(ref, rewards, beta):
    problem = named(ref, rewards, beta)
    best = optimal_policy(**problem)
    reached = regularised_objective(new_logits=best, **problem)
    assert_close(reached, optimal_value(**problem))


@given(tables(), tables(), tables(), betas)
def test_what_is_missed_is_beta_times_the_divergence(new, ref, rewards, beta):
    problem = named(ref, rewards, beta)
    reached = regularised_objective(new_logits=new, **problem)
    missed = optimal_value(**problem) - reached
    # Differences of numbers of order 10.
    assert_close(regret(new_logits=new, **problem), missed, atol=1e-12, rtol=1e-7)


@given(tables(), tables(), betas)
def test_the_optimum_is_reference_times_exponential(ref, rewards, beta):
    weights = ref.softmax(-1) * (rewards / beta).exp()
    expected = weights / weights.sum(-1, keepdim=True)
    assert_close(optimal_policy(**named(ref, rewards, beta)).exp(), expected)
    # The value, by the same sum over the actions.
    assert_close(
        optimal_value(**named(ref, rewards, beta)), beta * weights.sum(-1).log()
    )


@given(tables(), betas)
def test_action_values_of_the_reference_make_a_better_policy(ref, beta):
    q = action_values(PROBLEM, ref.softmax(-1))
    better = optimal_policy(**named(ref, q, beta)).softmax(-1)
    before = expected_return(PROBLEM, ref.softmax(-1))
    # Policy improvement, up to rounding of returns of order 10.
    assert expected_return(PROBLEM, better) >= before - 1e-12


@given(tables(), tables())
def test_the_value_lies_between_the_mean_and_the_best_reward(ref, rewards):
    mean = (ref.softmax(-1) * rewards).sum(-1)
    # To first order the gap is Var(reward) / (2 beta) < 9 / 2e4.
    high = optimal_value(**named(ref, rewards, 1e4))
    assert_close(high, mean, atol=5e-4, rtol=0)
    # At most beta · log(1 / probability), and no probability is below e^-8.
    low = optimal_value(**named(ref, rewards, 1e-4))
    assert_close(low, rewards.amax(-1), atol=8e-4, rtol=0)


@pytest.mark.parametrize("exponent", range(-6, 9, 2))
def test_the_value_keeps_its_digits_for_every_coefficient(exponent):
    torch.manual_seed(0)
    ref, rewards, beta = torch.randn(5), 3 * torch.rand(5), 10.0**exponent
    expected = with_digits(ref, rewards, beta)
    # Four roundings of numbers up to 3 in float32; beta · log-sum-exp alone is off by
    # beta times as much.
    value = optimal_value(**named(ref, rewards, beta))
    assert_close(value.item(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("exponent", [-3, 0, 1, 3, 6])
def test_the_slope_of_the_value_in_beta_is_minus_the_kl(exponent):
    torch.manual_seed(0)
    ref, rewards = torch.randn(5), 3 * torch.rand(5)
    beta = tensor(10.0**exponent, requires_grad=True)
    (slope,) = torch.autograd.grad(optimal_value(**named(ref, rewards, beta)), beta)
    best = optimal_policy(**named(ref, rewards, beta.detach()))
    # At 1e6 the KL is 2e-13: its square root is what float32 holds of a log-ratio.
    kl = kl_divergence_logits(best.double(), ref.double())
    assert_close(-slope.double(), kl, atol=2e-13, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_only_the_ratio_of_reward_and_coefficient_matters(scale):
    ref, rewards = torch.randn(2, 4, 6)
    plain = optimal_policy(**named(ref, rewards, 0.3))
    scaled = optimal_policy(**named(ref, rewards * scale, 0.3 * scale))
    # A rounding of the scaled rewards, of order 10 once divided by beta.
    assert_close(scaled, plain, atol=1e-5, rtol=0)


def test_rewards_that_overflow_when_divided_give_the_greedy_policy():
    ref, rewards = tensor([0.0, 0.0]), tensor([0.0, 1e30])
    assert optimal_policy(**named(ref, rewards, 1e-12)).tolist() == [-inf, 0.0]


def test_regret_in_the_other_direction_is_another_number():
    ref, rewards = torch.zeros(3), tensor([0.0, 1.0, 2.0])
    problem = named(ref, rewards, 1.0)
    best = optimal_policy(**problem)
    assert_close(kl_divergence_logits(ref, best), regret(new_logits=ref, **problem))
    assert (kl_divergence_logits(best, ref) - regret(new_logits=ref, **problem)) < -0.02


@pytest.mark.parametrize("mask", [-inf, -1e8, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("junk", [9.0, -inf, inf, nan])
def test_a_masked_action_stays_masked_and_its_reward_is_not_read(mask, junk):
    if mask > -inf and not abs(junk) < inf:
        return  # a soft mask is a number, and so must be its reward
    ref = tensor([0.0, 1.0, mask], requires_grad=True)
    rewards = tensor([1.0, 0.0, junk], requires_grad=True)
    beta = tensor(1.0, requires_grad=True)
    best, value = (
        f(**named(ref, rewards, beta)) for f in (optimal_policy, optimal_value)
    )
    short = named(ref[:2].detach(), rewards[:2].detach(), 1.0)
    assert best[2] <= mask / 2
    assert_close(best[:2].detach(), optimal_policy(**short))
    assert_close(value.detach(), optimal_value(**short))
    slopes = torch.autograd.grad(value + best[0], (ref, rewards, beta))
    assert all(slope.isfinite().all() for slope in slopes)
    new = tensor([0.5, 0.0, -inf], requires_grad=True)
    problem = named(ref.detach(), rewards.detach(), 1.0)
    regret(new_logits=new, **problem).backward()
    assert new.grad.isfinite().all()
    reached = regularised_objective(new_logits=new, **problem)
    assert_close(reached, regularised_objective(new_logits=new[:2], **short))
    (slope,) = torch.autograd.grad(reached, new)
    assert slope.isfinite().all()


def test_a_row_without_actions_is_nan():
    nothing = named(torch.full((2,), -inf), torch.zeros(2), 1.0)
    assert optimal_policy(**nothing).isnan().all()
    assert optimal_value(**nothing).isnan()


def test_without_a_coefficient_only_the_reward_counts():
    never = named(tensor([0.0, -inf]), tensor([1.0, 3.0]), 0.0)
    objective = regularised_objective(new_logits=torch.zeros(2), **never)
    assert objective == 2.0


def test_regret_is_zero_at_the_optimum_and_never_negative():
    torch.manual_seed(0)
    ref, rewards = torch.randn(2, 1000, 5)
    problem = named(ref, rewards, 0.5)
    best = optimal_policy(**problem)
    assert (regret(new_logits=best, **problem) == 0).all()
    near = best + 1e-4 * torch.randn(1000, 5)
    assert (regret(new_logits=near, **problem) > 0).all()


@given(tables(), tables(), betas)
def test_the_gradient_is_the_derivative(ref, rewards, beta):
    new = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    problem = named(ref, rewards, beta)
    assert torch.autograd.gradcheck(lambda x: regret(new_logits=x, **problem), new)

    def both(ref, rewards, beta):
        problem = named(ref, rewards, beta)
        return optimal_policy(**problem), optimal_value(**problem)

    at = (ref, rewards, tensor(beta, dtype=torch.float64))
    assert torch.autograd.gradcheck(both, [x.requires_grad_() for x in at])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype):
    ref, rewards = torch.randn(2, 4, 50).to(dtype)
    for function in (optimal_policy, optimal_value):
        value = function(**named(ref, rewards, 2.0))
        assert value.dtype == dtype
        wide = function(**named(ref.float(), rewards.float(), 2.0))
        assert_close(value, wide.to(dtype), atol=0, rtol=0)


def test_batches_and_float32():
    new, ref, rewards = torch.randn(3, 4, 5, 6)
    problem = named(ref, rewards, 0.5)
    for value in (regret(new_logits=new, **problem), optimal_value(**problem)):
        assert value.shape == (4, 5)
        assert value.dtype == torch.float32
    one = named(ref[3, 4], rewards[3, 4], 0.5)
    assert_close(
        regret(new_logits=new, **problem)[3, 4], regret(new_logits=new[3, 4], **one)
    )


def test_two_policies_agree_with_torch():
    new, ref = torch.randn(2, 100, 5, dtype=torch.float64)
    problem = named(ref, torch.zeros_like(ref), 3.0)
    expected = kl_divergence(Categorical(logits=new), Categorical(logits=ref))
    assert_close(regret(new_logits=new, **problem), 3 * expected)


@pytest.mark.parametrize("beta", [0.0, -1.0, nan])
def test_a_coefficient_that_is_not_positive_is_refused(beta):
    for function in (optimal_policy, optimal_value):
        with pytest.raises(ValueError, match="beta is"):
            function(**named(torch.zeros(2), torch.zeros(2), beta))
        # The value of a tensor is not looked at.
        assert (
            function(**named(torch.zeros(2), torch.zeros(2), tensor(beta)))
            .isnan()
            .all()
        )


def test_a_coefficient_with_axes_is_refused():
    with pytest.raises(ValueError, match=r"beta is \[2\], and must be a scalar"):
        optimal_policy(**named(torch.zeros(2), torch.zeros(2), torch.ones(2)))


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="rewards is"):
        optimal_policy(**named(torch.zeros(3, 2), torch.zeros(3, 1), 1.0))
