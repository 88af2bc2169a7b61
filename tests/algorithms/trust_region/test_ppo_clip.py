"""The clipped surrogate is the formula, and finite where the formula is."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.testing import assert_close

from snippets.algorithms.trust_region.ppo_clip import (
    clip_fraction,
    clipped_surrogate_loss,
)
from snippets.estimate.estimators import k1, k3
from snippets.exact.categorical import kl_divergence_logits
from tests.strategies import log_probs, numbers

CLIPS = st.floats(0.01, 0.6)


def loss_of(new, old, advantages, low=0.2, high=0.2):
    return clipped_surrogate_loss(
        new_log_probs=new,
        old_log_probs=old,
        advantages=advantages,
        clip_low=low,
        clip_high=high,
    )


@given(log_probs(3, 3), log_probs(3, 3), numbers(3, 3, largest=100.0), CLIPS, CLIPS)
def test_the_loss_is_the_formula(new, old, advantages, low, high):
    ratio = (new - old).exp()
    clipped = ratio.clamp(1 - low, 1 + high)
    expected = -torch.minimum(ratio * advantages, clipped * advantages)
    assert_close(loss_of(new, old, advantages, low, high), expected)


@given(log_probs(3, 3), log_probs(3, 3), numbers(3, 3, largest=100.0))
def test_the_gradient_is_that_of_the_formula(new, old, advantages):
    ours, theirs = (new.clone().requires_grad_() for _ in range(2))
    loss_of(ours, old, advantages).sum().backward()
    ratio = (theirs - old).exp()
    clipped = ratio.clamp(0.8, 1.2)
    torch.minimum(ratio * advantages, clipped * advantages).sum().neg().backward()
    assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("ratio", "advantage", "flows"),
    [(1.3, 5.0, False), (1.3, -5.0, True), (0.7, 5.0, True), (0.7, -5.0, False)],
)
def test_only_the_side_the_advantage_asks_for_is_clipped(ratio, advantage, flows):
    new = tensor([ratio]).log().requires_grad_()
    loss_of(new, torch.zeros(1), tensor([advantage])).sum().backward()
    assert (new.grad != 0) == flows


def test_the_two_clips_are_not_mixed_up():
    new, old = tensor([2.0, 0.1]).log(), torch.zeros(2)
    loss = loss_of(new, old, tensor([10.0, -10.0]), low=0.3, high=0.5)
    assert_close(loss, tensor([-15.0, 7.0]))


@pytest.mark.parametrize(
    ("dtype", "drift"),
    [(torch.float32, 90.0), (torch.float16, 12.0), (torch.bfloat16, 90.0)],
)
def test_a_drifted_sample_of_positive_advantage_is_clipped_and_finite(dtype, drift):
    new = tensor([drift, 0.0], dtype=dtype, requires_grad=True)
    loss = loss_of(new, torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype))
    loss.sum().backward()
    assert_close(loss.float(), tensor([-1.2, -1.0]), rtol=1e-2, atol=0)  # one rounding
    assert new.grad.tolist() == [0.0, -1.0]


def test_a_drifted_sample_of_negative_advantage_grows_as_the_formula_says():
    new = tensor([30.0, 90.0], requires_grad=True)
    loss = loss_of(new, torch.zeros(2), tensor([-1.0, -1.0]))
    assert_close(loss[0].item(), math.exp(30.0), rtol=1e-5, atol=0)  # exp of a float32
    assert loss[1] == inf


def test_an_advantage_of_zero_is_no_loss_however_far_the_sample_drifted():
    new = tensor([90.0, -90.0], requires_grad=True)
    loss = loss_of(new, torch.zeros(2), torch.zeros(2))
    loss.sum().backward()
    assert (loss == 0).all()
    assert (new.grad == 0).all()


def test_neither_the_old_policy_nor_the_advantage_gets_a_gradient():
    new, old, advantages = (torch.ones(2, requires_grad=True) for _ in range(3))
    loss_of(new, old, advantages).sum().backward()
    assert new.grad is not None
    assert old.grad is None
    assert advantages.grad is None


@given(log_probs(2, 5), log_probs(2, 5), CLIPS, CLIPS)
def test_the_fraction_counts_the_ratios_outside(new, old, low, high):
    ratio = (new - old).exp()
    counted = [[not 1 - low <= x <= 1 + high for x in row] for row in ratio.tolist()]
    expected = tensor([sum(row) / 5 for row in counted], dtype=torch.float64)
    found = clip_fraction(
        new_log_probs=new, old_log_probs=old, clip_low=low, clip_high=high
    )
    assert_close(found, expected)


@given(log_probs(3, 3), log_probs(3, 3))
def test_k3_and_k1_of_samples_of_old_have_the_divergence_as_their_mean(old, new):
    for estimate in (k3, k1):
        mean = (old.exp() * estimate(old, new)).sum(-1)
        # Sums of terms of order 1 in which much cancels.
        assert_close(mean, kl_divergence_logits(old, new), atol=1e-12, rtol=1e-7)


@given(log_probs(3, 3), log_probs(3, 3))
def test_samples_of_the_new_policy_give_another_number(old, new):
    # Under new the mean of k3 is the chi-squared divergence less a KL.
    p, q = old.exp(), new.exp()
    mean = (q * k3(old, new)).sum(-1)
    chi = (q * q / p).sum(-1) - 1
    assert_close(mean, chi - kl_divergence_logits(new, old), atol=1e-11, rtol=1e-7)


def test_a_clipped_batch_can_be_as_far_away_as_it_likes():
    # The rare action is never sampled, so nothing clips its ratio.
    old = tensor([0.5, 0.4, 0.1], dtype=torch.float64)
    for rare in (1e-3, 1e-6, 1e-12):
        new = torch.stack([old[0] * 1.1, 1 - rare - old[0] * 1.1, tensor(rare)])
        sampled = (new / old)[:2]
        assert ((sampled - 1).abs() < 0.2).all()
        kl = kl_divergence_logits(old.log(), new.log())
        assert kl > -0.1 * tensor(rare).log() - 0.4


@pytest.mark.parametrize(
    ("low", "high", "name"),
    [
        (0.0, 0.2, "clip_low"),
        (1.0, 0.2, "clip_low"),
        (-0.2, 0.2, "clip_low"),
        (0.2, 0.0, "clip_high"),
        (0.2, float("nan"), "clip_high"),
    ],
)
def test_refuses_a_clip_outside_its_range(low, high, name):
    zero = torch.zeros(1)
    with pytest.raises(ValueError, match=name):
        loss_of(zero, zero, zero, low, high)
    with pytest.raises(ValueError, match=name):
        clip_fraction(
            new_log_probs=zero, old_log_probs=zero, clip_low=low, clip_high=high
        )


def test_refuses_a_row_of_advantages_beside_a_column():
    with pytest.raises(ValueError, match="advantages is"):
        loss_of(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4))
