"""Checks RLOO against every tuple of answers of a policy that can be listed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from snippets.algorithms.language_models.rloo import leave_one_out, penalised_scores, rloo_loss
from snippets.lab.enumeration import every_sequence, token_log_probs
from snippets.estimate.estimators import k3
from snippets.estimate.sequences import sequence_log_prob

BETA = 0.3
ANSWERS = every_sequence(2, 2)  # four answers of two tokens
WHOLE = torch.ones(4, 2, dtype=torch.bool)
numbers = st.floats(-2, 2)


@st.composite
def problems(draw):
    """A policy, a reference and the scores of the answers."""
    tables = [
        torch.tensor(draw(st.lists(numbers, min_size=6, max_size=6))).double()
        for _ in range(2)
    ]
    policy, ref = (table.reshape(3, 2) for table in tables)
    scores = torch.tensor(draw(st.lists(numbers, min_size=4, max_size=4))).double()
    return policy.requires_grad_(), ref, scores


def every_tuple(samples):
    """Which answers are drawn together, in every way."""
    return every_sequence(len(ANSWERS), samples)


def objective(policy, ref, scores):
    """E[score] - beta KL(policy || ref), by listing the answers."""
    new = token_log_probs(policy, ANSWERS).sum(-1)
    old = token_log_probs(ref, ANSWERS).sum(-1)
    return new.exp() @ (scores - BETA * (new - old))


def rewards_of(policy, ref, scores):
    new, old = token_log_probs(policy, ANSWERS), token_log_probs(ref, ANSWERS)
    return penalised_scores(scores, new, old, WHOLE, BETA)


@given(problems())
def test_the_mean_penalised_score_is_the_objective(problem):
    policy, ref, scores = problem
    weights = token_log_probs(policy, ANSWERS).sum(-1).exp()
    rewards = rewards_of(policy, ref, scores)
    assert_close(weights @ rewards, objective(policy, ref, scores))


def mean_loss(policy, rewards, loss):
    """A loss of tuples of answers, averaged over all tuples and their answers."""
    drawn = every_tuple(3)
    log_probs = token_log_probs(policy, ANSWERS)
    weights = log_probs.sum(-1).detach()[drawn].sum(-1).exp()
    return weights @ loss(log_probs[drawn], WHOLE[drawn], rewards[drawn]).mean(-1)


@given(problems())
def test_the_mean_gradient_is_that_of_the_objective(problem):
    policy, ref, scores = problem
    loss = mean_loss(policy, rewards_of(policy, ref, scores), rloo_loss)
    (found,) = torch.autograd.grad(loss, policy)
    (exact,) = torch.autograd.grad(objective(policy, ref, scores), policy)
    assert_close(-found, exact)


@given(problems())
def test_a_baseline_with_the_answer_itself_shrinks_the_gradient_by_one_in_k(problem):
    policy, ref, scores = problem

    def with_itself(log_probs, mask, rewards):
        centred = rewards - rewards.mean(-1, keepdim=True)
        return -centred.detach() * sequence_log_prob(log_probs, mask)

    loss = mean_loss(policy, rewards_of(policy, ref, scores), with_itself)
    (found,) = torch.autograd.grad(loss, policy)
    (exact,) = torch.autograd.grad(objective(policy, ref, scores), policy)
    assert_close(-found, exact * 2 / 3)


@given(problems())
def test_with_the_answer_itself_every_advantage_shrinks_alike(problem):
    rewards = rewards_of(*problem)[every_tuple(3)]
    centred = rewards - rewards.mean(-1, keepdim=True)
    # Differences of numbers of order 1, which may be equal.
    assert_close(centred, leave_one_out(rewards) * 2 / 3, atol=1e-14, rtol=1e-7)


@given(problems())
def test_a_penalty_after_the_baseline_leaves_the_mean_gradient(problem):
    policy, ref, scores = problem
    penalty = scores - rewards_of(policy, ref, scores)

    def late(log_probs, mask, scores):
        paid = penalty[every_tuple(3)]
        advantages = leave_one_out(scores) - paid
        return -advantages * sequence_log_prob(log_probs, mask)

    (found,) = torch.autograd.grad(mean_loss(policy, scores, late), policy)
    (exact,) = torch.autograd.grad(objective(policy, ref, scores), policy)
    assert_close(-found, exact)


@given(problems())
def test_k3_for_k1_leaves_the_mean_and_changes_the_gradient(problem):
    policy, ref, scores = problem
    new, old = token_log_probs(policy, ANSWERS), token_log_probs(ref, ANSWERS)
    weights = new.sum(-1).exp()
    rewards = (scores - BETA * k3(new, old).sum(-1)).detach()
    assert_close(weights @ rewards, objective(policy, ref, scores))
    (found,) = torch.autograd.grad(weights @ rewards, policy, retain_graph=True)
    (exact,) = torch.autograd.grad(objective(policy, ref, scores), policy)
    # What is missing is the gradient of k3 itself, averaged over the answers.
    (own,) = torch.autograd.grad(weights.detach() @ k3(new, old).sum(-1), policy)
    assert_close(found - BETA * own, exact)


def spread(policy, advantages):
    """Variance of the gradient of one update, over every tuple of answers."""
    drawn = every_tuple(advantages.shape[-1])
    weights = token_log_probs(policy, ANSWERS).sum(-1).detach()[drawn].sum(-1).exp()
    slopes = torch.autograd.functional.jacobian(
        lambda table: token_log_probs(table, ANSWERS).sum(-1), policy.detach()
    ).flatten(1)
    steps = (advantages[..., None] * slopes[drawn]).mean(1)  # (samples, parameters)
    return weights @ (steps - weights @ steps).square().sum(-1)


@given(problems(), st.floats(-100, 100))
def test_what_all_answers_earn_is_no_noise(problem, bonus):
    policy, rewards = problem[0], rewards_of(*problem)
    drawn = rewards[every_tuple(2)]
    plain = spread(policy, leave_one_out(drawn))
    # The bonus cancels to its rounding: 100 · 2e-16, times slopes of at most 1.
    assert_close(
        spread(policy, leave_one_out(drawn + bonus)), plain, atol=1e-12, rtol=1e-7
    )


@given(problems())
def test_a_bonus_to_all_answers_is_noise_without_the_baseline(problem):
    policy, rewards = problem[0], rewards_of(*problem)
    drawn = rewards[every_tuple(2)] + 1000
    assert spread(policy, leave_one_out(drawn)) < 0.1 * spread(policy, drawn)


@given(problems())
def test_more_answers_are_less_noise(problem):
    policy, rewards = problem[0], rewards_of(*problem)
    two, three = (
        spread(policy, leave_one_out(rewards[every_tuple(k)])) for k in (2, 3)
    )
    assert three <= two * 2 / 3 + 1e-14  # rounding, where all answers earn the same


@given(problems())
def test_nothing_flows_through_the_penalty(problem):
    policy, ref, scores = problem
    assert not rewards_of(policy, ref, scores).requires_grad
    live = scores.clone().requires_grad_()
    rloo_loss(token_log_probs(policy, ANSWERS), WHOLE, live).sum().backward()
    assert live.grad is None


@given(st.lists(numbers, min_size=2, max_size=6))
def test_advantages_sum_to_zero_and_leave_the_own_reward_out(values):
    rewards = torch.tensor(values).double()
    found = leave_one_out(rewards)
    for i in range(len(values)):
        others = torch.cat([rewards[:i], rewards[i + 1 :]]).mean()
        assert_close(found[i], rewards[i] - others)
    assert_close(found.sum(), torch.zeros(()).double())


def test_what_stands_under_the_mask_is_not_read():
    new = torch.tensor([[-1.0, torch.nan], [-2.0, -0.5]], requires_grad=True)
    ref = torch.tensor([[-2.0, torch.nan], [-1.0, -0.5]])
    mask = torch.tensor([[True, False], [True, True]])
    rewards = penalised_scores(torch.zeros(2), new, ref, mask, 1.0)
    assert_close(rewards, torch.tensor([-1.0, 1.0]))
    loss = rloo_loss(new, mask, rewards)
    loss.sum().backward()
    assert_close(new.grad, torch.tensor([[2.0, 0.0], [-2.0, -2.0]]))


def test_batches_and_both_precisions():
    for dtype in (torch.float32, torch.float64):
        log_probs = -torch.rand(2, 3, 4, dtype=dtype)
        mask = torch.ones(2, 3, 4, dtype=torch.bool)
        rewards = torch.rand(2, 3, dtype=dtype)
        loss = rloo_loss(log_probs, mask, rewards)
        assert loss.shape == (2, 3)
        assert loss.dtype == dtype
        rows = [rloo_loss(*row) for row in zip(log_probs, mask, rewards, strict=True)]
        assert_close(loss, torch.stack(rows))


def test_at_the_reference_the_score_is_all():
    log_probs, scores = -torch.rand(2, 3, 4), torch.rand(2, 3)
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    found = penalised_scores(scores, log_probs, log_probs.clone(), mask, 0.3)
    assert (found == scores).all()


def test_an_answer_twice_as_long_pays_twice():
    new, ref = torch.full((2, 4), -1.0), torch.full((2, 4), -3.0)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    found = penalised_scores(torch.zeros(2), new, ref, mask, 0.5)
    assert_close(found, torch.tensor([-2.0, -4.0]))


def test_a_mask_of_numbers_is_refused():
    log_probs = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="mask must be boolean"):
        penalised_scores(torch.zeros(2), log_probs, log_probs, torch.ones(2, 3), 0.3)
    with pytest.raises(ValueError, match="mask must be boolean"):
        rloo_loss(log_probs, torch.ones(2, 3), torch.zeros(2))


def test_one_answer_has_no_others():
    with pytest.raises(ValueError, match="rewards has one answer"):
        leave_one_out(torch.zeros(3, 1))
