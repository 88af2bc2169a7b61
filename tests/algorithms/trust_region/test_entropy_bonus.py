"""The actor's loss is the policy gradient and an entropy, which is a KL to uniform."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.distributions import Categorical
from torch.testing import assert_close

from snippets.algorithms.trust_region.entropy_bonus import actor_loss
from snippets.exact.categorical import kl_divergence_logits
from tests.strategies import logits, numbers

ACTIONS = tensor([3, 0, 1])


def bonus(policy, coefficient=1.0):
    """The loss of samples without advantage."""
    actions = torch.zeros(policy.shape[:-1], dtype=torch.int64)
    nothing = torch.zeros(policy.shape[:-1], dtype=policy.dtype)
    return actor_loss(
        new_logits=policy, actions=actions, advantages=nothing, coefficient=coefficient
    )


@given(logits(3, 4), numbers(3, largest=50.0), st.floats(0, 5))
def test_the_loss_agrees_with_torch(policy, advantages, coefficient):
    torchs = Categorical(logits=policy)
    expected = -advantages * torchs.log_prob(ACTIONS) - coefficient * torchs.entropy()
    found = actor_loss(
        new_logits=policy,
        actions=ACTIONS,
        advantages=advantages,
        coefficient=coefficient,
    )
    assert_close(found, expected)


@given(logits(3, 4, largest=10.0))
def test_the_gradient_of_the_bonus_is_that_of_the_divergence_from_uniform(policy):
    ours, theirs = (policy.clone().requires_grad_() for _ in range(2))
    bonus(ours, 2.0).sum().backward()
    kl = kl_divergence_logits(theirs, torch.zeros(3, 4, dtype=torch.float64))
    (2 * kl).sum().backward()
    # Sums of terms of order 1 to 10 that cancel near a corner.
    assert_close(ours.grad, theirs.grad, atol=1e-12, rtol=1e-7)


@given(logits(3, 4, largest=10.0))
def test_bonus_and_divergence_from_uniform_differ_by_the_log_of_the_number(policy):
    kl = kl_divergence_logits(policy, torch.zeros(3, 4, dtype=torch.float64))
    expected = tensor(4.0, dtype=torch.float64).log().expand(3)
    assert_close(kl - bonus(policy), expected)


@given(logits(3, 4))
def test_a_sampled_entropy_has_no_gradient_on_average(policy):
    policy = policy.requires_grad_()
    log_p = policy.log_softmax(-1)
    # Every action, weighted by its probability, which is a constant to autograd.
    (log_p.exp().detach() * -log_p).sum().backward()
    # Differences of probabilities.
    assert_close(policy.grad, torch.zeros_like(policy), atol=1e-14, rtol=0)


@given(logits(3, 4))
def test_a_masked_action_is_as_good_as_absent(policy):
    masked = torch.cat([policy, torch.full((3, 1), -inf)], -1).requires_grad_()
    assert_close(bonus(masked), bonus(policy))
    bonus(masked).sum().backward()
    assert masked.grad.isfinite().all()


def test_the_advantages_get_no_gradient():
    advantages = torch.ones(3, requires_grad=True)
    policy = torch.zeros(3, 4, requires_grad=True)
    actor_loss(
        new_logits=policy, actions=ACTIONS, advantages=advantages, coefficient=0.1
    ).sum().backward()
    assert policy.grad is not None
    assert advantages.grad is None


def test_refuses_a_negative_coefficient():
    with pytest.raises(ValueError, match="coefficient is -1"):
        bonus(torch.zeros(1, 4), -1.0)


@pytest.mark.parametrize("actions", [torch.zeros(3, 1).long(), torch.zeros(3)])
def test_refuses_actions_that_are_no_index_per_state(actions):
    with pytest.raises(ValueError, match=r"actions (is|must)"):
        actor_loss(
            new_logits=torch.zeros(3, 4),
            actions=actions,
            advantages=torch.zeros(3),
            coefficient=0.1,
        )
