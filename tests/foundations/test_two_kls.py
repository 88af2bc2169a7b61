"""The step KL starts again at every update, and the anchor KL does not."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from snippets.foundations.two_kls import anchor_kl, step_kl

row = st.lists(st.floats(-5, 5), min_size=3, max_size=3)


@given(row, row)
def test_each_has_the_sampler_first(first, second):
    one, other = (tensor(x, dtype=torch.float64) for x in (first, second))
    expected = kl_divergence(Categorical(logits=one), Categorical(logits=other))
    assert_close(step_kl(one, other), expected)
    assert_close(anchor_kl(one, other), expected)


@given(row, row)
def test_only_the_anchor_pulls_where_the_update_starts(first, second):
    old, ref = (tensor(x, dtype=torch.float64) for x in (first, second))
    new = old.clone().requires_grad_()
    assert step_kl(old, new) == anchor_kl(new, new) == 0
    (pull,) = torch.autograd.grad(step_kl(old, new), new)
    assert pull.abs().max() < 1e-15  # p - p, with a rounding of the sum of p
    (pull,) = torch.autograd.grad(anchor_kl(new, ref), new)
    p = old.softmax(-1)
    ratio = old.log_softmax(-1) - ref.log_softmax(-1)
    assert_close(pull, p * (ratio - p @ ratio))


def test_the_steps_may_add_up_to_less_than_the_anchor():
    path = [tensor([x, 1 - x]).log() for x in (0.5, 0.2, 0.05)]
    steps = [step_kl(a, b) for a, b in pairwise(path)]
    assert anchor_kl(path[2], path[0]) > 1.3 * sum(steps)


def test_steps_of_one_size_leave_the_anchor_behind_quadratically():
    direction = tensor([1.0, 0.0, -1.0], dtype=torch.float64) / 100
    ref = torch.zeros(3, dtype=torch.float64)
    policies = [ref + n * direction for n in range(11)]
    steps = [step_kl(a, b) for a, b in pairwise(policies)]
    # Ten small steps in one direction: a hundred times one step, to second order.
    assert_close(anchor_kl(policies[10], ref), 100 * steps[0], rtol=0.05, atol=0)
    assert max(steps) < 1.05 * min(steps)
