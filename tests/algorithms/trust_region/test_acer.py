"""The projection is the nearest vector that obeys the limit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from snippets.algorithms.trust_region.acer import (
    divergence_gradient,
    project_gradient,
    update_average,
)


@st.composite
def rows(draw):
    """Three rows of three numbers."""
    row = st.lists(st.floats(-3, 3), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3)


def divergence(p, q):
    """KL(p || q) of each row of logits, summed over the actions."""
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return sum(p[..., a].exp() * (p[..., a] - q[..., a]) for a in range(3))


@given(rows(), rows())
def test_the_normal_is_the_derivative_of_the_divergence(average, new):
    new = new.requires_grad_()
    divergence(average, new).sum().backward()
    # Differences of two probabilities.
    got = divergence_gradient(average, new.detach())
    assert_close(got, new.grad, atol=1e-14, rtol=1e-7)


@given(rows(), rows(), st.floats(0.01, 2))
def test_the_projection_obeys_the_limit(gradient, normal, delta):
    slope = (project_gradient(gradient, normal, delta) * normal).sum(-1)
    # Numbers up to 30, rounded three times.
    assert (slope <= delta + 1e-12).all()


@given(rows(), rows(), rows(), st.floats(0.01, 2))
def test_no_other_vector_that_obeys_is_nearer(gradient, normal, other, delta):
    projected = project_gradient(gradient, normal, delta)
    allowed = (other * normal).sum(-1) <= delta
    ours = (projected - gradient).norm(dim=-1)
    theirs = (other - gradient).norm(dim=-1)
    # Rounding of distances up to 10.
    assert (ours <= theirs + 1e-9)[allowed].all()


@given(rows(), rows())
def test_an_obedient_gradient_comes_back_as_it_was(gradient, normal):
    limit = (gradient * normal).sum(-1).max().item() + 1
    if limit > 0:
        assert (project_gradient(gradient, normal, limit) == gradient).all()


@given(rows(), rows(), rows())
def test_a_small_step_along_the_projection_costs_at_most_delta(gradient, average, new):
    delta, length = 0.1, 1e-6
    normal = divergence_gradient(average, new)
    projected = project_gradient(gradient, normal, delta)
    grown = divergence(average, new + length * projected) - divergence(average, new)
    # Curvature adds at most |z|²·length² / 2, rounding 1e-15.
    slack = projected.square().sum(-1) * length**2 + 1e-14
    assert (grown <= delta * length + slack).all()


@given(rows())
def test_at_the_average_itself_the_gradient_is_free(gradient):
    normal = torch.zeros_like(gradient)
    assert (project_gradient(gradient, normal, 0.01) == gradient).all()


def test_swapping_the_arguments_is_another_gradient():
    average = torch.zeros(3, dtype=torch.float64)
    new = tensor([0.0, 0.5, 3.0], dtype=torch.float64)
    back = new.clone().requires_grad_()
    divergence(back, average).backward()
    there = divergence_gradient(average, new)
    assert there.norm() > 1.5 * back.grad.norm()


@given(rows(), rows())
def test_the_average_forgets_exponentially(average, current):
    moved = average
    for _ in range(3):
        moved = update_average(moved, current, 0.99)
    expected = 0.99**3 * average + (1 - 0.99**3) * current
    assert_close(moved, expected)


def test_batches_and_float32():
    g = torch.randn(4, 5, 3)
    k = divergence_gradient(g, g.flip(0))
    assert_close(
        project_gradient(g, k, 0.1)[2, 3], project_gradient(g[2, 3], k[2, 3], 0.1)
    )
    assert k.dtype == torch.float32


def test_refuses_a_limit_of_zero():
    with pytest.raises(ValueError, match="delta is 0"):
        project_gradient(torch.ones(3), torch.ones(3), 0)
