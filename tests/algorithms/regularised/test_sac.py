"""SAC's losses are the KL to the Boltzmann policy, up to what has no gradient."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.distributions import (
    Categorical,
    Normal,
    TanhTransform,
    TransformedDistribution,
    kl_divergence,
)
from torch.testing import assert_close

from snippets.algorithms.regularised.optimal_policy import optimal_policy
from snippets.algorithms.regularised.sac import (
    entropy_reward,
    sac_policy_loss,
    sac_temperature_loss,
    squashed_sample,
)
from snippets.exact.categorical import kl_divergence_logits
from snippets.lab.mdp import action_values, small_problem, small_target

PROBLEM = small_problem(torch.float64)
TARGET = small_target(1, torch.float64)


@st.composite
def tables(draw):
    """Logits or values for three states and three actions."""
    row = st.lists(st.floats(-3, 3), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3)


temperatures = st.floats(0.1, 10)


def boltzmann(q, alpha):
    """The policy exp(Q / alpha) / Z."""
    return optimal_policy(ref_logits=torch.zeros_like(q), rewards=q, beta=alpha)


def loss_of(log_probs, q, alpha):
    """The policy loss, arguments by place."""
    return sac_policy_loss(new_log_probs=log_probs, action_values=q, alpha=alpha)


def draw(mean, log_std, noise):
    """The squashed sample, arguments by place."""
    return squashed_sample(new_mean=mean, new_log_std=log_std, noise=noise)


@given(tables(), tables(), temperatures)
def test_the_divergence_is_the_sum_over_actions(new, q, alpha):
    p, best = new.softmax(-1), (q / alpha).softmax(-1)
    summed = sum(p[:, a] * (p[:, a] / best[:, a]).log() for a in range(3))
    # Terms of order 10 cancel where the policies are alike.
    value = kl_divergence_logits(new, boltzmann(q, alpha))
    assert_close(value, summed, atol=1e-12, rtol=1e-7)
    torchs = kl_divergence(Categorical(logits=new), Categorical(logits=q / alpha))
    assert_close(value, torchs, atol=1e-12, rtol=1e-7)


@given(tables(), tables(), temperatures)
def test_the_mean_loss_is_the_divergence_less_log_z(new, q, alpha):
    log_p = new.log_softmax(-1)
    loss = (log_p.exp() * loss_of(log_p, q, alpha)).sum(-1)  # every action
    log_z = (q / alpha).logsumexp(-1)
    kl = kl_divergence_logits(new, boltzmann(q, alpha))
    # Differences of numbers of order 10.
    assert_close(loss, alpha * (kl - log_z), atol=1e-12, rtol=1e-7)
    same = loss_of(log_p, q, tensor(alpha, dtype=torch.float64))
    assert_close(same, loss_of(log_p, q, alpha))


@given(st.floats(-2, 2), st.floats(-1, 1), temperatures)
def test_the_reparameterised_gradient_is_that_of_the_divergence(mean, log_std, alpha):
    at = tensor([[mean], [log_std]], dtype=torch.float64, requires_grad=True)
    # Quadratic in the noise: three nodes integrate it without error.
    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(3))
    actions = at[0] + at[1].exp() * nodes  # (samples)
    log_probs = Normal(at[0], at[1].exp()).log_prob(actions)
    q = -0.5 * (actions - TARGET.goals[2]).square()
    loss = weights / weights.sum() @ loss_of(log_probs, q, alpha)
    (sampled,) = torch.autograd.grad(loss, at)
    best = Normal(TARGET.goals[2], alpha**0.5)
    exact = alpha * kl_divergence(Normal(at[0], at[1].exp()), best).sum()
    (expected,) = torch.autograd.grad(exact, at)
    # Both are differences of numbers of order 10.
    assert_close(sampled, expected, atol=1e-12, rtol=1e-7)


@given(tables(), temperatures)
def test_a_soft_policy_step_never_loses_soft_value(new, alpha):
    def soft(logits):
        bonus = entropy_reward(
            new_logits=logits, transitions=PROBLEM.transitions, alpha=alpha
        )
        rewards = PROBLEM.rewards + PROBLEM.discount * bonus
        return action_values(PROBLEM._replace(rewards=rewards), logits.softmax(-1))

    # Rounding of values that grow with alpha / (1 - discount).
    assert (soft(boltzmann(soft(new), alpha)) >= soft(new) - 1e-9).all()


@given(tables(), temperatures)
def test_soft_values_obey_the_soft_bellman_equation(new, alpha):
    log_p = new.log_softmax(-1)
    bonus = entropy_reward(new_logits=new, transitions=PROBLEM.transitions, alpha=alpha)
    rewards = PROBLEM.rewards + PROBLEM.discount * bonus
    q = action_values(PROBLEM._replace(rewards=rewards), log_p.exp())
    v = (log_p.exp() * (q - alpha * log_p)).sum(-1)
    again = PROBLEM.rewards + PROBLEM.discount * PROBLEM.transitions @ v
    assert_close(q, again)


@given(st.floats(-2, 2), st.floats(-2, 1), st.floats(-2, 2))
def test_the_squashed_density_is_torchs(mean, log_std, noise):
    at = [tensor([x], dtype=torch.float64) for x in (mean, log_std, noise)]
    actions, log_probs = draw(*at)
    base = Normal(at[0], at[1].exp())
    squashed = TransformedDistribution(base, [TanhTransform(cache_size=1)])
    before = at[0] + at[1].exp() * at[2]
    expected = base.log_prob(before) - TanhTransform().log_abs_det_jacobian(
        before, before.tanh()
    )
    assert_close(log_probs, expected[0])
    # Inverting the tanh loses digits near 1: the derivative of atanh is up to e^15.
    assert_close(log_probs, squashed.log_prob(actions)[0], atol=1e-6, rtol=1e-6)


def test_the_density_of_an_action_is_the_product_over_its_numbers():
    at = torch.randn(3, 4, 5)
    _, log_probs = draw(*at)
    summed = sum(draw(*at[..., i : i + 1])[1] for i in range(5))
    assert_close(log_probs, summed)


@pytest.mark.parametrize("log_std", [-20.0, -10.0, -5.0, 2.0])
def test_a_narrow_policy_keeps_its_density_and_its_gradient(log_std):
    # Stable-Baselines3 lets log_std fall to -20, where 1 + std · noise is 1.
    torch.manual_seed(0)
    noise = torch.randn(50, 1)
    mean, log_std = torch.full((50, 1), 1.0), torch.full((50, 1), log_std)
    sides = [x.clone().requires_grad_() for x in (mean, log_std)]
    _, log_probs = draw(*sides, noise)
    slopes = torch.autograd.grad(log_probs.sum(), sides)
    wide = [x.detach().double().requires_grad_() for x in sides]
    before = wide[0] + wide[1].exp() * noise.double()
    normal = -noise.double().square() / 2 - wide[1] - math.log(2 * math.pi) / 2
    jacobian = TanhTransform().log_abs_det_jacobian(before, before.tanh())
    expected = (normal - jacobian).sum(-1)
    # Log-densities of order 20 in float32.
    assert_close(log_probs.double(), expected, atol=1e-5, rtol=1e-6)
    for slope, right in zip(
        slopes, torch.autograd.grad(expected.sum(), wide), strict=True
    ):
        assert_close(slope.double(), right, atol=1e-5, rtol=1e-5)


def test_the_squashed_density_integrates_to_one():
    noise = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
    zero = torch.zeros_like(noise)
    actions, log_probs = draw(zero, zero, noise)
    # Trapezoids on a smooth function that vanishes at both ends.
    area = torch.trapezoid(log_probs.exp(), actions[:, 0])
    assert_close(area, tensor(1.0, dtype=torch.float64), atol=1e-5, rtol=0)


def test_the_density_is_finite_where_the_tanh_rounds_to_one():
    noise = tensor([30.0], requires_grad=True)
    actions, log_probs = draw(torch.zeros(1), torch.zeros(1), noise)
    assert actions == 1
    assert log_probs.isfinite()
    log_probs.sum().backward()
    assert noise.grad.isfinite()


def test_the_temperature_moves_towards_the_target():
    log_alpha = tensor(0.3, requires_grad=True)
    log_probs = tensor([1.0, 2.0])  # entropy -1.5
    for target, sign in ((-1.0, -1), (-2.0, 1)):
        loss = sac_temperature_loss(
            log_alpha=log_alpha, new_log_probs=log_probs, target_entropy=target
        ).mean()
        (slope,) = torch.autograd.grad(loss, log_alpha)
        assert slope.sign() == sign  # descent raises alpha below the target
        expected = log_alpha.exp() * (-log_probs.mean() - target)
        assert_close(slope, expected.detach())


def test_each_loss_trains_what_it_is_for():
    log_probs, q = torch.ones(3, requires_grad=True), torch.ones(3)
    log_alpha = tensor(0.5, requires_grad=True)
    sac_temperature_loss(
        log_alpha=log_alpha, new_log_probs=log_probs, target_entropy=-1.0
    ).sum().backward()
    assert log_alpha.grad is not None
    assert log_probs.grad is None
    (slope,) = torch.autograd.grad(
        loss_of(log_probs, q, log_alpha.exp()).sum(), log_alpha, allow_unused=True
    )
    assert slope is None


def test_without_a_temperature_the_loss_is_minus_q():
    log_probs = tensor([inf, -inf, 1.0])
    assert_close(loss_of(log_probs, torch.ones(3), 0.0), -torch.ones(3))


def test_the_usual_target_is_a_distance_from_uniform():
    # Uniform on (-1, 1): log 2 nats of entropy per dimension.
    noise = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
    narrow = math.log(2) + 1  # so much KL to uniform is entropy -1
    for log_std in (-2.0, -1.0):
        at = torch.full_like(noise, log_std)
        _, log_probs = draw(torch.zeros_like(at), at, noise)
        density = Normal(0.0, 1.0).log_prob(noise[:, 0]).exp()
        entropy = -torch.trapezoid(density * log_probs, noise[:, 0])
        to_uniform = math.log(2) - entropy
        assert (entropy < -1) == (to_uniform > narrow)


@pytest.mark.parametrize("mask", [-inf, -1e8, torch.finfo(torch.float32).min])
def test_a_masked_action_is_as_good_as_absent(mask):
    new, q = torch.randn(4, 3), torch.randn(4, 3)
    masked = torch.cat([new, torch.full((4, 1), mask)], -1).requires_grad_()
    legal = torch.zeros(4, 4)
    legal[:, 3] = -inf
    more = torch.cat([q, torch.ones(4, 1)], -1)
    best = optimal_policy(ref_logits=legal, rewards=more, beta=0.5)
    value = kl_divergence_logits(masked, best)
    assert_close(value, kl_divergence_logits(new, boltzmann(q, 0.5)))
    value.sum().backward()
    assert masked.grad.isfinite().all()
    hole = masked.detach().reshape(2, 2, 4)
    transitions = torch.full((2, 4, 2), 0.5)
    bonus = entropy_reward(new_logits=hole, transitions=transitions, alpha=1.0)
    assert bonus.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype):
    mean, log_std, noise = torch.randn(3, 50, 6).to(dtype)
    half = draw(mean, log_std, noise)
    wide = draw(mean.float(), log_std.float(), noise.float())
    for value, expected in zip(half, wide, strict=True):
        assert_close(value, expected.to(dtype), atol=0, rtol=0)
    log_probs, q = torch.randn(2, 50).to(dtype)
    value = loss_of(log_probs, q, 0.3)
    expected = loss_of(log_probs.float(), q.float(), 0.3).to(dtype)
    assert_close(value, expected, atol=0, rtol=0)


def test_batches_and_float32():
    new, q = torch.randn(2, 4, 5, 3)
    actions, log_probs = draw(new, new, q)
    assert actions.shape == (4, 5, 3)
    assert log_probs.shape == (4, 5)
    assert log_probs.dtype == torch.float32
    transitions = torch.rand(2, 3, 2)
    logits = torch.randn(7, 2, 3)
    bonus = entropy_reward(new_logits=logits, transitions=transitions, alpha=0.5)
    assert bonus.shape == (7, 2, 3)
    entropies = Categorical(logits=logits[4]).entropy()
    assert_close(bonus[4], 0.5 * (transitions * entropies).sum(-1))


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="action_values is"):
        loss_of(torch.zeros(3), torch.zeros(3, 1), 0.2)
    with pytest.raises(ValueError, match="alpha is"):
        loss_of(torch.zeros(3), torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="new_log_std is"):
        draw(torch.zeros(3, 2), torch.zeros(2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="log_alpha is"):
        sac_temperature_loss(
            log_alpha=torch.zeros(1), new_log_probs=torch.zeros(3), target_entropy=-1.0
        )
    with pytest.raises(ValueError, match="new_logits is"):
        entropy_reward(
            new_logits=torch.zeros(3, 2), transitions=torch.zeros(3, 1, 3), alpha=1.0
        )


@pytest.mark.parametrize("alpha", [-0.1, nan])
def test_a_temperature_out_of_range_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha is"):
        loss_of(torch.zeros(3), torch.zeros(3), alpha)
