"""SAC's losses are the KL to the Boltzmann policy, up to what has no gradient."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.distributions import (
    Categorical,
    Normal,
    TanhTransform,
    TransformedDistribution,
    kl_divergence,
)
from torch.testing import assert_close

from snippets.lab.mdp import action_values, small_problem, small_target
from snippets.algorithms.regularised.sac import (
    boltzmann_divergence,
    entropy_reward,
    policy_loss,
    squashed_sample,
    temperature_loss,
)

PROBLEM = small_problem(torch.float64)
TARGET = small_target(1, torch.float64)


@st.composite
def tables(draw):
    """Logits or values for three states and three actions."""
    row = st.lists(st.floats(-3, 3), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3)


temperatures = st.floats(0.1, 10)


@given(tables(), tables(), temperatures)
def test_the_divergence_is_the_sum_over_actions(new, q, alpha):
    p, best = new.softmax(-1), (q / alpha).softmax(-1)
    summed = sum(p[:, a] * (p[:, a] / best[:, a]).log() for a in range(3))
    # Terms of order 10 cancel where the policies are alike.
    value = boltzmann_divergence(new, q, alpha)
    assert_close(value, summed, atol=1e-12, rtol=1e-7)
    torchs = kl_divergence(Categorical(logits=new), Categorical(logits=q / alpha))
    assert_close(value, torchs, atol=1e-12, rtol=1e-7)


@given(tables(), tables(), temperatures)
def test_the_mean_loss_is_the_divergence_less_log_z(new, q, alpha):
    log_p = new.log_softmax(-1)
    loss = (log_p.exp() * policy_loss(log_p, q, alpha)).sum(-1)  # every action
    log_z = (q / alpha).logsumexp(-1)
    expected = alpha * (boltzmann_divergence(new, q, alpha) - log_z)
    # Differences of numbers of order 10.
    assert_close(loss, expected, atol=1e-12, rtol=1e-7)


@given(st.floats(-2, 2), st.floats(-1, 1), temperatures)
def test_the_reparameterised_gradient_is_that_of_the_divergence(mean, log_std, alpha):
    at = tensor([[mean], [log_std]], dtype=torch.float64, requires_grad=True)
    # Quadratic in the noise: three nodes integrate it without error.
    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(3))
    actions = at[0] + at[1].exp() * nodes  # (samples)
    log_probs = Normal(at[0], at[1].exp()).log_prob(actions)
    q = -0.5 * (actions - TARGET.goals[2]).square()
    loss = weights / weights.sum() @ policy_loss(log_probs, q, alpha)
    (sampled,) = torch.autograd.grad(loss, at)
    best = Normal(TARGET.goals[2], alpha**0.5)
    exact = alpha * kl_divergence(Normal(at[0], at[1].exp()), best).sum()
    (expected,) = torch.autograd.grad(exact, at)
    # Both are differences of numbers of order 10.
    assert_close(sampled, expected, atol=1e-12, rtol=1e-7)


@given(tables(), temperatures)
def test_a_soft_policy_step_never_loses_soft_value(new, alpha):
    def soft(logits):
        bonus = PROBLEM.discount * entropy_reward(logits, PROBLEM.transitions, alpha)
        fed = PROBLEM._replace(rewards=PROBLEM.rewards + bonus)
        return action_values(fed, logits.softmax(-1))

    # Rounding of values that grow with alpha / (1 - discount).
    assert (soft((soft(new) / alpha).log_softmax(-1)) >= soft(new) - 1e-9).all()


@given(tables(), temperatures)
def test_soft_values_obey_the_soft_bellman_equation(new, alpha):
    log_p = new.log_softmax(-1)
    bonus = PROBLEM.discount * entropy_reward(new, PROBLEM.transitions, alpha)
    q = action_values(PROBLEM._replace(rewards=PROBLEM.rewards + bonus), log_p.exp())
    v = (log_p.exp() * (q - alpha * log_p)).sum(-1)
    again = PROBLEM.rewards + PROBLEM.discount * PROBLEM.transitions @ v
    assert_close(q, again)


@given(st.floats(-2, 2), st.floats(-2, 1), st.floats(-2, 2))
def test_the_squashed_density_is_torchs(mean, log_std, noise):
    at = [tensor([x], dtype=torch.float64) for x in (mean, log_std, noise)]
    actions, log_probs = squashed_sample(*at)
    base = Normal(at[0], at[1].exp())
    squashed = TransformedDistribution(base, [TanhTransform(cache_size=1)])
    before = at[0] + at[1].exp() * at[2]
    expected = base.log_prob(before) - TanhTransform().log_abs_det_jacobian(
        before, before.tanh()
    )
    assert_close(log_probs, expected[0])
    # Inverting the tanh costs digits near 1: the derivative of atanh is up to e^15.
    assert_close(log_probs, squashed.log_prob(actions)[0], atol=1e-6, rtol=1e-6)


def test_the_density_of_an_action_is_the_product_over_its_numbers():
    at = torch.randn(3, 4, 5)
    _, log_probs = squashed_sample(*at)
    summed = sum(squashed_sample(*at[..., i : i + 1])[1] for i in range(5))
    assert_close(log_probs, summed)


def test_the_squashed_density_integrates_to_one():
    noise = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
    zero = torch.zeros(1, dtype=torch.float64)
    actions, log_probs = squashed_sample(zero, zero, noise)
    # Trapezoids on a smooth function that vanishes at both ends.
    area = torch.trapezoid(log_probs.exp(), actions[:, 0])
    assert_close(area, tensor(1.0, dtype=torch.float64), atol=1e-5, rtol=0)


def test_the_density_is_finite_where_the_tanh_rounds_to_one():
    noise = tensor([30.0], requires_grad=True)
    actions, log_probs = squashed_sample(torch.zeros(1), torch.zeros(1), noise)
    assert actions == 1
    assert log_probs.isfinite()
    log_probs.sum().backward()
    assert noise.grad.isfinite()


def test_the_temperature_moves_towards_the_target():
    log_alpha = tensor(0.3, requires_grad=True)
    log_probs = tensor([1.0, 2.0])  # entropy -1.5
    for target, sign in ((-1.0, -1), (-2.0, 1)):
        loss = temperature_loss(log_alpha, log_probs, target).mean()
        (slope,) = torch.autograd.grad(loss, log_alpha)
        assert slope.sign() == sign  # descent raises alpha below the target
        expected = log_alpha.exp() * (-log_probs.mean() - target)
        assert_close(slope, expected.detach())


def test_the_temperature_has_no_gradient_for_the_policy():
    log_probs = tensor([1.0], requires_grad=True)
    loss = temperature_loss(tensor(0.0, requires_grad=True), log_probs, -1.0)
    loss.sum().backward()
    assert log_probs.grad is None


def test_the_usual_target_is_a_distance_from_uniform():
    # Uniform on (-1, 1): log 2 nats of entropy per dimension.
    noise = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
    narrow = math.log(2) + 1  # so much KL to uniform is entropy -1
    for log_std in (-2.0, -1.0):
        at = tensor([log_std], dtype=torch.float64)
        _, log_probs = squashed_sample(torch.zeros_like(at), at, noise)
        density = Normal(0.0, 1.0).log_prob(noise[:, 0]).exp()
        entropy = -torch.trapezoid(density * log_probs, noise[:, 0])
        to_uniform = math.log(2) - entropy
        assert (entropy < -1) == (to_uniform > narrow)


def test_a_masked_action_is_as_good_as_absent():
    new, q = torch.randn(4, 3), torch.randn(4, 3)
    masked = torch.cat([new, torch.full((4, 1), -inf)], -1).requires_grad_()
    value = boltzmann_divergence(masked, torch.cat([q, torch.ones(4, 1)], -1), 0.5)
    assert_close(value, boltzmann_divergence(new, q, 0.5))
    value.sum().backward()
    assert masked.grad.isfinite().all()
    hole = masked.detach().reshape(2, 2, 4)
    assert entropy_reward(hole, torch.full((2, 4, 2), 0.5), 1.0).isfinite().all()


def test_the_boltzmann_policy_is_at_no_distance_from_itself():
    q = torch.randn(100, 5)
    assert (boltzmann_divergence(q, q, 1.0) == 0).all()


def test_batches_and_float32():
    new, q = torch.randn(2, 4, 5, 3)
    value = boltzmann_divergence(new, q, 0.2)
    assert value.shape == (4, 5)
    assert value.dtype == torch.float32
    actions, log_probs = squashed_sample(new, new, q)
    assert actions.shape == (4, 5, 3)
    assert log_probs.shape == (4, 5)
    assert log_probs.dtype == torch.float32
    assert entropy_reward(torch.randn(7, 3, 3), torch.ones(3, 3, 3) / 3, 1.0).shape == (
        7,
        3,
        3,
    )
