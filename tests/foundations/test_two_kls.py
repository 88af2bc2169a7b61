"""The step KL starts again at every update, and the reference KL does not."""

from itertools import pairwise

import torch
from hypothesis import given
from torch import tensor
from torch.testing import assert_close

from snippets.exact.categorical import kl_divergence_logits
from tests.strategies import policies


@given(policies(2, fewest=2))
def test_only_the_reference_kl_pulls_where_an_update_starts(rows):
    old, ref = rows
    new = old.clone().requires_grad_()
    (pull,) = torch.autograd.grad(kl_divergence_logits(old, new), new)
    assert pull.abs().max() < 1e-15  # p - p, with a rounding of the sum of p
    (pull,) = torch.autograd.grad(kl_divergence_logits(new, ref), new)
    p = old.softmax(-1)
    ratio = old.log_softmax(-1) - ref.log_softmax(-1)
    assert_close(pull, p * (ratio - p @ ratio))


def test_the_steps_may_add_up_to_less_than_the_way():
    path = [tensor([x, 1 - x]).log() for x in (0.5, 0.2, 0.05)]
    steps = [kl_divergence_logits(a, b) for a, b in pairwise(path)]
    assert kl_divergence_logits(path[2], path[0]) > 1.3 * sum(steps)


def test_ten_equal_steps_are_a_hundred_times_one_step_away():
    direction = tensor([1.0, 0.0, -1.0], dtype=torch.float64) / 100
    ref = torch.zeros(3, dtype=torch.float64)
    path = [ref + n * direction for n in range(11)]
    steps = [kl_divergence_logits(a, b) for a, b in pairwise(path)]
    # To second order in steps of 0.01.
    whole = kl_divergence_logits(path[10], ref)
    assert_close(whole, 100 * steps[0], rtol=0.05, atol=0)
    assert max(steps) < 1.05 * min(steps)


def trained(updates, beta):
    """Step and reference KLs of gradient ascent on reward less beta times the KL."""
    rewards, ref = tensor([[0.0, 0.2, 0.5, 1.0], [1.5, 0.5, 0.0, -1.0]]).double()
    policy, steps, away = ref.clone(), [], []
    for _ in range(updates):
        old = policy
        p = old.softmax(-1)
        value = rewards - beta * (old.log_softmax(-1) - ref.log_softmax(-1))
        policy = old + p * (value - p @ value)
        steps.append(kl_divergence_logits(old, policy))
        away.append(kl_divergence_logits(policy, ref))
    best = kl_divergence_logits(ref + rewards / beta, ref) if beta else None
    return torch.stack(steps), torch.stack(away), best


def test_without_a_penalty_the_reference_kl_rises_and_the_step_kl_turns():
    steps, away, _ = trained(100, 0.0)
    assert (away.diff() > 0).all()
    turn = int(steps.argmax())
    assert 0 < turn < 99
    assert steps[turn] > 2 * steps[0]
    assert steps[-1] < steps[turn] / 2


def test_with_a_penalty_the_reference_kl_levels_off_at_the_optimums():
    steps, away, best = trained(3000, 0.5)
    assert_close(away[-1], best, rtol=1e-3, atol=0)  # how far 3,000 updates come
    assert steps[-1] < 1e-10
