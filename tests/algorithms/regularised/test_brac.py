"""BRAC's penalty is KL(new || behaviour); BEAR's is finite where that is not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from snippets.algorithms.regularised.brac import kl_penalised_value, squared_mmd
from snippets.estimate.estimators import k1
from snippets.exact.categorical import kl_divergence_logits
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


def mmd(new, behaviour, sigma):
    """The squared MMD, arguments by place."""
    return squared_mmd(new_actions=new, behaviour_actions=behaviour, sigma=sigma)


@given(tables(), tables())
def test_the_estimate_is_unbiased_over_the_new_policys_actions(new, behaviour):
    each = k1(new.log_softmax(-1), behaviour.log_softmax(-1))
    mean = (new.softmax(-1) * each).sum(-1)  # every action with its probability
    exact = kl_divergence_logits(new, behaviour)
    assert_close(mean, exact, atol=1e-14, rtol=1e-7)
    torchs = kl_divergence(Categorical(logits=new), Categorical(logits=behaviour))
    assert_close(exact, torchs, atol=1e-14, rtol=1e-7)


@given(tables(), tables())
def test_over_the_datas_actions_it_is_minus_the_other_direction(new, behaviour):
    each = k1(new.log_softmax(-1), behaviour.log_softmax(-1))
    mean = (behaviour.softmax(-1) * each).sum(-1)
    other = -kl_divergence_logits(behaviour, new)
    assert_close(mean, other, atol=1e-14, rtol=1e-7)


@given(tables(), tables(), st.floats(0, 5))
def test_the_value_penalty_is_a_reward_of_the_next_step(new, behaviour, alpha):
    policy, kl = new.softmax(-1), kl_divergence_logits(new, behaviour)
    # Values of the problem whose rewards are lower where the next state is far.
    penalty = PROBLEM.discount * alpha * PROBLEM.transitions @ kl
    q = action_values(PROBLEM._replace(rewards=PROBLEM.rewards - penalty), policy)
    mean = (policy * q).sum(-1)
    v = kl_penalised_value(action_values=mean, kl=kl, alpha=alpha)
    again = PROBLEM.rewards + PROBLEM.discount * PROBLEM.transitions @ v
    assert_close(q, again)


def test_the_loss_falls_with_value_and_rises_with_distance():
    q, kl = tensor([1.0], requires_grad=True), tensor([2.0], requires_grad=True)
    loss = -kl_penalised_value(action_values=q, kl=kl, alpha=0.3)
    assert_close(loss.detach(), tensor([0.3 * 2.0 - 1.0]))
    slopes = torch.autograd.grad(loss.sum(), (q, kl))
    assert slopes == (tensor([-1.0]), tensor([0.3]))


def test_without_a_coefficient_the_value_is_the_value():
    q, kl = tensor([1.0, 2.0]), tensor([inf, 3.0])
    assert_close(kl_penalised_value(action_values=q, kl=kl, alpha=0.0), q)


@given(actions(), st.floats(0.1, 20))
def test_the_mmd_is_the_sum_over_pairs(sets, sigma):
    new, behaviour = sets

    def mean(left, right):
        terms = [
            (-(x - y).abs().sum() / (2 * sigma)).exp() for x in left for y in right
        ]
        return sum(terms) / len(terms)

    expected = mean(new, new) + mean(behaviour, behaviour) - 2 * mean(new, behaviour)
    value = mmd(new, behaviour, sigma)
    # Three means of order 1.
    assert_close(value, expected, atol=1e-14, rtol=1e-7)
    assert_close(value, mmd(behaviour, new, sigma), atol=1e-14, rtol=0)
    assert -1e-14 < value <= 2


def test_identical_sets_are_at_no_distance():
    at = torch.randn(3, 10, 4)
    assert (mmd(at, at, 10.0) == 0).all()


def test_outside_the_data_one_is_infinite_and_the_other_is_not():
    new, behaviour = tensor([0.0, 0.0, 0.0]), tensor([0.0, 0.0, -inf])
    assert kl_divergence_logits(new, behaviour) == inf
    inside, outside = tensor([[0.0], [0.1]]), tensor([[5.0], [5.1]])
    assert 0.1 < mmd(outside, inside, 10.0) < 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype):
    sets = torch.randn(2, 50, 3).to(dtype)
    half, wide = mmd(*sets, 10.0), mmd(*sets.float(), 10.0)
    assert_close(half, wide.to(dtype), atol=0, rtol=0)
    q, kl = torch.randn(2, 50).to(dtype)
    half = kl_penalised_value(action_values=q, kl=kl, alpha=0.3)
    wide = kl_penalised_value(action_values=q.float(), kl=kl.float(), alpha=0.3)
    assert_close(half, wide.to(dtype), atol=0, rtol=0)


def test_batches_and_float32():
    sets = torch.randn(4, 5, 10, 2), torch.randn(4, 5, 7, 2)
    value = mmd(*sets, 10.0)
    assert value.shape == (4, 5)
    assert value.dtype == torch.float32
    assert_close(value[3, 4], mmd(sets[0][3, 4], sets[1][3, 4], 10.0))


@pytest.mark.parametrize(
    ("new", "behaviour"),
    [((5, 2), (5, 1)), ((4, 5, 2), (5, 2)), ((3, 5, 2), (1, 5, 2)), ((2,), (2,))],
)
def test_sets_that_would_broadcast_are_refused(new, behaviour):
    with pytest.raises(ValueError, match="new_actions is"):
        mmd(torch.zeros(new), torch.zeros(behaviour), 1.0)


@pytest.mark.parametrize("number", [-1.0, nan])
def test_a_number_out_of_range_is_refused(number):
    with pytest.raises(ValueError, match="sigma is"):
        mmd(torch.zeros(2, 1), torch.zeros(2, 1), number)
    at = {"action_values": torch.zeros(1), "kl": torch.zeros(1)}
    with pytest.raises(ValueError, match="alpha is"):
        kl_penalised_value(**at, alpha=number)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="kl is"):
        kl_penalised_value(
            action_values=torch.zeros(3), kl=torch.zeros(3, 1), alpha=1.0
        )
