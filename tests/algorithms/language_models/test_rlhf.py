"""Checks the rewards of RLHF by listing every completion."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from snippets.algorithms.language_models.rlhf import adapt_beta, token_rewards
from snippets.estimate.sequences import reward_to_go, seq_mean_token_mean
from snippets.lab.enumeration import every_sequence, prefixes, token_log_probs
from tests.strategies import logits, masks, numbers

BETA = 0.3
COMPLETIONS = every_sequence(2, 3)
WHOLE = torch.ones(COMPLETIONS.shape, dtype=torch.bool)


@st.composite
def problems(draw):
    """A policy, a reference and the scores of eight completions of three tokens."""
    policy, ref = (draw(logits(7, 2, largest=2)) for _ in range(2))
    return policy.requires_grad_(), ref, draw(numbers(8, largest=2))


def both(policy, ref):
    """Log-probabilities of the tokens of every completion, under the two policies."""
    return [token_log_probs(x, COMPLETIONS) for x in (policy, ref)]


def rewards_of(policy, ref, scores):
    old, ref = both(policy, ref)
    return token_rewards(
        scores=scores, old_log_probs=old, ref_log_probs=ref, mask=WHOLE, beta=BETA
    )


def kl_of_completions(policy, ref):
    new, ref = (x.sum(-1) for x in both(policy, ref))
    return new.exp() @ (new - ref)


def objective(policy, ref, scores):
    """E[score] - beta KL(policy || ref), by listing the completions."""
    chance = both(policy, ref)[0].sum(-1).exp()
    return chance @ scores - BETA * kl_of_completions(policy, ref)


@given(problems())
def test_the_mean_return_is_the_score_less_the_kl_of_completions(problem):
    policy, ref, scores = problem
    chance = token_log_probs(policy, COMPLETIONS).sum(-1).exp()
    mean = chance @ rewards_of(*problem).sum(-1)
    # Terms of both signs and of order 1 that may cancel.
    assert_close(mean, objective(policy, ref, scores), atol=1e-14, rtol=1e-7)


@given(problems())
def test_the_policy_gradient_is_that_of_the_objective(problem):
    policy, ref, scores = problem
    log_probs = token_log_probs(policy, COMPLETIONS)
    chance = log_probs.sum(-1).exp().detach()
    returns = reward_to_go(rewards_of(policy, ref, scores), WHOLE)
    (found,) = torch.autograd.grad(chance @ (returns * log_probs).sum(-1), policy)
    (exact,) = torch.autograd.grad(objective(policy, ref, scores), policy)
    assert_close(found, exact)


@given(problems())
def test_without_a_score_the_mean_return_is_the_kl_of_completions(problem):
    policy, ref, _ = problem
    chance = token_log_probs(policy, COMPLETIONS).sum(-1).exp()
    mean = chance @ rewards_of(policy, ref, torch.zeros(8).double()).sum(-1)
    # Terms of both signs and of order 1 that cancel where the two are close.
    exact = -BETA * kl_of_completions(policy, ref)
    assert_close(mean, exact, atol=1e-14, rtol=1e-7)


@given(problems())
def test_the_rewards_are_constants(problem):
    policy, ref, scores = problem
    assert not rewards_of(policy, ref, scores.requires_grad_()).requires_grad


@given(problems())
def test_left_in_the_graph_the_penalty_is_noise_or_an_entropy_bonus(problem):
    policy, ref, _ = problem
    new, ref = both(policy, ref)
    chance = new.detach().sum(-1).exp()
    live = -BETA * reward_to_go(new - ref, WHOLE)
    # What is differentiated by accident: the rewards, times a ratio of 1 ...
    (extra,) = torch.autograd.grad(chance @ live.sum(-1), policy, retain_graph=True)
    assert_close(extra, torch.zeros_like(extra), atol=1e-14, rtol=0)  # a sum to zero
    # ... or times the log-probability, at the prefixes that were sampled.
    log_policy = policy.log_softmax(-1)
    entropy = -(log_policy.exp() * log_policy).sum(-1)[prefixes(COMPLETIONS, 2)]
    (extra,) = torch.autograd.grad(
        chance @ (live * new.detach()).sum(-1), policy, retain_graph=True
    )
    (bonus,) = torch.autograd.grad(BETA * chance @ entropy.sum(-1), policy)
    assert_close(extra, bonus, atol=1e-14, rtol=1e-7)


@given(problems())
def test_a_mean_over_tokens_is_a_smaller_coefficient(problem):
    policy, ref, _ = problem
    rewards = rewards_of(policy, ref, torch.zeros(8).double())
    assert_close(seq_mean_token_mean(rewards, WHOLE), rewards.sum(-1).mean() / 3)


def of_rows(scores, old, ref, mask, beta):
    """The rewards, from lists."""
    old, ref = torch.tensor(old), torch.tensor(ref)
    return token_rewards(
        scores=torch.tensor(scores, dtype=old.dtype),
        old_log_probs=old,
        ref_log_probs=ref,
        mask=torch.tensor(mask),
        beta=beta,
    )


def test_the_score_is_on_the_last_token_and_padding_has_no_reward():
    nan = torch.nan
    old, ref = [[-1.0, -1.0, nan], [-1.0, -2.0, -3.0]], [[-2.0] * 3] * 2
    mask = [[True, True, False], [True, True, True]]
    found = of_rows([5.0, 7.0], old, ref, mask, 0.5)
    assert_close(found, torch.tensor([[-0.5, 4.5, 0.0], [-0.5, 0.0, 7.5]]))


@given(masks(5, 4, some=True))
def test_the_score_is_on_the_last_token_whatever_gaps_the_mask_has(mask):
    scores = torch.arange(1.0, 6.0)
    zero = torch.zeros(5, 4)
    found = token_rewards(
        scores=scores, old_log_probs=zero, ref_log_probs=zero, mask=mask, beta=1.0
    )
    for row, score, kept in zip(found, scores, mask, strict=True):
        last = max(i for i in range(4) if kept[i])
        assert row.tolist() == [score.item() if i == last else 0.0 for i in range(4)]


def test_a_completion_without_tokens_is_nan_and_spoils_no_other():
    mask = [[False, False], [False, True]]
    found = of_rows([1.0, 2.0], [[-1.0, -1.0]] * 2, [[-1.0, -1.0]] * 2, mask, 0.5)
    assert found[0].isnan().all()
    assert found[1].tolist() == [0.0, 2.0]


def test_tokens_that_a_policy_cannot_give_are_infinite_as_documented():
    inf = torch.inf
    old, ref = [[-1.0, -inf, -inf, -1.0]], [[-inf, -1.0, -inf, -1.0]]
    found = of_rows([3.0], old, ref, [[True] * 4], 0.5)[0]
    assert found[:2].tolist() == [-inf, inf]
    assert found[2].isnan()
    assert found[3] == 3.0
    plain = of_rows([3.0], old, ref, [[True] * 4], 0.0)[0]
    assert plain.tolist() == [0.0, 0.0, 0.0, 3.0]


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf])
def test_what_stands_under_the_mask_is_not_read(junk):
    mask = [[True, False, True]]
    old, ref = [[-1.0, junk, -2.0]], [[-2.0, junk, -1.0]]
    found = of_rows([4.0], old, ref, mask, 0.5)
    assert_close(found, torch.tensor([[-0.5, 0.0, 4.5]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    generator = torch.Generator().manual_seed(0)
    old, ref = -5 * torch.rand(2, 3, 4, generator=generator)
    scores = torch.rand(3, generator=generator)
    mask = torch.ones(3, 4, dtype=torch.bool)
    half = {"scores": scores, "old_log_probs": old, "ref_log_probs": ref}
    half = {name: x.to(dtype) for name, x in half.items()}
    wide = {name: x.float() for name, x in half.items()}
    found = token_rewards(**half, mask=mask, beta=0.3)
    assert torch.equal(found, token_rewards(**wide, mask=mask, beta=0.3).to(dtype))


def test_batches_are_rows():
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    for dtype in (torch.float32, torch.float64):
        old, ref = -torch.rand(2, 2, 3, 4, dtype=dtype)
        given_ = {"scores": torch.rand(2, 3, dtype=dtype), "mask": mask}
        given_ |= {"old_log_probs": old, "ref_log_probs": ref}
        found = token_rewards(**given_, beta=0.1)
        assert found.dtype == dtype
        for row in range(2):
            one = {name: x[row] for name, x in given_.items()}
            assert_close(found[row], token_rewards(**one, beta=0.1))


def step(beta, kl, target, completions=10_000, horizon=10_000):
    return adapt_beta(
        beta=beta, kl=kl, target=target, completions=completions, horizon=horizon
    )


@given(st.floats(0.01, 10), st.floats(0, 100), st.floats(0.1, 10))
def test_beta_moves_towards_the_target_and_by_no_more_than_a_fifth(b, kl, t):
    after = step(b, kl, t)
    assert (after - b) * (kl - t) >= 0
    assert 0.8 * b * (1 - 1e-12) <= after <= 1.2 * b * (1 + 1e-12)  # rounding


@given(st.integers(1, 100), st.sampled_from([-5.0, 0.0, 5.0, 7.0, 1e9]))
def test_small_batches_move_the_log_by_the_error_within_a_horizon(batches, kl):
    beta = 1.0
    for _ in range(batches):
        beta = step(beta, kl, 6.0, 10_000 // batches)
    error = min(max(kl / 6 - 1, -0.2), 0.2)
    # log(1 + x) and x differ by at most x² / 1.6 for x above -0.2, and dividing the
    # horizon into whole completions loses at most 1 % of it.
    assert abs(math.log(beta) - error) <= error**2 / 1.6 + 0.01 * abs(error)


@given(st.floats(0.01, 10), st.floats(0.1, 10))
def test_on_target_beta_stays(beta, target):
    assert step(beta, target, target, 512) == beta


@given(st.floats(0.05, 5), st.floats(0.05, 5))
def test_the_loop_settles_at_the_target(start, scale):
    # A Gaussian whose mean is pulled with strength 1 / beta: its KL is (s / beta)² / 2.
    beta = start
    for _ in range(3000):
        beta = step(beta, (scale / beta) ** 2 / 2, 6.0, 512)
    # The error shrinks by a tenth per batch near the target: only rounding is left.
    assert (scale / beta) ** 2 / 2 == pytest.approx(6.0, rel=1e-9)


def test_a_small_error_counts_as_it_is():
    assert step(0.1, 6.6, 6.0, 5_000) == pytest.approx(0.1 * 1.05)


def test_unusable_numbers_are_named():
    with pytest.raises(ValueError, match=r"beta is 0\.0"):
        step(0.0, 1.0, 1.0, 1, 1)
    with pytest.raises(ValueError, match=r"target is 0\.0"):
        step(1.0, 1.0, 0.0, 1, 1)
    with pytest.raises(ValueError, match="completions is 0"):
        step(1.0, 1.0, 1.0, 0, 1)
    with pytest.raises(ValueError, match="horizon is 0"):
        step(1.0, 1.0, 1.0, 1, 0)
    with pytest.raises(ValueError, match="five horizons of 10"):
        step(1.0, 0.0, 1.0, 50, 10)
    assert step(1.0, 0.0, 1.0, 49, 10) > 0
    for kl in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="no coefficient answers that"):
            step(1.0, kl, 6.0, 512)


@pytest.mark.parametrize("beta", [-0.1, math.nan])
def test_a_coefficient_below_zero_is_refused(beta):
    with pytest.raises(ValueError, match="rewards divergence"):
        of_rows([1.0], [[0.0]], [[0.0]], [[True]], beta)


def test_shapes_that_would_broadcast_are_refused():
    tokens, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    right = {"scores": torch.ones(2), "old_log_probs": tokens, "ref_log_probs": tokens}
    right |= {"mask": mask, "beta": 1.0}
    assert token_rewards(**right).shape == (2, 3)
    for name, wrong in {
        "scores": torch.ones(2, 1),
        "old_log_probs": torch.zeros(2, 1),
        "ref_log_probs": torch.zeros(1, 3),
        "mask": torch.ones(2, 3),
    }.items():
        with pytest.raises(ValueError, match=name):
            token_rewards(**right | {name: wrong})
    with pytest.raises(ValueError, match="scores"):
        token_rewards(**right | {"scores": torch.ones(2).long()})
