"""World-model KLs: their value, who gets the gradient, and what is free."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.distributions import (
    Categorical,
    Independent,
    Normal,
    OneHotCategorical,
    kl_divergence,
)
from torch.testing import assert_close

from snippets.algorithms.regularised.world_models import (
    balanced_kl,
    dynamics_kl,
    free_bits_each,
    free_bits_of_mean,
    latent_kl,
    representation_kl,
)
from snippets.exact.gaussian import kl_gaussian
from snippets.lab.mdp import small_problem, state_chain, stationary

PROBLEM = small_problem(torch.float64)


@st.composite
def latents(draw):
    """Logits of two steps, three latents, four classes."""
    row = st.lists(st.floats(-3, 3), min_size=24, max_size=24)
    return tensor(draw(row), dtype=torch.float64).reshape(2, 3, 4)


def named(posterior, prior):
    """The two sides, by name."""
    return {"posterior_logits": posterior, "prior_logits": prior}


@given(latents(), latents())
def test_the_divergence_is_the_sum_over_latents_and_classes(posterior, prior):
    p, q = posterior.softmax(-1), prior.softmax(-1)
    summed = sum(
        p[:, g, c] * (p[:, g, c] / q[:, g, c]).log() for g in range(3) for c in range(4)
    )
    value = latent_kl(**named(posterior, prior))
    # Terms of order 1 cancel where the two are alike.
    assert_close(value, summed, atol=1e-14, rtol=1e-7)
    torchs = kl_divergence(
        Independent(OneHotCategorical(logits=posterior), 1),
        Independent(OneHotCategorical(logits=prior), 1),
    )
    assert_close(value, torchs, atol=1e-14, rtol=1e-7)


@given(latents())
def test_a_vae_has_the_textbook_formula(numbers):
    mean, log_std = numbers
    zero = torch.zeros_like(mean)
    textbook = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(-1)
    value = kl_gaussian(mean, log_std.exp(), zero, zero.exp())
    # Near no change the textbook loses digits.
    assert_close(value, textbook, atol=1e-12, rtol=1e-7)
    torchs = kl_divergence(Normal(mean, log_std.exp()), Normal(zero, zero.exp()))
    assert_close(value, torchs.sum(-1), atol=1e-12, rtol=1e-7)


@given(latents(), latents(), st.floats(0, 1))
def test_the_balance_moves_gradients_and_not_the_value(posterior, prior, balance):
    at = posterior.requires_grad_(), prior.requires_grad_()
    plain = latent_kl(**named(*at))
    split = balanced_kl(**named(*at), balance=balance)
    assert_close(split, plain, atol=1e-14, rtol=1e-7)
    whole = torch.autograd.grad(plain.sum(), at)
    shares = torch.autograd.grad(split.sum(), at, allow_unused=True)
    for share, side, part in zip(shares, whole, (1 - balance, balance), strict=True):
        if part == 0:
            assert share is None
        else:
            assert_close(share, part * side, atol=1e-14, rtol=1e-7)


@given(latents(), latents())
def test_each_of_the_two_losses_trains_one_side(posterior, prior):
    at = posterior.requires_grad_(), prior.requires_grad_()
    plain = latent_kl(**named(*at))
    whole = torch.autograd.grad(plain.sum(), at)
    for function, side in ((representation_kl, 0), (dynamics_kl, 1)):
        value = function(**named(*at))
        assert_close(value, plain)
        slopes = torch.autograd.grad(value.sum(), at, allow_unused=True)
        assert_close(slopes[side], whole[side])
        assert slopes[1 - side] is None


@given(st.lists(st.floats(0, 5), min_size=1, max_size=9), st.floats(0, 3))
def test_before_the_mean_is_at_least_as_much_as_after(steps, free):
    at = tensor(steps, dtype=torch.float64)
    every = torch.ones_like(at, dtype=torch.bool)
    of_mean = free_bits_of_mean(kl=at, mask=every, free=free)
    # Jensen; the mean itself rounds.
    assert free_bits_each(at, free).mean() >= of_mean - 1e-14
    summed = tensor(sum(max(x, free) for x in steps) / len(steps), dtype=torch.float64)
    assert_close(free_bits_each(at, free).mean(), summed)
    after = tensor(max(sum(steps) / len(steps), free), dtype=torch.float64)
    assert_close(of_mean, after)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=9), st.floats(0, 3))
def test_both_orders_agree_where_all_steps_are_on_one_side(steps, free):
    at = tensor(steps, dtype=torch.float64)
    every = torch.ones_like(at, dtype=torch.bool)
    of_mean = free_bits_of_mean(kl=at, mask=every, free=free)
    gap = free_bits_each(at, free).mean() - of_mean
    one_side = (at >= free).all() or (at <= free).all()
    clear = (at - free).abs().min() > 1e-6  # of rounding
    if one_side:
        assert gap.abs() < 1e-14
    elif clear:
        assert gap > 1e-8


def test_the_order_decides_which_steps_learn():
    steps = tensor([0.1, 0.2, 3.0], requires_grad=True)
    every = torch.ones(3, dtype=torch.bool)
    (each,) = torch.autograd.grad(free_bits_each(steps, 1.0).mean(), steps)
    of_mean = free_bits_of_mean(kl=steps, mask=every, free=1.0)
    (after,) = torch.autograd.grad(of_mean, steps)
    assert each.tolist() == [0, 0, tensor(1 / 3)]
    assert_close(after, torch.full((3,), 1 / 3))
    of_mean = free_bits_of_mean(kl=steps, mask=every, free=2.0)
    (calm,) = torch.autograd.grad(of_mean, steps)
    assert (calm == 0).all()


@pytest.mark.parametrize("junk", [9.0, inf, -inf, nan])
def test_an_absent_step_changes_nothing(junk):
    steps = tensor([1.0, 3.0, junk], requires_grad=True)
    mask = tensor([True, True, False])
    value = free_bits_of_mean(kl=steps, mask=mask, free=1.0)
    assert value == 2.0
    value.backward()
    assert steps.grad.tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("junk", [9.0, inf, -inf, nan])
def test_logits_of_an_absent_step_are_not_read(junk):
    torch.manual_seed(0)
    mask = tensor([True, False, True])
    sides = torch.randn(2, 3, 2, 4)
    sides[:, 1] = junk
    at = [side.requires_grad_() for side in sides.unbind()]
    kept = named(*(side.detach()[mask] for side in at))
    for function, more in (
        (latent_kl, {}),
        (dynamics_kl, {}),
        (representation_kl, {}),
        (balanced_kl, {"balance": 0.8}),
    ):
        value = function(**named(*at), mask=mask, **more)
        assert value[1] == 0
        assert_close(value[mask].detach(), function(**kept, **more))
        of_mean = free_bits_of_mean(kl=value, mask=mask, free=0.1)
        slopes = torch.autograd.grad(of_mean, at, allow_unused=True)
        for slope in slopes:
            assert slope is None or (slope.isfinite().all() and (slope[1] == 0).all())


def test_without_steps_the_mean_is_nan():
    nobody = torch.zeros(2, dtype=torch.bool)
    assert free_bits_of_mean(kl=torch.ones(2), mask=nobody, free=1.0).isnan()


def test_seeing_the_state_brings_the_entropy_of_its_prior():
    # The prior is the transition; the posterior knows the state that came.
    policy = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    chain = state_chain(PROBLEM, policy)
    seen = torch.eye(3, dtype=torch.float64).log().expand(3, 3, 3)
    expected = chain.log()[:, None].expand(3, 3, 3)
    value = latent_kl(**named(seen[:, :, None], expected[:, :, None]))
    value = value.masked_fill(chain == 0, 0.0)  # what never comes would be inf
    mean = stationary(PROBLEM, policy) @ (chain * value).sum(-1)
    entropy = stationary(PROBLEM, policy) @ Categorical(chain).entropy()
    assert_close(mean, entropy)


@given(st.floats(0.01, 1))
def test_the_mean_divergence_is_the_information_in_the_observation(noise):
    prior = stationary(PROBLEM, torch.full((3, 3), 1 / 3, dtype=torch.float64))
    likelihood = (1 - noise) * torch.eye(3) + noise / 3  # (states, observations)
    joint = prior[:, None] * likelihood
    seen = joint.sum(0)  # of each observation
    posterior = (joint / seen).T.log()[:, None]  # (observations, latents, classes)
    value = latent_kl(**named(posterior, prior.log().expand_as(posterior)))
    information = (joint * (joint / (prior[:, None] * seen)).log()).sum()
    # Terms of order 1 cancel as the noise grows.
    assert_close((seen * value).sum(), information, atol=1e-13, rtol=1e-7)


@pytest.mark.parametrize("mask", [-inf, -1e4, -1e8, torch.finfo(torch.float32).min])
def test_an_impossible_class_adds_nothing(mask):
    posterior = tensor([[[0.0, 0.0, mask]]], requires_grad=True)
    value = latent_kl(**named(posterior, torch.zeros(1, 1, 3)))
    assert_close(value, tensor([1.5]).log())
    value.sum().backward()
    assert posterior.grad.isfinite().all()
    hard = tensor([[[0.0, 0.0, -inf]]])
    assert latent_kl(**named(torch.zeros(1, 1, 3), hard)) == inf


def test_a_share_of_zero_is_zero_where_the_divergence_is_infinite():
    posterior = torch.zeros(1, 1, 2, requires_grad=True)
    prior = tensor([[[0.0, -inf]]])
    for balance in (0.0, 1.0):
        value = balanced_kl(**named(posterior, prior), balance=balance)
        assert value == inf


def test_nothing_learned_is_exactly_zero_and_little_is_not_negative():
    torch.manual_seed(0)
    at = torch.randn(1000, 3, 5)
    near = at + 1e-4 * torch.randn_like(at)
    for function in (latent_kl, dynamics_kl, representation_kl):
        assert (function(**named(at, at)) == 0).all()
        assert (function(**named(at, near)) > 0).all()
    assert (balanced_kl(**named(at, at), balance=0.8) == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once_after_the_sum(dtype):
    sides = torch.randn(2, 4, 32, 32).to(dtype)
    wide = named(*sides.float())
    assert_close(
        latent_kl(**named(*sides)), latent_kl(**wide).to(dtype), atol=0, rtol=0
    )
    half = balanced_kl(**named(*sides), balance=0.8)
    assert_close(half, balanced_kl(**wide, balance=0.8).to(dtype), atol=0, rtol=0)


def test_batches_and_float32():
    sides = torch.randn(2, 4, 5, 32, 8)
    value = balanced_kl(**named(*sides), balance=0.8)
    assert value.shape == (4, 5)
    assert value.dtype == torch.float32
    assert free_bits_each(value, 1.0).shape == (4, 5)
    every = torch.ones(4, 5, dtype=torch.bool)
    assert free_bits_of_mean(kl=value, mask=every, free=1.0).shape == ()


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="prior_logits is"):
        latent_kl(**named(torch.zeros(4, 2, 3), torch.zeros(1, 2, 3)))
    mask = torch.ones(4, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="mask is"):
        latent_kl(**named(torch.zeros(4, 2, 3), torch.zeros(4, 2, 3)), mask=mask)


@pytest.mark.parametrize("number", [-0.1, nan])
def test_a_number_out_of_range_is_refused(number):
    with pytest.raises(ValueError, match="free is"):
        free_bits_each(torch.ones(2), number)
    with pytest.raises(ValueError, match="balance is"):
        balanced_kl(**named(*torch.zeros(2, 1, 1, 2)), balance=number)
