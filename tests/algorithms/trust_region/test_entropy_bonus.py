"""Entropy is the log of the number of actions less the KL to uniform."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.distributions import Categorical
from torch.testing import assert_close

from snippets.algorithms.trust_region.entropy_bonus import divergence_from_uniform, entropy


@st.composite
def logits(draw):
    """Logits of three states over 1 to 6 actions."""
    actions = draw(st.integers(1, 6))
    row = st.lists(st.floats(-10, 10), min_size=3 * actions, max_size=3 * actions)
    return tensor(draw(row), dtype=torch.float64).reshape(3, actions)


@given(logits())
def test_entropy_agrees_with_torch(policy):
    # Near a corner the entropy is a small sum of terms that are of order 1e-16.
    assert_close(
        entropy(policy), Categorical(logits=policy).entropy(), atol=1e-12, rtol=1e-7
    )


@given(logits())
def test_entropy_and_divergence_sum_to_the_log_of_the_number(policy):
    total = entropy(policy) + divergence_from_uniform(policy)
    expected = tensor(policy.shape[-1], dtype=torch.float64).log()
    assert_close(total, expected.expand(3))


@given(logits())
def test_the_divergence_is_the_sum_over_actions(policy):
    p, count = policy.softmax(-1), policy.shape[-1]
    summed = sum(p[:, a] * (p[:, a] * count).log() for a in range(count))
    assert_close(divergence_from_uniform(policy), summed, atol=1e-12, rtol=1e-7)


@given(logits())
def test_their_gradients_differ_in_sign_alone(policy):
    bonus, penalty = (policy.clone().requires_grad_() for _ in "+-")
    entropy(bonus).sum().backward()
    divergence_from_uniform(penalty).sum().backward()
    # Sums of terms of order 1 to 10 that cancel near a corner.
    assert_close(bonus.grad, -penalty.grad, atol=1e-12, rtol=1e-7)


@given(logits())
def test_a_sampled_entropy_has_no_gradient_on_average(policy):
    policy = policy.requires_grad_()
    log_p = policy.log_softmax(-1)
    # Every action, weighted by its probability, which is a constant to autograd.
    (log_p.exp().detach() * -log_p).sum().backward()
    # Differences of probabilities.
    assert_close(policy.grad, torch.zeros_like(policy), atol=1e-14, rtol=0)


@given(logits())
def test_a_masked_action_is_as_good_as_absent(policy):
    masked = torch.cat([policy, torch.full((3, 1), -inf)], -1).requires_grad_()
    assert_close(entropy(masked), entropy(policy))
    both = divergence_from_uniform(masked)
    assert_close(both, divergence_from_uniform(policy))
    (both + entropy(masked)).sum().backward()
    assert masked.grad.isfinite().all()


def test_uniform_is_exactly_zero_away_and_certain_costs_the_log():
    # Powers of two have exact logarithms of ratios.
    assert divergence_from_uniform(torch.zeros(4)).abs() < 1e-7
    certain = tensor([0.0, -inf, -inf])
    assert entropy(certain) == 0
    assert divergence_from_uniform(certain) == 0


def test_batches_and_float32():
    value = entropy(torch.randn(4, 5, 3))
    assert value.shape == (4, 5)
    assert value.dtype == torch.float32
