"""The clone term is KL(old || new), and holds a policy that shares its features."""

import pytest
import torch
from hypothesis import given
from torch import inf, tensor
from torch.testing import assert_close

from snippets.algorithms.trust_region.ppg import joint_loss
from snippets.exact.categorical import kl_divergence_logits
from tests.strategies import logits, numbers


def clone(old, new, beta=1.0):
    """The loss where the value head has nothing to learn."""
    nothing = torch.zeros(old.shape[:-1], dtype=old.dtype)
    return joint_loss(
        new_logits=new, old_logits=old, values=nothing, targets=nothing, beta=beta
    )


def train(beta, fresh):
    """Train a value head on features that the policy reads; the KL that results."""
    features = torch.eye(3, dtype=torch.float64).requires_grad_()
    policy = tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, -1]], dtype=torch.float64)
    head = torch.ones(3, dtype=torch.float64).requires_grad_()
    targets = tensor([3.0, 4.0, 9.0], dtype=torch.float64)
    old = (features @ policy).detach()
    optimiser = torch.optim.SGD([features, head], lr=0.02)
    for _ in range(200):
        new = features @ policy
        loss = joint_loss(
            new_logits=new,
            old_logits=new if fresh else old,
            values=features @ head,
            targets=targets,
            beta=beta,
        )
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
    error = (features @ head - targets).square().sum()
    return kl_divergence_logits(old, features @ policy).sum().item(), error.item()


@given(logits(3, 4), logits(3, 4))
def test_the_clone_term_is_the_sum_over_actions(old, new):
    p, q = old.softmax(-1), new.softmax(-1)
    summed = sum(p[:, a] * (p[:, a] / q[:, a]).log() for a in range(4))
    # A sum of terms of order 1 in which much cancels.
    assert_close(clone(old, new), summed, atol=1e-12, rtol=1e-7)


@given(logits(3, 4), logits(3, 4))
def test_the_gradient_is_new_less_old(old, new):
    old, new = old.requires_grad_(), new.requires_grad_()
    clone(old, new, 3.0).sum().backward()
    # Differences of two probabilities.
    expected = 3 * (new.softmax(-1) - old.softmax(-1)).detach()
    assert_close(new.grad, expected, atol=1e-14, rtol=1e-7)
    assert old.grad is None


@given(logits(3, 4), logits(3, 4), numbers(3, largest=50.0), numbers(3, largest=50.0))
def test_the_joint_loss_is_a_sum(old, new, values, targets):
    expected = 0.5 * (values - targets) ** 2 + 2.0 * kl_divergence_logits(old, new)
    found = joint_loss(
        new_logits=new, old_logits=old, values=values, targets=targets, beta=2.0
    )
    assert_close(found, expected)


def test_the_targets_are_constants():
    values, targets = (torch.ones(2, requires_grad=True) for _ in range(2))
    policy = torch.zeros(2, 3)
    joint_loss(
        new_logits=policy, old_logits=policy, values=values, targets=targets, beta=1.0
    ).sum().backward()
    assert values.grad is not None
    assert targets.grad is None


def test_the_clone_term_holds_the_policy_while_the_value_learns():
    free, _ = train(0.0, fresh=False)
    for beta, share in ((1.0, 0.5), (10.0, 0.2)):
        held, error = train(beta, fresh=False)
        assert held < share * free
        assert error < 0.1


def test_a_clone_of_the_current_policy_holds_nothing():
    assert train(1.0, fresh=True) == pytest.approx(train(0.0, fresh=False))


def test_an_action_masked_now_that_the_old_policy_hardly_took_adds_nothing():
    old, new = tensor([[0.0, -200.0]]), tensor([[0.0, -inf]]).requires_grad_()
    loss = clone(old, new)
    loss.sum().backward()
    assert loss == 0
    assert (new.grad == 0).all()


def test_a_masked_action_is_as_good_as_absent():
    old, new = tensor([[0.0, 1, -inf]]), tensor([[1.0, 0, -inf]]).requires_grad_()
    masked = clone(old, new)
    assert_close(masked, clone(old[:, :2], new[:, :2]))
    masked.sum().backward()
    assert new.grad.isfinite().all()


def test_many_actions_in_half_precision():
    torch.manual_seed(0)
    old = torch.randn(50_000).bfloat16()
    new = (old.float() + 0.1 * torch.randn(50_000)).bfloat16()
    exact = kl_divergence_logits(old.double(), new.double())
    assert 0.004 < exact < 0.006
    # One rounding to the eight bits of bfloat16.
    assert_close(clone(old, new).double(), exact, rtol=2**-8, atol=0)


def test_refuses_fewer_values_than_states():
    with pytest.raises(ValueError, match="values is"):
        joint_loss(
            new_logits=torch.zeros(4, 3),
            old_logits=torch.zeros(4, 3),
            values=torch.zeros(4, 1),
            targets=torch.zeros(4, 1),
            beta=1.0,
        )


def test_refuses_a_negative_coefficient():
    with pytest.raises(ValueError, match="beta is"):
        clone(torch.zeros(1, 3), torch.zeros(1, 3), -1.0)
