"""BRAC's penalty is KL(new || behaviour); BEAR's is finite where that is not."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from snippets.algorithms.regularised.brac import (
    behaviour_divergence,
    penalised_loss,
    penalised_target,
    sampled_divergence,
    squared_discrepancy,
)
from snippets.lab.mdp import action_values, small_problem

PROBLEM = small_problem(torch.float64)


@st.composite
def tables(draw):
    """Logits for three states and three actions."""
    row = st.lists(st.floats(-3, 3), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3)


@st.composite
def actions(draw):
    """Two sets of actions of two numbers."""

    def rows(count):
        row = st.lists(st.floats(-3, 3), min_size=2 * count, max_size=2 * count)
        return tensor(draw(row), dtype=torch.float64).reshape(count, 2)

    return rows(draw(st.integers(1, 6))), rows(draw(st.integers(1, 6)))


@given(tables(), tables())
def test_the_divergence_is_the_sum_over_actions(new, behaviour):
    p, q = new.softmax(-1), behaviour.softmax(-1)
    summed = sum(p[:, a] * (p[:, a] / q[:, a]).log() for a in range(3))
    # Terms of order 1 cancel where the policies are alike.
    value = behaviour_divergence(new, behaviour)
    assert_close(value, summed, atol=1e-14, rtol=1e-7)
    torchs = kl_divergence(Categorical(logits=new), Categorical(logits=behaviour))
    assert_close(value, torchs, atol=1e-14, rtol=1e-7)


@given(tables(), tables())
def test_the_estimate_is_unbiased_over_the_new_policys_actions(new, behaviour):
    log_p, log_q = new.log_softmax(-1), behaviour.log_softmax(-1)
    # One sample per estimate, every action with its probability.
    each = sampled_divergence(log_p[..., None], log_q[..., None])
    mean = (log_p.exp() * each).sum(-1)
    exact = behaviour_divergence(new, behaviour)
    assert_close(mean, exact, atol=1e-14, rtol=1e-7)


@given(tables(), tables())
def test_over_the_datas_actions_it_is_minus_the_other_direction(new, behaviour):
    log_p, log_q = new.log_softmax(-1), behaviour.log_softmax(-1)
    each = sampled_divergence(log_p[..., None], log_q[..., None])
    mean = (log_q.exp() * each).sum(-1)
    other = -behaviour_divergence(behaviour, new)
    assert_close(mean, other, atol=1e-14, rtol=1e-7)


@given(tables(), tables(), st.floats(0, 5))
def test_the_value_penalty_is_a_reward_of_the_next_step(new, behaviour, alpha):
    policy, spent = new.softmax(-1), behaviour_divergence(new, behaviour)
    # Values of the problem whose rewards are charged in the state of arrival.
    charge = PROBLEM.discount * alpha * PROBLEM.transitions @ spent
    q = action_values(PROBLEM._replace(rewards=PROBLEM.rewards - charge), policy)
    v = penalised_target((policy * q).sum(-1), spent, alpha)
    again = PROBLEM.rewards + PROBLEM.discount * PROBLEM.transitions @ v
    assert_close(q, again)


def test_the_loss_falls_with_value_and_rises_with_distance():
    q, spent = tensor([1.0], requires_grad=True), tensor([2.0], requires_grad=True)
    loss = penalised_loss(q, spent, 0.3)
    slopes = torch.autograd.grad(loss.sum(), (q, spent))
    assert slopes == (tensor([-1.0]), tensor([0.3]))
    charged = penalised_target(tensor(1.0), tensor(2.0), 0.3)
    assert_close(charged, tensor(1.0 - 0.3 * 2.0))


@given(actions(), st.floats(0.1, 20))
def test_the_discrepancy_is_the_sum_over_pairs(sets, sigma):
    new, behaviour = sets

    def mean(left, right):
        terms = [
            (-(x - y).abs().sum() / (2 * sigma)).exp() for x in left for y in right
        ]
        return sum(terms) / len(terms)

    expected = mean(new, new) + mean(behaviour, behaviour) - 2 * mean(new, behaviour)
    value = squared_discrepancy(new, behaviour, sigma)
    # Three means of order 1.
    assert_close(value, expected, atol=1e-14, rtol=1e-7)
    assert_close(value, squared_discrepancy(behaviour, new, sigma), atol=1e-14, rtol=0)
    assert -1e-14 < value <= 2


def test_identical_sets_are_at_no_distance():
    at = torch.randn(3, 10, 4)
    assert (squared_discrepancy(at, at, 10.0) == 0).all()
    logits = torch.randn(100, 5)
    assert (behaviour_divergence(logits, logits) == 0).all()
    assert (sampled_divergence(logits, logits) == 0).all()


def test_outside_the_data_one_is_infinite_and_the_other_is_not():
    new, behaviour = tensor([0.0, 0.0, 0.0]), tensor([0.0, 0.0, -inf])
    assert behaviour_divergence(new, behaviour) == inf
    inside, outside = tensor([[0.0], [0.1]]), tensor([[5.0], [5.1]])
    assert 0.1 < squared_discrepancy(outside, inside, 10.0) < 2


def test_a_masked_action_keeps_the_gradient():
    behaviour = torch.cat([torch.randn(4, 3), torch.full((4, 1), -inf)], -1)
    new = torch.cat([torch.randn(4, 3), torch.full((4, 1), -inf)], -1)
    value = behaviour_divergence(new.requires_grad_(), behaviour)
    assert_close(value, behaviour_divergence(new[:, :3], behaviour[:, :3]))
    value.sum().backward()
    assert new.grad.isfinite().all()


def test_batches_and_float32():
    new, behaviour = torch.randn(2, 4, 5, 6)
    assert behaviour_divergence(new, behaviour).shape == (4, 5)
    assert sampled_divergence(new, behaviour).shape == (4, 5)
    sets = torch.randn(4, 5, 10, 2), torch.randn(4, 5, 7, 2)
    value = squared_discrepancy(*sets, 10.0)
    assert value.shape == (4, 5)
    assert value.dtype == torch.float32
    assert_close(value[3, 4], squared_discrepancy(sets[0][3, 4], sets[1][3, 4], 10.0))
