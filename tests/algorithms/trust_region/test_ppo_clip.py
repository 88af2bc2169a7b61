"""The clipped loss has no KL; the estimates beside it are those of KL(old || new)."""

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from snippets.algorithms.trust_region.ppo_clip import (
    clipped_loss,
    signed_divergence,
    step_divergence,
)


@st.composite
def log_probs(draw):
    """Log-probabilities of a policy for the small problem."""
    row = st.lists(st.floats(-2, 2), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3).log_softmax(-1)


def divergence(old, new):
    """KL(old || new) of each state, summed over the actions."""
    return sum(old[:, a].exp() * (old[:, a] - new[:, a]) for a in range(3))


@given(log_probs(), log_probs())
def test_both_estimates_have_the_divergence_as_their_mean(old, new):
    for estimate in (step_divergence, signed_divergence):
        mean = (old.exp() * estimate(old, new)).sum(-1)
        assert_close(mean, divergence(old, new), atol=1e-12, rtol=1e-7)


@given(log_probs(), log_probs())
def test_samples_of_the_new_policy_give_another_number(old, new):
    # Under new the mean of k3 is the chi-squared divergence less a KL.
    p, q = old.exp(), new.exp()
    mean = (q * step_divergence(old, new)).sum(-1)
    chi = (q * q / p).sum(-1) - 1
    assert_close(mean, chi - divergence(new, old), atol=1e-12, rtol=1e-7)


@given(log_probs(), log_probs())
def test_k3_is_never_negative(old, new):
    # expm1(x) - x of doubles rounds to within one unit of expm1(x).
    floor = -torch.finfo(torch.float64).eps * 10
    assert (step_divergence(old, new) >= floor).all()


@given(st.floats(-5, 5))
def test_k3_agrees_with_thirty_digits(log_ratio):
    zero = torch.zeros((), dtype=torch.float64)
    got = step_divergence(zero, zero + log_ratio)
    with mpmath.workdps(30):
        exact = float(mpmath.expm1(log_ratio) - mpmath.mpf(log_ratio))
    # The last subtraction rounds relative to its operands.
    assert abs(got - exact) <= 2e-16 * max(1, abs(exact)) * 10


def test_the_naive_form_is_off_by_a_twentieth_in_single_precision():
    x = torch.linspace(0.9e-3, 1.1e-3, 999)
    exact = torch.expm1(x.double()) - x.double()
    naive = ((x.exp() - 1) - x).double()
    ours = step_divergence(torch.zeros(999), x).double()
    assert ((naive - exact).abs() / exact).max() > 0.05
    assert ((ours - exact).abs() / exact).max() < 1e-3


@given(log_probs(), log_probs(), st.floats(0.05, 0.5))
def test_the_loss_is_the_pessimistic_one(old, new, clip):
    gained = tensor([[1.0, -1.0, 0.5]], dtype=torch.float64)
    ratio = (new - old).exp()
    loss = clipped_loss(old, new, gained.expand(3, 3), clip)
    assert (loss >= -ratio * gained - 1e-15).all()
    inside = (ratio - 1).abs() < clip
    assert_close(loss[inside], (-ratio * gained)[inside])


@pytest.mark.parametrize(
    ("ratio", "advantage", "flows"),
    [(1.3, 1.0, False), (1.3, -1.0, True), (0.7, 1.0, True), (0.7, -1.0, False)],
)
def test_only_the_side_the_advantage_asks_for_is_clipped(ratio, advantage, flows):
    new = tensor(ratio).log().requires_grad_()
    clipped_loss(torch.zeros(()), new, tensor(advantage), 0.2).backward()
    assert (new.grad != 0) == flows


def test_a_clipped_batch_can_be_as_far_away_as_it_likes():
    # The rare action is never sampled, so nothing clips its ratio.
    old = tensor([0.5, 0.4, 0.1], dtype=torch.float64)
    for rare in (1e-3, 1e-6, 1e-12):
        new = torch.stack([old[0] * 1.1, 1 - rare - old[0] * 1.1, tensor(rare)])
        sampled = (new / old)[:2]
        assert ((sampled - 1).abs() < 0.2).all()
        per_state = (old * (old / new).log()).sum()
        assert per_state > -0.1 * tensor(rare).log() - 0.4


def test_identical_policies_give_exactly_zero():
    same = torch.randn(7)
    assert (step_divergence(same, same) == 0).all()
    assert (signed_divergence(same, same) == 0).all()


@pytest.mark.parametrize("clip", [0.0, 1.0, -0.2])
def test_refuses_a_clip_outside_its_range(clip):
    with pytest.raises(ValueError, match="clip is"):
        clipped_loss(torch.zeros(1), torch.zeros(1), torch.zeros(1), clip)
