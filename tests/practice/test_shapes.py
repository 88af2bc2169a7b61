"""Shapes are what was meant, and torch's own surprises stay as they are described."""

import pytest
import torch
from torch import tensor
from torch.distributions import Categorical, Independent, Normal, kl_divergence
from torch.testing import assert_close

from snippets.exact.gaussian import kl_gaussian
from snippets.practice.shapes import kl_per_action


def normal(*shape):
    torch.manual_seed(0)
    return Normal(torch.randn(shape), torch.rand(shape) + 0.5)


def test_sums_the_dimensions_of_an_action():
    p, q = normal(5, 3), Normal(torch.zeros(5, 3), torch.ones(5, 3))
    assert_close(kl_per_action(p, q, 1), kl_gaussian(p.loc, p.scale, q.loc, q.scale))


def test_sums_two_axes_of_an_action():
    p, q = normal(5, 3, 2), Normal(torch.zeros(5, 3, 2), torch.ones(5, 3, 2))
    assert_close(kl_per_action(p, q, 2), kl_divergence(p, q).sum((-2, -1)))


def test_leaves_what_is_one_number_per_action():
    p = Categorical(logits=torch.randn(5, 3))
    assert kl_per_action(p, Categorical(logits=torch.zeros(5, 3)), 0).shape == (5,)
    joint = Independent(normal(5, 3), 1)
    assert_close(kl_per_action(joint, joint, 0), torch.zeros(5))


def test_is_exactly_zero_for_the_same_policy():
    p = normal(5, 3)
    assert (kl_per_action(p, p, 1) == 0).all()


def test_the_curvature_at_the_same_policy_is_the_fisher_information():
    std = tensor([0.5, 2.0], dtype=torch.float64)
    p = Normal(torch.zeros_like(std), std)

    def moved(mean):
        return kl_per_action(p, Normal(mean, std), 1)

    curvature = torch.autograd.functional.hessian(moved, p.loc)
    assert_close(curvature, std.square().reciprocal().diag())


def test_refuses_batches_that_differ():
    with pytest.raises(ValueError, match=r"P has shapes \[\[4\], .* Q has \[\[4, 1\]"):
        kl_per_action(normal(4), normal(4, 1), 1)


def test_refuses_three_actions_beside_one():
    p, q = (Categorical(logits=torch.zeros(4, n)) for n in (3, 1))
    assert kl_divergence(p, q).shape == (4,)  # torch stretches the one
    with pytest.raises(ValueError, match="P has shapes"):
        kl_per_action(p, q, 0)


@pytest.mark.parametrize("dims", [-1, 3])
def test_refuses_more_dimensions_than_there_are_axes(dims):
    with pytest.raises(ValueError, match=rf"dims is {dims}, and the batch is \[4, 2\]"):
        kl_per_action(normal(4, 2), normal(4, 2), dims)


def test_refuses_independent_beside_plain():
    p = normal(4, 2)
    with pytest.raises(ValueError, match="one of the two is Independent"):
        kl_per_action(Independent(p, 0), p, 0)


def test_torch_squares_a_column():
    assert kl_divergence(normal(4), normal(4, 1)).shape == (4, 4)


def test_torch_has_no_rule_for_independent_beside_plain():
    p = normal(4, 2)
    with pytest.raises(NotImplementedError):
        kl_divergence(Independent(p, 1), p)


def test_gradient_reaches_both_sides():
    logits = torch.randn(3, requires_grad=True)
    q = Categorical(logits=logits)
    kl_per_action(Categorical(logits=tensor([1.0, 0.0, 0.0])), q, 0).backward()
    assert logits.grad.abs().sum() > 0
