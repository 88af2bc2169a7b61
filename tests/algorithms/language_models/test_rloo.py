"""Checks RLOO against every tuple of completions of a policy that can be listed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from snippets.algorithms.language_models.rloo import (
    leave_one_out,
    penalised_scores,
    rloo_loss,
)
from snippets.estimate.estimators import k3
from snippets.estimate.sequences import sequence_log_prob
from snippets.lab.enumeration import every_sequence, token_log_probs
from tests.strategies import logits, masks, numbers

BETA = 0.3
COMPLETIONS = every_sequence(2, 2)  # four answers of two tokens
WHOLE = torch.ones(4, 2, dtype=torch.bool)


@st.composite
def problems(draw):
    """A policy, a reference and the scores of the completions."""
    policy, ref = (draw(logits(3, 2, largest=2)) for _ in range(2))
    return policy.requires_grad_(), ref, draw(numbers(4, largest=2))


def every_tuple(samples):
    """Which answers are drawn together, in every way."""
    return every_sequence(len(COMPLETIONS), samples)


def objective(policy, ref, scores):
    """E[score] - beta KL(policy || ref), by listing the answers."""
    new = token_log_probs(policy, COMPLETIONS).sum(-1)
    old = token_log_probs(ref, COMPLETIONS).sum(-1)
    return new.exp() @ (scores - BETA * (new - old))


def rewards_of(policy, ref, scores):
    old, ref = (token_log_probs(x, COMPLETIONS) for x in (policy, ref))
    return penalised_scores(
        scores=scores, old_log_probs=old, ref_log_probs=ref, mask=WHOLE, beta=BETA
    )


@given(problems())
def test_the_mean_penalised_score_is_the_objective(problem):
    policy, ref, scores = problem
    weights = token_log_probs(policy, COMPLETIONS).sum(-1).exp()
    rewards = rewards_of(policy, ref, scores)
    assert_close(weights @ rewards, objective(policy, ref, scores))


def mean_loss(policy, rewards, loss):
    """A loss of tuples of answers, averaged over all tuples and their answers."""
    drawn = every_tuple(3)
    log_probs = token_log_probs(policy, COMPLETIONS)
    weights = log_probs.sum(-1).detach()[drawn].sum(-1).exp()
    found = loss(
        new_log_probs=log_probs[drawn], rewards=rewards[drawn], mask=WHOLE[drawn]
    )
    return weights @ found.mean(-1)


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

    def with_itself(new_log_probs, rewards, mask):
        centred = rewards - rewards.mean(-1, keepdim=True)
        return -centred.detach() * sequence_log_prob(new_log_probs, mask)

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

    def late(new_log_probs, rewards, mask):
        advantages = leave_one_out(rewards) - penalty[every_tuple(3)]
        return -advantages * sequence_log_prob(new_log_probs, mask)

    (found,) = torch.autograd.grad(mean_loss(policy, scores, late), policy)
    (exact,) = torch.autograd.grad(objective(policy, ref, scores), policy)
    assert_close(-found, exact)


@given(problems())
def test_k3_for_k1_leaves_the_mean_and_changes_the_gradient(problem):
    policy, ref, scores = problem
    new, old = token_log_probs(policy, COMPLETIONS), token_log_probs(ref, COMPLETIONS)
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
    weights = token_log_probs(policy, COMPLETIONS).sum(-1).detach()[drawn].sum(-1).exp()
    slopes = torch.autograd.functional.jacobian(
        lambda table: token_log_probs(table, COMPLETIONS).sum(-1), policy.detach()
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
    live = scores.clone().requires_grad_()
    assert not rewards_of(policy, ref, live).requires_grad
    new = token_log_probs(policy, COMPLETIONS)[None]
    loss = rloo_loss(new_log_probs=new, rewards=live[None], mask=WHOLE[None])
    loss.sum().backward()
    assert live.grad is None


@given(st.integers(2, 6).flatmap(lambda k: numbers(3, k)))
def test_advantages_sum_to_zero_and_leave_the_own_reward_out(rewards):
    found = leave_one_out(rewards)
    for i in range(rewards.shape[-1]):
        others = torch.cat([rewards[:, :i], rewards[:, i + 1 :]], -1).mean(-1)
        # Differences of numbers of order 1, which may be equal.
        assert_close(found[:, i], rewards[:, i] - others, atol=1e-14, rtol=1e-7)
    zero = torch.zeros(3).double()
    assert_close(found.sum(-1), zero, atol=1e-13, rtol=0)  # rounding of six of them


@given(numbers(2, 3, 4), masks(2, 3, 4))
def test_batches_of_groups_are_rows(rewards, mask):
    found, masked = leave_one_out(rewards), leave_one_out(rewards, mask)
    for i in range(2):
        assert_close(found[i], leave_one_out(rewards[i]))
        assert_close(masked[i], leave_one_out(rewards[i], mask[i]))


@pytest.mark.parametrize("reward", [0.1, -0.7, 60_000.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equal_rewards_give_exactly_nothing(reward, dtype):
    rewards = torch.full((2, 7), reward, dtype=dtype)
    assert (leave_one_out(rewards) == 0).all()


def test_a_sum_beyond_float16_is_no_overflow():
    rewards = torch.tensor([[60_000.0, 48_000.0, 36_000.0]], dtype=torch.float16)
    assert leave_one_out(rewards).tolist() == [[18_000.0, 0.0, -18_000.0]]


def test_groups_may_be_uneven():
    rewards = torch.tensor([[1.0, torch.nan, 0.0, 4.0], [3.0, 5.0, torch.inf, 1.0]])
    mask = torch.tensor([[True, False, True, True], [True, True, False, False]])
    found = leave_one_out(rewards, mask)
    for row, kept, group in zip(found, mask, rewards, strict=True):
        assert_close(row[kept], leave_one_out(group[kept][None])[0])
        assert (row[~kept] == 0).all()
    alone = torch.tensor([[True, False, False, False], [False] * 4])
    assert (leave_one_out(rewards, alone) == 0).all()


def scored(scores, old, ref, mask, beta):
    return penalised_scores(
        scores=scores, old_log_probs=old, ref_log_probs=ref, mask=mask, beta=beta
    )


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf])
def test_what_stands_under_the_mask_is_read_by_no_value_and_no_gradient(junk):
    head = torch.ones(1, 2, 2, requires_grad=True)  # a linear head: 0 · nan would show
    mask = torch.tensor([[[True, False], [True, True]]])
    new = torch.tensor([[[-1.0, junk], [-2.0, -0.5]]]) * head
    ref = torch.tensor([[[-2.0, junk], [-1.0, -0.5]]])
    rewards = scored(torch.zeros(1, 2), new, ref, mask, 1.0)
    assert_close(rewards, torch.tensor([[-1.0, 1.0]]))
    loss = rloo_loss(new_log_probs=new, rewards=rewards, mask=mask)
    (slope,) = torch.autograd.grad(loss.sum(), new)
    assert_close(slope, torch.tensor([[[2.0, 0.0], [-2.0, -2.0]]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    generator = torch.Generator().manual_seed(0)
    old, ref = -5 * torch.rand(2, 2, 3, 40, generator=generator).to(dtype)
    scores = torch.rand(2, 3, generator=generator).to(dtype)
    mask = torch.ones(2, 3, 40, dtype=torch.bool)
    wide = scored(scores.float(), old.float(), ref.float(), mask, 0.3)
    assert torch.equal(scored(scores, old, ref, mask, 0.3), wide.to(dtype))
    wide = rloo_loss(new_log_probs=old.float(), rewards=scores.float(), mask=mask)
    found = rloo_loss(new_log_probs=old, rewards=scores, mask=mask)
    assert torch.equal(found, wide.to(dtype))


def test_batches_are_rows():
    for dtype in (torch.float32, torch.float64):
        given_ = {
            "new_log_probs": -torch.rand(4, 2, 3, 5, dtype=dtype),
            "mask": torch.ones(4, 2, 3, 5, dtype=torch.bool),
            "rewards": torch.rand(4, 2, 3, dtype=dtype),
        }
        loss = rloo_loss(**given_)
        assert loss.shape == (4, 2, 3)
        assert loss.dtype == dtype
        rows = [rloo_loss(**{k: x[i] for k, x in given_.items()}) for i in range(4)]
        assert_close(loss, torch.stack(rows))


def test_at_the_reference_the_score_is_all():
    log_probs, scores = -torch.rand(2, 3, 4), torch.rand(2, 3)
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    assert (scored(scores, log_probs, log_probs.clone(), mask, 0.3) == scores).all()


def test_with_a_coefficient_of_zero_a_reference_of_zero_is_no_penalty():
    old, ref = torch.full((2, 3), -1.0), torch.full((2, 3), -torch.inf)
    mask, scores = torch.ones(2, 3, dtype=torch.bool), torch.tensor([1.0, 2.0])
    assert torch.equal(scored(scores, old, ref, mask, 0.0), scores)
    assert (scored(scores, old, ref, mask, 0.1) == -torch.inf).all()


def test_a_completion_twice_as_long_has_twice_the_penalty():
    old, ref = torch.full((2, 4), -1.0), torch.full((2, 4), -3.0)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    found = scored(torch.zeros(2), old, ref, mask, 0.5)
    assert_close(found, torch.tensor([-2.0, -4.0]))


def test_shapes_that_would_broadcast_are_refused():
    tokens, mask = torch.zeros(2, 3, 4), torch.ones(2, 3, 4, dtype=torch.bool)
    for scores in (torch.zeros(2, 1), torch.zeros(3), torch.zeros(2, 3).long()):
        with pytest.raises(ValueError, match="scores"):
            scored(scores, tokens, tokens, mask, 0.3)
        with pytest.raises(ValueError, match="rewards"):
            rloo_loss(new_log_probs=tokens, rewards=scores, mask=mask)
    for bad in (torch.ones(2, 3, 4), mask[:1]):
        with pytest.raises(ValueError, match="mask"):
            scored(torch.zeros(2, 3), tokens, tokens, bad, 0.3)
        with pytest.raises(ValueError, match="mask"):
            rloo_loss(new_log_probs=tokens, rewards=torch.zeros(2, 3), mask=bad)
    with pytest.raises(ValueError, match="beta"):
        scored(torch.zeros(2, 3), tokens, tokens, mask, -0.1)


def test_a_group_of_one_and_a_flat_list_are_refused():
    with pytest.raises(ValueError, match="rewards has one completion"):
        leave_one_out(torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"rewards is \[4\], and needs 2 axes"):
        leave_one_out(torch.zeros(4))
    with pytest.raises(ValueError, match="rewards must be floating point"):
        leave_one_out(torch.zeros(2, 2).long())
