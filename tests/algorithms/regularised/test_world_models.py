"""World-model KLs: their value, who gets the gradient, and what is free."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.distributions import (
    Categorical,
    Independent,
    Normal,
    OneHotCategorical,
    kl_divergence,
)
from torch.testing import assert_close

from snippets.lab.mdp import small_problem, state_chain, stationary
from snippets.algorithms.regularised.world_models import (
    balanced_divergence,
    categorical_divergence,
    dynamics_divergence,
    free_each,
    free_mean,
    gaussian_divergence,
    representation_divergence,
)

PROBLEM = small_problem(torch.float64)


@st.composite
def latents(draw):
    """Logits of two steps, three latents, four classes."""
    row = st.lists(st.floats(-3, 3), min_size=24, max_size=24)
    return tensor(draw(row), dtype=torch.float64).reshape(2, 3, 4)


@given(latents(), latents())
def test_the_divergence_is_the_sum_over_latents_and_classes(posterior, prior):
    p, q = posterior.softmax(-1), prior.softmax(-1)
    summed = sum(
        p[:, g, c] * (p[:, g, c] / q[:, g, c]).log() for g in range(3) for c in range(4)
    )
    value = categorical_divergence(posterior, prior)
    # Terms of order 1 cancel where the two are alike.
    assert_close(value, summed, atol=1e-14, rtol=1e-7)
    torchs = kl_divergence(
        Independent(OneHotCategorical(logits=posterior), 1),
        Independent(OneHotCategorical(logits=prior), 1),
    )
    assert_close(value, torchs, atol=1e-14, rtol=1e-7)


@given(latents(), latents())
def test_the_gaussian_divergence_is_torchs(a, b):
    at = (a[0], a[1], b[0], b[1])
    expected = kl_divergence(Normal(a[0], a[1].exp()), Normal(b[0], b[1].exp()))
    # torch squares ratios of deviations up to e^6.
    assert_close(gaussian_divergence(*at), expected.sum(-1), atol=1e-9, rtol=1e-7)


@given(latents())
def test_a_vae_pays_the_textbook_formula(numbers):
    mean, log_std = numbers
    zero = torch.zeros_like(mean)
    textbook = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(-1)
    value = gaussian_divergence(mean, log_std, zero, zero)
    # Near no change expm1 has digits that the textbook loses.
    assert_close(value, textbook, atol=1e-12, rtol=1e-7)


@given(latents(), latents(), st.floats(0, 1))
def test_the_balance_moves_gradients_and_not_the_value(posterior, prior, balance):
    at = posterior.requires_grad_(), prior.requires_grad_()
    plain = categorical_divergence(*at)
    split = balanced_divergence(*at, balance)
    assert_close(split, plain, atol=1e-14, rtol=1e-7)
    whole = torch.autograd.grad(plain.sum(), at)
    shares = torch.autograd.grad(split.sum(), at)
    assert_close(shares[0], (1 - balance) * whole[0], atol=1e-14, rtol=1e-7)
    assert_close(shares[1], balance * whole[1], atol=1e-14, rtol=1e-7)


@given(latents(), latents())
def test_each_of_the_two_losses_trains_one_side(posterior, prior):
    at = posterior.requires_grad_(), prior.requires_grad_()
    whole = torch.autograd.grad(categorical_divergence(*at).sum(), at)
    for function, side in ((representation_divergence, 0), (dynamics_divergence, 1)):
        value = function(*at)
        assert_close(value, categorical_divergence(*at))
        slopes = torch.autograd.grad(value.sum(), at, allow_unused=True)
        assert_close(slopes[side], whole[side])
        assert slopes[1 - side] is None


@given(st.lists(st.floats(0, 5), min_size=1, max_size=9), st.floats(0, 3))
def test_before_the_mean_costs_at_least_as_much_as_after(steps, free):
    at = tensor(steps, dtype=torch.float64)
    every = torch.ones_like(at, dtype=torch.bool)
    # Jensen; the mean itself rounds.
    assert free_each(at, free).mean() >= free_mean(at, every, free) - 1e-14
    summed = sum(max(x, free) for x in steps) / len(steps)
    assert_close(free_each(at, free).mean(), tensor(summed, dtype=torch.float64))
    after = tensor(max(sum(steps) / len(steps), free), dtype=torch.float64)
    assert_close(free_mean(at, every, free), after)


def test_the_order_decides_which_steps_learn():
    steps = tensor([0.1, 0.2, 3.0], requires_grad=True)
    every = torch.ones(3, dtype=torch.bool)
    (each,) = torch.autograd.grad(free_each(steps, 1.0).mean(), steps)
    (after,) = torch.autograd.grad(free_mean(steps, every, 1.0), steps)
    assert each.tolist() == [0, 0, tensor(1 / 3)]
    assert_close(after, torch.full((3,), 1 / 3))
    (calm,) = torch.autograd.grad(free_mean(steps, every, 2.0), steps)
    assert (calm == 0).all()


def test_an_absent_step_changes_nothing():
    steps = tensor([1.0, 3.0, inf], requires_grad=True)
    mask = tensor([True, True, False])
    value = free_mean(steps, mask, 1.0)
    assert value == 2.0
    value.backward()
    assert steps.grad.tolist() == [0.5, 0.5, 0.0]


def test_seeing_the_state_brings_the_entropy_of_its_prior():
    # The prior is the transition; the posterior knows the state that came.
    policy = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    chain = state_chain(PROBLEM, policy)
    seen = torch.eye(3, dtype=torch.float64).log()
    value = categorical_divergence(seen[None, :, None], chain.log()[:, None, None])
    value = value.masked_fill(chain == 0, 0.0)  # what never comes costs inf
    mean = stationary(PROBLEM, policy) @ (chain * value).sum(-1)
    entropy = stationary(PROBLEM, policy) @ Categorical(chain).entropy()
    assert_close(mean, entropy)


@given(st.floats(0.01, 1))
def test_the_mean_divergence_is_the_information_in_the_observation(noise):
    prior = stationary(PROBLEM, torch.full((3, 3), 1 / 3, dtype=torch.float64))
    likelihood = (1 - noise) * torch.eye(3) + noise / 3  # (states, observations)
    joint = prior[:, None] * likelihood
    seen = joint.sum(0)  # of each observation
    posterior = (joint / seen).T.log()  # (observations, states)
    value = categorical_divergence(posterior[:, None], prior.log()[None, None])
    information = (joint * (joint / (prior[:, None] * seen)).log()).sum()
    # Terms of order 1 cancel as the noise grows.
    assert_close((seen * value).sum(), information, atol=1e-13, rtol=1e-7)


def test_an_impossible_class_adds_nothing():
    posterior = tensor([[[0.0, 0.0, -inf]]], requires_grad=True)
    value = categorical_divergence(posterior, torch.zeros(1, 1, 3))
    assert_close(value, tensor([1.5]).log())
    value.sum().backward()
    assert posterior.grad.isfinite().all()
    surprised = categorical_divergence(torch.zeros(1, 1, 3), posterior.detach())
    assert surprised == inf


def test_nothing_learned_is_exactly_zero():
    at = torch.randn(100, 3, 5)
    for function in (categorical_divergence, dynamics_divergence):
        assert (function(at, at) == 0).all()
    assert (balanced_divergence(at, at, 0.8) == 0).all()
    assert (gaussian_divergence(at, at, at, at) == 0).all()


def test_batches_and_float32():
    posterior, prior = torch.randn(2, 4, 5, 32, 8)
    value = balanced_divergence(posterior, prior, 0.8)
    assert value.shape == (4, 5)
    assert value.dtype == torch.float32
    assert free_each(value, 1.0).shape == (4, 5)
    assert free_mean(value, torch.ones(4, 5, dtype=torch.bool), 1.0).shape == ()
    assert gaussian_divergence(*posterior[:, :4].unbind(1)).shape == (4, 32)
