"""Entropy, cross-entropy and mutual information are each a KL and a constant."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.distributions import Categorical
from torch.testing import assert_close

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.entropy import (
    cross_entropy,
    entropy,
    kl_to_uniform,
    mutual_information,
)


@st.composite
def logits(draw, count=1):
    """Rows of logits over the same 1 to 5 actions."""
    actions = draw(st.integers(1, 5))
    row = st.lists(st.floats(-8, 8), min_size=actions, max_size=actions)
    return [tensor(draw(row), dtype=torch.float64) for _ in range(count)]


@given(logits())
def test_entropy_is_torchs(rows):
    assert_close(entropy(rows[0]), Categorical(logits=rows[0]).entropy())


@given(logits())
def test_entropy_and_the_kl_to_uniform_sum_to_a_constant(rows):
    (p,) = rows
    total = math.log(len(p))
    # The difference is of two numbers of one size, and cancels near the uniform policy.
    assert_close(kl_to_uniform(p).item(), total - entropy(p).item(), atol=1e-14, rtol=0)


@given(logits(2))
def test_cross_entropy_is_entropy_and_kl(rows):
    p, q = rows
    assert_close(cross_entropy(p, q), entropy(p) + kl_divergence_logits(p, q))


@given(logits(2))
def test_cross_entropy_and_kl_have_the_same_gradient_in_q(rows):
    p, q = rows[0], rows[1].requires_grad_()
    slopes = [
        torch.autograd.grad(f(p, q), q)[0]
        for f in (cross_entropy, kl_divergence_logits)
    ]
    assert_close(*slopes)


@given(logits(3))
def test_mutual_information_is_the_kl_of_joint_and_product(rows):
    policy = torch.stack(rows)
    weights = tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    joint = policy.softmax(-1) * weights[:, None]
    product = weights[:, None] * joint.sum(0)
    listed = kl_divergence_logits(joint.log().flatten(), product.log().flatten())
    assert_close(mutual_information(policy, weights), listed, rtol=1e-7, atol=1e-12)


@given(st.integers(1, 50), st.sampled_from([torch.float32, torch.float64]))
def test_a_uniform_policy_is_exactly_zero_from_uniform(actions, dtype):
    assert kl_to_uniform(torch.full((actions,), 0.3, dtype=dtype)) == 0


def test_uniform_is_over_the_actions_that_are_not_masked():
    p = tensor([1.0, -inf, 0.0, -inf], requires_grad=True)
    kl = kl_to_uniform(p)
    assert_close(kl, kl_to_uniform(tensor([1.0, 0.0])))
    assert_close(kl, math.log(2) - entropy(p))
    kl.backward()
    assert (p.grad[[1, 3]] == 0).all()
    assert kl_to_uniform(tensor([0.3, -inf, 0.3])) == 0


@pytest.mark.parametrize("f", [entropy, kl_to_uniform])
def test_a_row_with_every_action_masked_is_nan(f):
    found = f(tensor([[-inf, -inf], [0.0, 0.0]]))
    assert found[0].isnan()
    assert found[1].isfinite()


X = tensor([1.0, 0.0, -1.0, 0.5])
Y = tensor([1.1, 0.0, -1.0, 0.5])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    torch.manual_seed(0)
    x, y = X.to(dtype), Y.to(dtype)
    many = torch.randn(2, 50_000).to(dtype)
    weights = tensor([0.5, 0.5], dtype=dtype)
    half = torch.finfo(dtype).eps / 2  # the rounding, and float32's own beside it
    for p, q in ((x, y), many):
        both = torch.stack([p, q])
        for found, exact in (
            (entropy(p), entropy(p.double())),
            (cross_entropy(p, q), cross_entropy(p.double(), q.double())),
            (kl_to_uniform(p), kl_to_uniform(p.double())),
            (
                mutual_information(both, weights),
                mutual_information(both.double(), weights.double()),
            ),
        ):
            assert found.dtype == dtype
            assert_close(found.double(), exact, rtol=1.01 * half, atol=0)


def test_mutual_information_keeps_its_digits_for_states_that_nearly_agree():
    torch.manual_seed(0)
    policy = torch.randn(1, 4) + 1e-4 * torch.randn(200, 5, 4)
    weights = torch.rand(200, 5)
    found = mutual_information(policy, weights)
    exact = mutual_information(policy.double(), weights.double())
    assert (found >= 0).all()
    error = ((found - exact) / exact).abs()
    assert error.median() < 0.01  # float32 logits that differ by 1e-4
    assert error.max() < 0.1


def test_only_the_proportions_of_the_weights_count():
    policy = tensor([[2.0, 0.0], [0.0, 2.0]])
    seen = mutual_information(policy, tensor([30.0, 10.0]))
    assert_close(seen, mutual_information(policy, tensor([0.75, 0.25])))


def test_weights_that_are_none_are_nan():
    policy = tensor([[2.0, 0.0], [0.0, 2.0]]).expand(2, 2, 2)
    found = mutual_information(policy, tensor([[1.5, -0.5], [0.0, 0.0]]))
    assert found.isnan().all()


def test_a_state_that_is_never_visited_is_not_read():
    policy = tensor([[2.0, 0.0], [0.0, 2.0], [nan, inf]], requires_grad=True)
    mutual_information(policy, tensor([0.5, 0.5, 0.0])).backward()
    assert (policy.grad[2] == 0).all()
    assert policy.grad[:2].isfinite().all()


def test_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"logits_q is \[5, 1\]"):
        cross_entropy(torch.zeros(5, 3), torch.zeros(5, 1))
    with pytest.raises(ValueError, match=r"logits_q is \[5, 1, 3\]"):
        cross_entropy(torch.zeros(5, 3), torch.zeros(5, 1, 3))
    with pytest.raises(ValueError, match=r"weights is \[1\], logits is \[2, 3\]"):
        mutual_information(torch.zeros(2, 3), torch.ones(1))


def test_mutual_information_has_a_gradient_under_a_mask():
    policy = tensor([[1.0, 0.0, -inf], [0.0, 1.0, -inf]], requires_grad=True)
    weights = tensor([0.5, 0.5])
    mutual_information(policy, weights).backward()
    assert (policy.grad[:, 2] == 0).all()
    allowed = policy[:, :2].detach().requires_grad_()
    mutual_information(allowed, weights).backward()
    assert_close(policy.grad[:, :2], allowed.grad)


def test_a_state_that_is_never_visited_does_not_count():
    policy = tensor([[2.0, 0.0], [0.0, 2.0], [5.0, -5.0]])
    seen = mutual_information(policy, tensor([0.5, 0.5, 0.0]))
    assert_close(seen, mutual_information(policy[:2], tensor([0.5, 0.5])))


def test_masked_actions_add_nothing_and_keep_gradients():
    p = tensor([1.0, 0.0, -inf], requires_grad=True)
    entropy(p).backward()
    assert p.grad.isfinite().all()
    assert_close(entropy(p), entropy(p[:2]))
    assert_close(cross_entropy(p, p), entropy(p))


def test_a_policy_that_ignores_the_state_has_no_information():
    assert mutual_information(torch.zeros(4, 3), torch.full((4,), 0.25)) == 0


def test_a_policy_that_names_the_state_has_all_of_it():
    policy = torch.full((3, 3), -inf).masked_fill(torch.eye(3).bool(), 0.0)
    found = mutual_information(policy, torch.full((3,), 1 / 3))
    assert_close(found, tensor(math.log(3)))
