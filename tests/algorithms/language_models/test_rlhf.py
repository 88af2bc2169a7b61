"""Checks the rewards of RLHF by listing every answer."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from snippets.algorithms.language_models.rlhf import adapt_beta, token_rewards
from snippets.lab.enumeration import every_sequence, prefixes, token_log_probs
from snippets.estimate.sequences import mean_of_means, to_go

BETA = 0.3
ANSWERS = every_sequence(2, 3)
WHOLE = torch.ones(ANSWERS.shape, dtype=torch.bool)
numbers = st.floats(-2, 2)


@st.composite
def problems(draw):
    """A policy, a reference and the scores of eight answers of three tokens."""
    sizes = (14, 14, 8)
    lists = [draw(st.lists(numbers, min_size=n, max_size=n)) for n in sizes]
    policy, ref, scores = (torch.tensor(values).double() for values in lists)
    return policy.reshape(7, 2).requires_grad_(), ref.reshape(7, 2), scores


def rewards_of(policy, ref, scores):
    new, old = token_log_probs(policy, ANSWERS), token_log_probs(ref, ANSWERS)
    return token_rewards(scores, new, old, WHOLE, BETA)


def objective(policy, ref, scores):
    """E[score] - beta KL(policy || ref), by listing the answers."""
    new = token_log_probs(policy, ANSWERS).sum(-1)
    old = token_log_probs(ref, ANSWERS).sum(-1)
    return new.exp() @ (scores - BETA * (new - old))


@given(problems())
def test_the_mean_return_is_the_score_less_the_divergence_of_answers(problem):
    policy, ref, scores = problem
    weights = token_log_probs(policy, ANSWERS).sum(-1).exp()
    mean = weights @ rewards_of(*problem).sum(-1)
    assert_close(mean, objective(policy, ref, scores))


@given(problems())
def test_the_policy_gradient_is_that_of_the_objective(problem):
    policy, ref, scores = problem
    log_probs = token_log_probs(policy, ANSWERS)
    weights = log_probs.sum(-1).exp().detach()
    gains = to_go(rewards_of(policy, ref, scores), WHOLE)
    (found,) = torch.autograd.grad(weights @ (gains * log_probs).sum(-1), policy)
    (exact,) = torch.autograd.grad(objective(policy, ref, scores), policy)
    assert_close(found, exact)


@given(problems())
def test_without_a_score_the_mean_return_is_the_divergence_of_answers(problem):
    policy, ref, _ = problem
    nothing = torch.zeros(8).double()
    new = token_log_probs(policy, ANSWERS).sum(-1)
    mean = new.exp() @ rewards_of(policy, ref, nothing).sum(-1)
    exact = new.exp() @ (new - token_log_probs(ref, ANSWERS).sum(-1))
    # Terms of both signs and of order 1 that cancel where the two are close.
    assert_close(mean, -BETA * exact, atol=1e-14, rtol=1e-7)


def test_at_the_reference_there_is_no_penalty():
    log_probs = -torch.rand(3, 4)
    mask = torch.ones(3, 4, dtype=torch.bool)
    found = token_rewards(torch.zeros(3), log_probs, log_probs.clone(), mask, 1.0)
    assert (found == 0).all()


@given(problems())
def test_the_rewards_are_constants(problem):
    policy, ref, scores = problem
    assert not rewards_of(policy, ref, scores.requires_grad_()).requires_grad


@given(problems())
def test_left_in_the_graph_the_penalty_is_noise_or_an_entropy_bonus(problem):
    policy, ref, _ = problem
    new, old = token_log_probs(policy, ANSWERS), token_log_probs(ref, ANSWERS)
    chance = new.detach().sum(-1).exp()
    live = -BETA * to_go(new - old, WHOLE)
    # What is differentiated by accident: the rewards, times a ratio of 1 ...
    (extra,) = torch.autograd.grad(chance @ live.sum(-1), policy, retain_graph=True)
    assert_close(extra, torch.zeros_like(extra), atol=1e-14, rtol=0)  # a sum to zero
    # ... or times the log-probability, at the prefixes that were sampled.
    log_policy = policy.log_softmax(-1)
    entropy = -(log_policy.exp() * log_policy).sum(-1)[prefixes(ANSWERS, 2)]
    (extra,) = torch.autograd.grad(
        chance @ (live * new.detach()).sum(-1), policy, retain_graph=True
    )
    (bonus,) = torch.autograd.grad(BETA * chance @ entropy.sum(-1), policy)
    assert_close(extra, bonus, atol=1e-14, rtol=1e-7)


@given(problems())
def test_a_mean_over_tokens_is_a_smaller_coefficient(problem):
    policy, ref, _ = problem
    nothing = torch.zeros(8).double()
    summed = rewards_of(policy, ref, nothing).sum(-1).mean()
    assert_close(mean_of_means(rewards_of(policy, ref, nothing), WHOLE), summed / 3)


def test_the_score_is_on_the_last_token_and_padding_earns_nothing():
    log_probs = torch.tensor([[-1.0, -1.0, torch.nan], [-1.0, -2.0, -3.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    ref = torch.full((2, 3), -2.0)
    found = token_rewards(torch.tensor([5.0, 7.0]), log_probs, ref, mask, 0.5)
    assert_close(found, torch.tensor([[-0.5, 4.5, 0.0], [-0.5, 0.0, 7.5]]))


def test_padding_on_the_left_leaves_the_score_at_the_end():
    mask = torch.tensor([[False, True, True]])
    found = token_rewards(
        torch.ones(1), torch.zeros(1, 3), torch.zeros(1, 3), mask, 1.0
    )
    assert_close(found, torch.tensor([[0.0, 0.0, 1.0]]))


def test_batches_and_both_precisions():
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    for dtype in (torch.float32, torch.float64):
        new, ref = -torch.rand(2, 2, 3, 4, dtype=dtype)
        scores = torch.rand(2, 3, dtype=dtype)
        found = token_rewards(scores, new, ref, mask, 0.1)
        assert found.dtype == dtype
        for row in range(2):
            one = token_rewards(scores[row], new[row], ref[row], mask[row], 0.1)
            assert_close(found[row], one)


@given(st.floats(0.01, 10), st.floats(0, 100), st.floats(0.1, 10))
def test_the_price_moves_towards_the_target_and_never_by_more_than_a_fifth(b, kl, t):
    after = adapt_beta(b, kl, t, 10_000, 10_000)
    assert (after - b) * (kl - t) >= 0
    assert 0.8 * b * (1 - 1e-12) <= after <= 1.2 * b * (1 + 1e-12)  # rounding


@given(st.integers(1, 100), st.sampled_from([-5.0, 0.0, 5.0, 7.0, 1e9]))
def test_small_batches_move_the_log_by_the_error_within_a_horizon(batches, kl):
    beta = 1.0
    for _ in range(batches):
        beta = adapt_beta(beta, kl, 6.0, 10_000 // batches, 10_000)
    error = min(max(kl / 6 - 1, -0.2), 0.2)
    # log(1 + x) and x differ by at most x² / 1.6 for x above -0.2, and dividing the
    # horizon into whole answers loses at most 1 % of it.
    assert abs(math.log(beta) - error) <= error**2 / 1.6 + 0.01 * abs(error)


@given(st.floats(0.01, 10), st.floats(0.1, 10))
def test_on_target_the_price_stays(beta, target):
    assert adapt_beta(beta, target, target, 512, 10_000) == beta


@given(st.floats(0.05, 5), st.floats(0.05, 5))
def test_the_loop_settles_at_the_target(start, scale):
    # A Gaussian whose mean is pulled with strength 1 / beta: its KL is (s / beta)² / 2.
    beta = start
    for _ in range(3000):
        beta = adapt_beta(beta, (scale / beta) ** 2 / 2, 6.0, 512, 10_000)
    # The error shrinks by a tenth per batch near the target: only rounding is left.
    assert (scale / beta) ** 2 / 2 == pytest.approx(6.0, rel=1e-9)


def test_a_small_error_counts_as_it_is():
    assert adapt_beta(0.1, 6.6, 6.0, 5_000, 10_000) == pytest.approx(0.1 * 1.05)


def test_unusable_arguments_are_named():
    for name, arguments in {"beta": (0.0, 1.0, 1.0), "target": (1.0, 1.0, 0.0)}.items():
        with pytest.raises(ValueError, match=f"{name} is 0.0"):
            adapt_beta(*arguments, 1, 1)
    with pytest.raises(ValueError, match="answers is 0"):
        adapt_beta(1.0, 1.0, 1.0, 0, 1)
    with pytest.raises(ValueError, match="horizon is 0"):
        adapt_beta(1.0, 1.0, 1.0, 1, 0)
    with pytest.raises(ValueError, match="five horizons of 10"):
        adapt_beta(1.0, 0.0, 1.0, 50, 10)
    assert adapt_beta(1.0, 0.0, 1.0, 49, 10) > 0
    empty = torch.zeros(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="mask has an answer without tokens"):
        token_rewards(torch.ones(1), torch.zeros(1, 2), torch.zeros(1, 2), empty, 1.0)


@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
def test_a_divergence_that_is_not_finite_is_refused(kl):
    with pytest.raises(ValueError, match="no price answers that"):
        adapt_beta(1.0, kl, 6.0, 512, 10_000)


@pytest.mark.parametrize("beta", [-0.1, math.nan])
def test_a_price_below_zero_is_refused(beta):
    arguments = torch.ones(1), torch.zeros(1, 2), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="pays for leaving the reference"):
        token_rewards(*arguments, torch.ones(1, 2, dtype=torch.bool), beta)


def test_a_mask_of_another_kind_is_refused():
    arguments = torch.ones(1), torch.zeros(1, 2), torch.zeros(1, 2)
    for mask in (torch.ones(1, 2), torch.ones(1, 3, dtype=torch.bool)):
        with pytest.raises(ValueError, match="mask must be boolean"):
            token_rewards(*arguments, mask, 1.0)
