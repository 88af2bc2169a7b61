"""The gallery's runs sample what they say, log what they say, and each fault is one."""

import pytest
import torch
from torch.testing import assert_close

from snippets.estimate.estimators import k1
from snippets.estimate.sequences import seq_mean_token_sum
from snippets.lab.gallery import (
    SAMPLING,
    TOKENS,
    TRAINING,
    WRITING,
    reference_logits,
    trainer_logs,
)

FAULTS = [*TRAINING, *SAMPLING, *WRITING]


def logs(fault, *, runs=8, updates=30, passes=1):
    return list(trainer_logs(fault, runs=runs, updates=updates, passes=passes, seed=0))


def kl(log):
    """KL(old || ref) per completion as logged, a mean over all runs."""
    rows = (x.flatten(0, 1) for x in (log.old_log_probs, log.ref_log_probs, log.mask))
    old, ref, mask = rows
    return seq_mean_token_sum(k1(old, ref), mask).item()


def test_the_first_batch_is_drawn_from_the_table():
    first = logs("healthy", runs=200, updates=1)[0]
    chance = reference_logits().log_softmax(-1)[0]
    found = first.old_log_probs[..., 0].flatten()
    for token in range(1, TOKENS):
        share = (found - chance[token]).abs() < 1e-6
        # 25,600 draws: five standard errors of the largest share are 0.016.
        assert abs(share.float().mean() - chance[token].exp()) < 0.016


def test_entropies_are_the_mean_surprise():
    first = logs("healthy", runs=200, updates=1)[0]
    gap = (-first.old_log_probs - first.entropies)[first.mask]
    # About 160,000 tokens with a deviation below 1.
    assert abs(gap.mean()) < 5 * gap.std() / len(gap) ** 0.5


def test_a_completion_ends_at_its_length():
    first = logs("healthy", updates=1)[0]
    assert_close(first.mask.sum(-1), first.lengths)
    assert (first.mask[..., 0]).all()
    after = first.mask[..., 1:] & ~first.mask[..., :-1]
    assert not after.any()


def test_a_healthy_run_learns_and_its_kl_starts_at_zero():
    run = logs("healthy", updates=60)
    assert kl(run[0]) == 0
    assert 0.4 < kl(run[-1]) < 1.2  # the optimum over all policies is 0.98 nats
    assert run[0].rewards.mean() < 0.35 < 0.6 < run[-1].rewards.mean()


def test_with_one_pass_new_is_old_and_with_more_it_moves():
    assert all((x.new_log_probs == x.old_log_probs).all() for x in logs("healthy"))
    batch = logs("healthy", updates=1, passes=3)
    gaps = [(x.new_log_probs - x.old_log_probs).abs().mean() for x in batch]
    assert gaps[0] == 0 < gaps[1] < gaps[2]


def test_the_same_seed_gives_the_same_run():
    assert_close(logs("healthy")[-1].new_log_probs, logs("healthy")[-1].new_log_probs)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_the_log(fault):
    healthy, faulty = logs("healthy")[-1], logs(fault)[-1]
    same = healthy.old_log_probs.shape == faulty.old_log_probs.shape and all(
        torch.equal(a, b) for a, b in zip(healthy[:7], faulty[:7], strict=True)
    )
    assert not same


@pytest.mark.parametrize("fault", WRITING)
def test_a_fault_of_writing_leaves_the_training_alone(fault):
    if fault == "engine differs":  # it draws the tokens
        return
    assert_close(logs(fault)[-1].rewards, logs("healthy")[-1].rewards)


@pytest.mark.parametrize("fault", TRAINING)
def test_without_a_working_penalty_the_kl_grows_past_the_healthy_one(fault):
    if fault == "steps too large":
        early = [kl(run[3]) for run in (logs(fault), logs("healthy"))]
        assert early[0] > 10 * early[1]
        return
    assert kl(logs(fault, updates=60)[-1]) > 3 * kl(logs("healthy", updates=60)[-1])


def test_samples_of_the_reference_make_k1_negative():
    assert kl(logs("reference samples")[-1]) < -0.2


@pytest.mark.parametrize("fault", ["another reference", "reference at 0.7"])
def test_another_reference_is_seen_at_the_start(fault):
    assert kl(logs(fault, updates=1)[0]) > 0.1


def test_unknown_faults_are_refused():
    with pytest.raises(ValueError, match="gremlins"):
        next(trainer_logs("gremlins", runs=1, updates=1, passes=1, seed=0))
