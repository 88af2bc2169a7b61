"""Surrogate losses have the gradient of the KL; the usual estimates have not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from snippets.estimate.estimators import k1, k2, k3
from snippets.estimate.gradients import (
    score_loss,
    straight_through,
    weighted_k2_loss,
    weighted_k3_loss,
)

TIGHT = {"rtol": 0, "atol": 1e-10}  # float64 sums of a few terms of order 1


@st.composite
def policies(draw):
    """Logits of a policy that trains, log-probabilities of an older and a reference."""
    actions = draw(st.integers(2, 6))
    row = st.lists(st.floats(-2, 2), min_size=actions, max_size=actions)
    new, old, ref = tensor([draw(row) for _ in range(3)], dtype=torch.float64)
    return new.requires_grad_(), old.log_softmax(-1), ref.log_softmax(-1)


def slope(mean, logits):
    """The gradient of a mean with respect to the logits."""
    return torch.autograd.grad(mean, logits, retain_graph=True)[0]


@given(policies())
def test_the_gradient_on_policy_is_that_of_the_kl(case):
    logits, _, log_ref = case
    new = logits.log_softmax(-1)
    weights = new.detach().exp()
    right = slope(new.exp() @ (new - log_ref), logits)
    for losses in (
        score_loss(new_log_probs=new, ref_log_probs=log_ref),
        k2(new, log_ref),
        weighted_k3_loss(
            new_log_probs=new, old_log_probs=new.detach(), ref_log_probs=log_ref
        ),
        weighted_k2_loss(
            new_log_probs=new, old_log_probs=new.detach(), ref_log_probs=log_ref
        ),
    ):
        assert_close(slope(weights @ losses, logits), right, **TIGHT)


@given(policies())
def test_the_gradient_off_policy_is_that_of_the_kl(case):
    logits, log_old, log_ref = case
    new = logits.log_softmax(-1)
    right = slope(new.exp() @ (new - log_ref), logits)
    for loss in (weighted_k3_loss, weighted_k2_loss):
        mean = log_old.exp() @ loss(
            new_log_probs=new, old_log_probs=log_old, ref_log_probs=log_ref
        )
        assert_close(slope(mean, logits), right, **TIGHT)


@given(policies())
def test_the_value_off_policy_is_the_kl(case):
    logits, log_old, log_ref = case
    new = logits.log_softmax(-1)
    kl = new.exp() @ (new - log_ref)
    assert_close(
        log_old.exp()
        @ weighted_k3_loss(
            new_log_probs=new, old_log_probs=log_old, ref_log_probs=log_ref
        ),
        kl,
        **TIGHT,
    )


@given(policies())
def test_weighted_k2_and_k3_have_the_same_gradient_sample_by_sample(case):
    logits, log_old, log_ref = case
    new = logits.detach().log_softmax(-1).requires_grad_()
    both = [
        slope(
            loss(new_log_probs=new, old_log_probs=log_old, ref_log_probs=log_ref).sum(),
            new,
        )
        for loss in (weighted_k2_loss, weighted_k3_loss)
    ]
    assert_close(*both)


@given(policies())
def test_k1_in_the_loss_has_no_gradient(case):
    logits, _, log_ref = case
    new = logits.log_softmax(-1)
    mean = new.detach().exp() @ k1(new, log_ref)
    assert_close(slope(mean, logits), torch.zeros_like(logits), **TIGHT)


@given(policies())
def test_k1_in_the_loss_off_policy_moves_away_from_the_sampler(case):
    logits, log_old, log_ref = case
    new = logits.log_softmax(-1)
    kl_old = log_old.exp() @ (log_old - new)
    mean = log_old.exp() @ k1(new, log_ref)
    assert_close(slope(mean, logits), -slope(kl_old, logits), **TIGHT)


@given(policies())
def test_k3_in_the_loss_has_the_gradient_of_the_other_direction(case):
    logits, _, log_ref = case
    new = logits.log_softmax(-1)
    other = slope(log_ref.exp() @ (log_ref - new), logits)
    mean = new.detach().exp() @ k3(new, log_ref)
    assert_close(slope(mean, logits), other, **TIGHT)


@given(policies())
def test_k3_in_the_reward_has_the_difference_of_both(case):
    logits, _, log_ref = case
    new = logits.log_softmax(-1)
    right = slope(new.exp() @ (new - log_ref), logits)
    other = slope(log_ref.exp() @ (log_ref - new), logits)
    reward = new.detach().exp() @ (k3(new, log_ref).detach() * new)
    assert_close(slope(reward, logits), right - other, **TIGHT)


def test_clamped_k3_has_no_gradient_where_the_policy_drifted_most():
    edge = 2.6105  # exp(x) - 1 - x = 10
    for log_ratio, pulled in ((edge - 0.01, True), (edge + 0.01, False)):
        new = tensor(-log_ratio, requires_grad=True)
        k3(new, tensor(0.0)).clamp(max=10).backward()
        assert (new.grad != 0) == pulled
    assert tensor(edge).exp() == pytest.approx(13.6, abs=0.01)


def test_weighted_losses_do_not_differentiate_sampler_or_reference():
    new, old, ref = (torch.randn(4).requires_grad_() for _ in range(3))
    total = weighted_k3_loss(
        new_log_probs=new, old_log_probs=old, ref_log_probs=ref
    ) + weighted_k2_loss(new_log_probs=new, old_log_probs=old, ref_log_probs=ref)
    (total + score_loss(new_log_probs=new, ref_log_probs=ref)).sum().backward()
    assert old.grad is None
    assert ref.grad is None
    assert new.grad.isfinite().all()


def test_identical_policies_have_loss_zero():
    same = torch.randn(5)
    assert (
        weighted_k3_loss(new_log_probs=same, old_log_probs=same, ref_log_probs=same)
        == 0
    ).all()
    assert (
        weighted_k2_loss(new_log_probs=same, old_log_probs=same, ref_log_probs=same)
        == 0
    ).all()
    assert (score_loss(new_log_probs=same, ref_log_probs=same) == 0).all()


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)
    joined = straight_through(value=x.exp(), loss=x.square())
    assert torch.equal(joined, x.exp())
    assert torch.equal(slope(joined.sum(), x), 2 * x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_dtype_and_shape(dtype):
    x = torch.zeros(2, 3, dtype=dtype)
    for found in (
        score_loss(new_log_probs=x, ref_log_probs=x),
        weighted_k3_loss(new_log_probs=x, old_log_probs=x, ref_log_probs=x),
        weighted_k2_loss(new_log_probs=x, old_log_probs=x, ref_log_probs=x),
        straight_through(value=x, loss=x),
    ):
        assert found.dtype == dtype
        assert found.shape == (2, 3)


@pytest.mark.parametrize("loss", [weighted_k3_loss, weighted_k2_loss])
@pytest.mark.parametrize(
    "log_ratio", [-80, -30, -12, -8, -1, -1e-3, 0.5, 2.7, 5.3, 8, 9.1, 30, 80]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_gradient_of_a_drifted_token_is_minus_its_log_ratio(loss, log_ratio, dtype):
    """On-policy, from log-ratio ref / new: where u is, and where u is not, finite."""
    ref = tensor(log_ratio, dtype=dtype)
    new = torch.zeros((), dtype=dtype, requires_grad=True)
    loss(new_log_probs=new, old_log_probs=new.detach(), ref_log_probs=ref).backward()
    # The log-ratio is exact in its dtype; the gradient is rounded to it once.
    expected = -ref.double().item()
    assert new.grad.item() == pytest.approx(expected, rel=torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weighted_k3_is_never_negative(dtype):
    sizes = torch.logspace(-12, 1.5, 2001, dtype=dtype)
    ref = torch.cat([-sizes, sizes])
    for weight in (0.1, 1.0, 7.0):
        new = torch.zeros_like(ref)
        old = new - tensor(weight, dtype=dtype).log()
        values = weighted_k3_loss(
            new_log_probs=new, old_log_probs=old, ref_log_probs=ref
        )
        assert (values >= 0).all()


def test_a_sample_that_old_cannot_give_is_no_estimate():
    one, never = tensor(-1.0), tensor(-torch.inf)
    for loss in (weighted_k3_loss, weighted_k2_loss):
        found = loss(new_log_probs=one, old_log_probs=never, ref_log_probs=2 * one)
        assert not found.isfinite()


def follow(slope_of, logits, steps):
    """Plain gradient descent on an expected loss."""
    for _ in range(steps):
        logits = logits.detach().requires_grad_()
        logits = logits - slope_of(logits)
    return logits.detach().log_softmax(-1)


def test_k3_in_the_loss_with_a_reward_ends_where_the_page_says():
    """At beta ref / (lambda - r): the optimum of E[r] - beta KL(ref || new)."""
    rewards = tensor([1.0, 0.0, 0.3, 0.5], dtype=torch.float64)
    log_ref = tensor([-1.0, 1.0, 0.0, 0.5], dtype=torch.float64).log_softmax(-1)

    def slope_of(logits):
        new = logits.log_softmax(-1)
        penalty = new.detach().exp() @ k3(new, log_ref)
        return slope(0.5 * penalty - new.exp() @ rewards, logits)

    end = follow(slope_of, torch.zeros(4, dtype=torch.float64), 3000).exp()
    multiplier = rewards + 0.5 * log_ref.exp() / end  # lambda, if it is the optimum
    # What 3000 steps of plain descent leave.
    assert_close(multiplier, multiplier[:1].expand(4), rtol=0, atol=1e-8)
