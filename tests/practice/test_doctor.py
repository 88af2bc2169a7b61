"""The doctor finds what was planted, and says nothing of batches that are healthy."""

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from snippets.lab.gallery import trainer_logs
from snippets.practice.doctor import (
    ALPHA,
    examine,
    mean_and_cluster_error,
    mixture_evidence,
)

RUNS, UPDATES = 200, 16


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small tensors are slower on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def named(log, run, **known):
    return {x.name for x in examine(**log.of(run), **known)}


def chosen(fault, *, runs, at, passes=1, updates=UPDATES):
    """The logs of some batches, each before its last pass."""
    every = trainer_logs(fault, runs=runs, updates=updates, passes=passes, seed=0)
    last = {update * passes + passes - 1: update for update in at}
    return [(last[i], log) for i, log in enumerate(every) if i in last]


@pytest.mark.parametrize("passes", [1, 4])
def test_healthy_batches_are_left_alone(passes):
    """At most one alarm in a hundred batches, all checks together."""
    batches = chosen("healthy", runs=RUNS, at=(0, UPDATES - 1), passes=passes)
    alarms = [
        bool(named(log, run, updates=update))
        for update, log in batches
        for run in range(RUNS)
    ]
    assert len(alarms) == 2 * RUNS
    assert sum(alarms) <= 0.01 * len(alarms)


def test_healthy_gaussian_actions_are_left_alone():
    """Log-densities above 0, independent steps, and a reference far away."""
    old, new, ref = (
        torch.distributions.Normal(mean, std)
        for mean, std in ((0.0, 0.1), (0.01, 0.1), (0.05, 0.12))
    )
    mask = torch.ones(64, 8, dtype=torch.bool)
    entropies = old.entropy().expand(64, 8)
    alarms = 0
    for seed in range(200):
        torch.manual_seed(seed)
        actions = old.sample((64, 8))
        found = examine(
            new_log_probs=new.log_prob(actions),
            old_log_probs=old.log_prob(actions),
            ref_log_probs=ref.log_prob(actions),
            mask=mask,
            entropies=entropies,
            updates=5,
        )
        alarms += bool(found)
    assert alarms <= 2


# What is found, at which update, in how many of 40 runs at least.
PLANTED = {
    "reference samples": ("negative", 25, 38),
    "sampler at 0.7": ("surprise", 0, 35),
    "sampler at 1.5": ("surprise", 0, 20),
    "top-p 0.8": ("surprise", 0, 40),
    "another reference": ("not zero at the start", 0, 40),
    "reference at 0.7": ("not zero at the start", 0, 40),
    "dropout on the reference": ("not zero at the start", 0, 40),
    "reference is the policy": ("constant", 15, 40),
    "padding counted": ("padded", 0, 40),
    "template counted": ("template", 15, 40),
    "reference off by one": ("off by one", 15, 40),
    "old off by one": ("off by one", 15, 40),
    "clamped": ("clamped", 30, 40),
    "engine differs": ("engine", 0, 40),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found_and_named(fault):
    name, at, least = PLANTED[fault]
    ((update, log),) = chosen(fault, runs=40, at=(at,), updates=at + 1)
    found = sum(name in named(log, run, updates=update) for run in range(40))
    assert found >= least


def test_too_long_a_step_is_found_after_it():
    ((_, log),) = chosen("steps too large", runs=40, at=(0,), passes=4, updates=1)
    assert all(
        {"clipped", "few samples"} <= named(log, r, updates=0) for r in range(40)
    )


@pytest.mark.parametrize("fault", ["another reference", "reference at 0.7"])
def test_a_wrong_reference_cannot_be_seen_later(fault):
    ((_, log),) = chosen(fault, runs=20, at=(20,), updates=21)
    assert sum(bool(named(log, run, updates=20)) for run in range(20)) == 0


def test_noise_on_the_reference_is_no_clamp_and_rarely_another_sampler():
    ((_, log),) = chosen("dropout on the reference", runs=40, at=(20,), updates=21)
    found = [named(log, run, updates=20) for run in range(40)]
    assert all(names <= {"wrong sampler"} for names in found)
    assert sum(map(bool, found)) <= 8  # the noise makes the mean ratio 1.05


def test_top_p_cannot_be_seen_without_entropies():
    ((_, log),) = chosen("top-p 0.8", runs=20, at=(0,), updates=1)
    for run in range(20):
        known = log.of(run)
        del known["entropies"], known["rewards"]
        assert examine(**known, updates=0) == []


def batch(samples=64, time=4, **changed):
    """A batch of fair coins in which nothing is wrong, as far as it is not changed."""
    log_probs = torch.full((samples, time), 0.5).log()
    given = {
        "new_log_probs": log_probs,
        "old_log_probs": log_probs,
        "ref_log_probs": log_probs,
        "mask": torch.ones(samples, time, dtype=torch.bool),
    }
    return given | changed


def says(**given):
    return {x.name: x.says for x in examine(**given)}


def test_equal_policies_are_right_before_the_first_update_only():
    assert says(**batch(), updates=0) == {}
    for updates in (None, 3):
        assert set(says(**batch(), updates=updates)) == {"constant"}


def test_a_token_that_overflows_is_told_with_its_log_ratio():
    ref = torch.full((64, 4), 0.5).log()
    new = ref.clone()
    new[0, 0] = -60.0
    found = says(**batch(new_log_probs=new, ref_log_probs=ref), updates=0)
    assert "59.3" in found["overflow"]


@pytest.mark.parametrize("drift", [9.0, 11.0])
def test_float16_overflows_from_eleven_on(drift):
    """Every token alike, so that none is more than a small share of the mean."""
    old = torch.full((64, 4), 0.5).log()
    found = says(**batch(new_log_probs=old - drift), updates=0)
    assert ("overflow" in found) == (drift > 10)


def test_a_single_infinity_is_counted():
    old = torch.full((64, 4), 0.5).log()
    old[3, 1] = -math.inf
    found = says(**batch(old_log_probs=old))
    assert list(found) == ["not finite"]
    assert "at 1 of 256 tokens" in found["not finite"]


def test_a_policy_that_is_nearly_certain_is_not_said_to_be_sharper():
    """Its rare tokens, of which the entropy is made, are in no batch of this size."""
    sure = torch.full((64, 4), 0.999).log()
    entropies = torch.distributions.Bernoulli(0.999).entropy().expand(64, 4)
    certain = dict.fromkeys(("new_log_probs", "old_log_probs", "ref_log_probs"), sure)
    assert says(**batch(**certain, entropies=entropies), updates=0) == {}


@pytest.mark.parametrize(
    ("fault", "word"), [("sampler at 0.7", "sharper"), ("reference samples", "flatter")]
)
def test_it_says_which_way_the_sampler_is_off(fault, word):
    ((_, log),) = chosen(fault, runs=1, at=(30,), updates=31)
    text = {x.name: x.says for x in examine(**log.of(0), updates=30)}
    assert f"is {word}" in text["surprise"]


def test_lengths_that_the_mask_does_not_have():
    found = says(**batch(lengths=torch.full((64,), 3)), updates=0)
    assert "256 tokens" in found["padded"]
    assert "0.75" in found["padded"]


def test_equal_rewards_leave_no_advantage():
    assert "flat reward" in says(**batch(rewards=torch.ones(64)), updates=0)
    few = batch(samples=16, rewards=torch.ones(16))
    assert says(**few, updates=0) == {}


def test_a_temperature_on_the_reference_is_recognised():
    ((_, log),) = chosen("reference at 0.7", runs=1, at=(0,), updates=1)
    text = {x.name: x.says for x in examine(**log.of(0), updates=0)}
    assert "a temperature near 0." in text["not zero at the start"]
    ((_, log),) = chosen("dropout on the reference", runs=1, at=(0,), updates=1)
    text = {x.name: x.says for x in examine(**log.of(0), updates=0)}
    assert "does not follow" in text["not zero at the start"]


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 7.0])
def test_what_stands_under_the_mask_is_not_read(junk):
    ((_, log),) = chosen("healthy", runs=1, at=(5,), updates=6)
    clean = log.of(0)
    hide = clean["mask"]
    dirty = {k: x.where(hide, junk) if x.shape == hide.shape and k != "mask" else x
             for k, x in clean.items()}  # fmt: skip
    assert examine(**dirty, updates=5) == examine(**clean, updates=5) == []


def test_the_evidence_is_the_log_of_a_mean_of_likelihood_ratios():
    """Three tokens of one completion, by hand; exponents of the ratios ref / old."""
    old, ref = tensor([[0.5, 0.5, 0.25]]).log(), tensor([[0.25, 0.5, 0.5]]).log()
    mask = tensor([[True, True, True]])
    expected = tensor(
        [
            math.prod((1 - share) + share * u for u in (0.5, 1.0, 2.0))
            for share in (0.01, 0.05, 0.2, 0.5, 0.9)
        ]
    )
    found = mixture_evidence(sampler_log_probs=old, other_log_probs=ref, mask=mask)
    assert_close(found, expected.mean().log())


def test_the_evidence_exceeds_a_bound_no_more_often_than_it_may():
    """A reference with infinite variance of the ratio; P(evidence > log 20) <= 0.05."""
    torch.manual_seed(0)
    p = torch.distributions.Normal(0.0, 1.0)
    q = torch.distributions.Normal(0.0, 2.0)
    draws = p.sample((2000, 20))
    mask = torch.ones(1, 20, dtype=torch.bool)
    found = tensor(
        [
            mixture_evidence(
                sampler_log_probs=p.log_prob(x)[None],
                other_log_probs=q.log_prob(x)[None],
                mask=mask,
            )
            for x in draws
        ]
    )
    # Three standard errors of a share of 0.05 in 2,000 are 0.015.
    assert (found > math.log(20)).float().mean() < 0.065
    assert ALPHA == 1e-5


def test_the_error_counts_completions_and_not_tokens():
    """Tokens of a completion that are copies say no more than one of them."""
    torch.manual_seed(0)
    once = torch.randn(50, 1)
    one = mean_and_cluster_error(once, torch.ones(50, 1, dtype=torch.bool))
    copies = mean_and_cluster_error(once.expand(50, 9), torch.ones(50, 9) > 0)
    assert_close(copies, one)
    assert_close(one.error, once.std() / 50**0.5)


def test_the_error_of_uneven_completions_is_that_of_a_ratio():
    torch.manual_seed(0)
    mask = torch.arange(6) < torch.randint(1, 7, (4000, 1))
    values = torch.randn(4000, 1) + torch.zeros(4000, 6)
    found = [
        mean_and_cluster_error(values[i : i + 40], mask[i : i + 40])
        for i in range(0, 4000, 40)
    ]
    spread = torch.stack([x.mean for x in found]).std()
    typical = torch.stack([x.error for x in found]).mean()
    assert 0.8 < spread / typical < 1.25  # 100 batches: the spread is known to 7 %
