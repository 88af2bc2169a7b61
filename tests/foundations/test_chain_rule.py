"""Tokens add up to sequences, exactly, and forgetting never raises a KL."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.testing import assert_close

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.chain_rule import marginal_log_prob, per_token, sequence_kl
from snippets.lab import mdp


@st.composite
def two_policies(draw):
    """First and second token of P and of Q over 1 to 4 tokens, as logits."""
    vocab = draw(st.integers(1, 4))

    def logits(*shape):
        count = torch.Size(shape).numel()
        row = st.lists(st.floats(-5, 5), min_size=count, max_size=count)
        return tensor(draw(row), dtype=torch.float64).reshape(shape)

    return [(logits(vocab), logits(vocab, vocab)) for _ in "PQ"]


def joint(first, second):
    return first.log_softmax(-1)[:, None] + second.log_softmax(-1)


@given(two_policies())
def test_tokens_add_up_to_the_sequence(policies):
    (first_p, second_p), (first_q, second_q) = policies
    whole = kl_divergence_logits(
        joint(*policies[0]).flatten(), joint(*policies[1]).flatten()
    )
    tokens = torch.cat(
        [
            kl_divergence_logits(first_p, first_q)[None],
            kl_divergence_logits(second_p, second_q),
        ]
    )
    prefixes = torch.cat([torch.zeros(1).double(), first_p.log_softmax(-1)])
    assert_close(sequence_kl(tokens, prefixes), whole)


@given(two_policies())
def test_forgetting_a_token_never_raises_the_divergence(policies):
    tables = [joint(*policy) for policy in policies]
    whole = kl_divergence_logits(*(table.flatten() for table in tables))
    for axis in (0, 1):
        parts = [marginal_log_prob(table, axis) for table in tables]
        assert kl_divergence_logits(*parts) <= whole + 1e-12  # rounding


rows = st.lists(st.floats(-3, 3), min_size=9, max_size=9)


@given(rows, rows)
def test_a_trajectory_is_the_sum_over_states_that_p_visits(first, second):
    problem = mdp.small_problem(torch.float64)
    p, q = (tensor(x, dtype=torch.float64).reshape(3, 3) for x in (first, second))
    paths = mdp.enumerate_paths(problem, 3)
    fixed = mdp.path_log_dynamics(problem, paths)
    taken = (mdp.path_log_policy(x.softmax(-1), paths).sum(-1) for x in (p, q))
    whole = kl_divergence_logits(*(fixed + x for x in taken))
    seen, visits = problem.start, torch.zeros(3).double()
    for _ in range(3):
        visits += seen
        seen = seen @ mdp.state_chain(problem, p.softmax(-1))
    assert_close(whole, sequence_kl(kl_divergence_logits(p, q), visits.log()))


def test_what_p_never_reaches_does_not_count():
    assert sequence_kl(tensor([0.5, inf]), tensor([0.0, -inf])) == 0.5


def test_a_rate_per_token():
    rates = per_token(tensor([6.0, 6.0, 6.0]), tensor([100.0, 0.0, -2.0]))
    assert_close(rates, tensor([0.06, nan, nan]), equal_nan=True)
    with pytest.raises(ValueError, match=r"mean_length is \[\], sequence is \[3\]"):
        per_token(torch.ones(3), tensor(2.0))


def test_what_is_impossible_is_forgotten_with_a_gradient_of_zero():
    joint = tensor([[0.3, 0.2], [-inf, -inf], [0.5, -inf]], requires_grad=True)
    found = marginal_log_prob(joint, -1)
    assert found[1] == -inf
    assert_close(found[0].exp(), (joint[0].exp().sum()))
    found[[0, 2]].sum().backward()
    assert_close(joint.grad, tensor([[0.52498, 0.47502], [0.0, 0.0], [1.0, 0.0]]))
    (of_all,) = torch.autograd.grad(marginal_log_prob(joint, -1).exp().sum(), joint)
    assert of_all.isfinite().all()


@pytest.mark.parametrize("axis", [2, -3])
def test_refuses_an_axis_that_is_not_there(axis):
    with pytest.raises(ValueError, match="has no axis"):
        marginal_log_prob(torch.zeros(2, 3), axis)
