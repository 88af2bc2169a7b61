"""The projection is the nearest vector that obeys the limit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.testing import assert_close

from snippets.algorithms.trust_region.acer import kl_gradient, project_gradient
from snippets.exact.categorical import kl_divergence_logits
from tests.strategies import numbers

ROWS = numbers(3, 4)


def normal_of(average, new):
    return kl_gradient(average_logits=average, new_logits=new)


@given(ROWS, ROWS)
def test_the_normal_is_the_derivative_of_the_divergence(average, new):
    new = new.requires_grad_()
    kl_divergence_logits(average, new).sum().backward()
    # Differences of two probabilities.
    got = normal_of(average, new.detach())
    assert_close(got, new.grad, atol=1e-14, rtol=1e-7)


@given(ROWS, ROWS, st.floats(0.01, 2))
def test_the_projection_obeys_the_limit(gradient, normal, delta):
    slope = (project_gradient(gradient, normal, delta) * normal).sum(-1)
    # Numbers up to 30, rounded three times.
    assert (slope <= delta + 1e-12).all()


@given(ROWS, ROWS, ROWS, st.floats(0.01, 2))
def test_no_other_vector_that_obeys_is_nearer(gradient, normal, other, delta):
    projected = project_gradient(gradient, normal, delta)
    allowed = (other * normal).sum(-1) <= delta
    ours = (projected - gradient).norm(dim=-1)
    theirs = (other - gradient).norm(dim=-1)
    # Rounding of distances up to 10.
    assert (ours <= theirs + 1e-9)[allowed].all()


@given(ROWS, ROWS)
def test_an_obedient_gradient_comes_back_as_it_was(gradient, normal):
    limit = (gradient * normal).sum(-1).max().item() + 1
    if limit > 0:
        assert (project_gradient(gradient, normal, limit) == gradient).all()


@given(ROWS, ROWS, ROWS)
def test_a_small_step_along_the_projection_grows_the_divergence_by_delta_at_most(
    gradient, average, new
):
    delta, length = 0.1, 1e-6
    normal = normal_of(average, new)
    projected = project_gradient(gradient, normal, delta)
    grown = kl_divergence_logits(
        average, new + length * projected
    ) - kl_divergence_logits(average, new)
    # Curvature adds at most |z|²·length² / 2, rounding 1e-15.
    slack = projected.square().sum(-1) * length**2 + 1e-14
    assert (grown <= delta * length + slack).all()


@given(ROWS)
def test_at_the_average_itself_the_gradient_is_free(gradient):
    normal = torch.zeros_like(gradient)
    assert (project_gradient(gradient, normal, 0.01) == gradient).all()


def test_swapping_the_arguments_is_another_gradient():
    average = torch.zeros(3, dtype=torch.float64)
    new = tensor([0.0, 0.5, 3.0], dtype=torch.float64)
    back = new.clone().requires_grad_()
    kl_divergence_logits(back, average).backward()
    there = normal_of(average, new)
    assert there.norm() > 1.5 * back.grad.norm()


def test_batches_and_float32():
    g = torch.randn(4, 5, 3)
    k = normal_of(g, g.flip(0))
    assert_close(
        project_gradient(g, k, 0.1)[2, 3], project_gradient(g[2, 3], k[2, 3], 0.1)
    )
    assert k.dtype == torch.float32


def test_refuses_a_limit_of_zero():
    with pytest.raises(ValueError, match="delta is 0"):
        project_gradient(torch.ones(3), torch.ones(3), 0)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_the_projection_obeys_the_limit_whatever_the_size_of_the_normal(size):
    normal = size * tensor([1.0, -2.0, 1.0])
    gradient = tensor([3.0, -1.0, 2.0]) / size
    projected = project_gradient(gradient, normal, 0.5)
    # Seven digits of numbers of order 10.
    assert_close((projected * normal).sum(), tensor(0.5), atol=1e-5, rtol=0)


def test_a_row_without_normal_stands_beside_rows_that_have_one():
    gradient, normal = torch.ones(2, 3), tensor([[0.0, 0, 0], [1, 2, 3]])
    projected = project_gradient(gradient, normal, 0.1)
    assert (projected[0] == gradient[0]).all()
    assert_close((projected[1] * normal[1]).sum(), tensor(0.1))


def test_the_projection_is_a_constant():
    gradient, normal = (torch.ones(3, requires_grad=True) for _ in range(2))
    assert not project_gradient(gradient, normal, 0.1).requires_grad


def test_a_masked_action_has_no_gradient():
    average, new = tensor([0.0, 1.0, -inf]), tensor([1.0, 0.0, -inf])
    assert_close(normal_of(average, new)[:2], normal_of(average[:2], new[:2]))
    assert normal_of(average, new)[2] == 0
