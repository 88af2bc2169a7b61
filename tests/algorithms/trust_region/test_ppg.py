"""The clone term is KL(old || new), and holds a policy that shares its features."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.testing import assert_close

from snippets.algorithms.trust_region.ppg import clone_divergence, joint_loss


@st.composite
def logits(draw):
    """Logits of a policy for the small problem."""
    row = st.lists(st.floats(-3, 3), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3)


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
        anchor = new if fresh else old
        optimiser.zero_grad()
        joint_loss(anchor, new, features @ head, targets, beta).sum().backward()
        optimiser.step()
    error = (features @ head - targets).square().sum()
    return clone_divergence(old, features @ policy).sum().item(), error.item()


@given(logits(), logits())
def test_the_divergence_is_the_sum_over_actions(old, new):
    p, q = old.softmax(-1), new.softmax(-1)
    summed = sum(p[:, a] * (p[:, a] / q[:, a]).log() for a in range(3))
    assert_close(clone_divergence(old, new), summed, atol=1e-12, rtol=1e-7)


@given(logits(), logits())
def test_the_gradient_is_new_less_old(old, new):
    old, new = old.requires_grad_(), new.requires_grad_()
    clone_divergence(old, new).sum().backward()
    # Differences of two probabilities.
    expected = (new.softmax(-1) - old.softmax(-1)).detach()
    assert_close(new.grad, expected, atol=1e-14, rtol=1e-7)
    assert old.grad is None


@given(logits(), logits())
def test_the_joint_loss_is_a_sum(old, new):
    values, targets = old[:, 0], new[:, 0]
    expected = 0.5 * (values - targets) ** 2 + 2.0 * clone_divergence(old, new)
    assert_close(joint_loss(old, new, values, targets, 2.0), expected)


def test_the_clone_term_holds_the_policy_while_the_value_learns():
    free, _ = train(0.0, fresh=False)
    for beta, share in ((1.0, 0.5), (10.0, 0.2)):
        held, error = train(beta, fresh=False)
        assert held < share * free
        assert error < 0.1


def test_a_clone_of_the_current_policy_holds_nothing():
    assert train(1.0, fresh=True) == pytest.approx(train(0.0, fresh=False))


@given(logits())
def test_identical_policies_diverge_by_exactly_zero(old):
    assert (clone_divergence(old, old) == 0).all()


def test_a_masked_action_is_as_good_as_absent():
    old, new = tensor([[0.0, 1, -inf]]), tensor([[1.0, 0, -inf]]).requires_grad_()
    masked = clone_divergence(old, new)
    assert_close(masked, clone_divergence(old[:, :2], new[:, :2]))
    masked.sum().backward()
    assert new.grad.isfinite().all()


def test_batches_and_float32():
    value = clone_divergence(torch.randn(4, 5, 3), torch.randn(4, 5, 3))
    assert value.shape == (4, 5)
    assert value.dtype == torch.float32
