"""What `mismatch` says of a cut and of another policy, and what weights do, exactly."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.testing import assert_close

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.neighbours import chi_squared
from snippets.lab import enumeration
from snippets.scale.engine_mismatch import (
    engine_weight,
    mismatch,
    processed_log_probs,
)
from tests.strategies import two_log_policies

TRAINER = tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
SAMPLER = tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
ORDER = torch.arange(4)


def every_token(trainer, sampler, times):
    """A batch that holds each word as often as the sampler's probability says."""
    words = ORDER.repeat_interleave((times * sampler.exp()).round().long())
    rows = {"trainer_log_probs": trainer[words], "sampler_log_probs": sampler[words]}
    mask = torch.ones(1, len(words), dtype=torch.bool)
    return {name: x[None] for name, x in rows.items()} | {"mask": mask}


def test_with_the_same_words_both_estimates_are_the_kl_from_sampler_to_trainer():
    found = mismatch(**every_token(TRAINER, SAMPLER, 10), ceiling=1.5)
    kl = kl_divergence_logits(SAMPLER, TRAINER)
    assert_close(found.k1, kl)
    assert_close(found.k3, kl)
    assert_close(found.mean_weight, kl.new_ones(()))
    square = chi_squared(TRAINER, SAMPLER)
    assert_close(found.chi_squared, square)
    assert_close(found.effective_share, 1 / (1 + square))
    assert_close(found.outliers, kl.new_tensor(0.1))  # the last word, at one half


def test_of_a_cut_the_mean_weight_is_what_is_kept_and_k3_is_short_of_the_rest():
    sampler = processed_log_probs(TRAINER, top_p=0.9)
    found = mismatch(**every_token(TRAINER, sampler, 38), ceiling=2.0)
    kept = TRAINER.exp()[:3].sum()
    assert_close(found.mean_weight, kept)
    assert_close(found.k1, -kept.log())
    assert_close(found.k3, kept - 1 - kept.log())
    assert_close(found.effective_share, torch.ones_like(kept))
    assert found.outliers == 0
    assert kl_divergence_logits(TRAINER, sampler) == inf


def batch(seed=0):
    """Log-probabilities of six responses in trainer and sampler, and a mask."""
    noise = torch.Generator().manual_seed(seed)
    trainer = -2 * torch.rand(6, 5, generator=noise, dtype=torch.float64)
    sampler = trainer - torch.randn(6, 5, generator=noise, dtype=torch.float64)
    mask = torch.arange(5) < tensor([[5], [2], [3], [0], [1], [5]])
    return {"trainer_log_probs": trainer, "sampler_log_probs": sampler, "mask": mask}


def ratios(given):
    """The log-ratios that count, as a list of lists."""
    log_ratio = given["trainer_log_probs"] - given["sampler_log_probs"]
    rows = zip(log_ratio.tolist(), given["mask"].tolist(), strict=True)
    return [[x for x, kept in zip(*row, strict=True) if kept] for row in rows]


@pytest.mark.parametrize("ceiling", [1.2, 2.0, 5.0])
def test_each_number_is_its_mean_over_the_tokens_that_count(ceiling):
    given = batch()
    xs = [x for row in ratios(given) for x in row]
    weights = [math.exp(x) for x in xs]
    total = sum(weights)
    expected = (
        -sum(xs) / len(xs),
        sum(w - 1 - x for w, x in zip(weights, xs, strict=True)) / len(xs),
        total / len(xs),
        sum((w - 1) ** 2 for w in weights) / len(xs),
        total**2 / sum(w * w for w in weights) / len(xs),
        sum(w > ceiling or w < 1 / ceiling for w in weights) / len(xs),
    )
    found = mismatch(**given, ceiling=ceiling)
    assert_close(torch.stack(found), tensor(expected, dtype=torch.float64))
    assert_close(found.k1 - found.k3, 1 - found.mean_weight)


def test_without_a_token_there_is_no_number():
    given = batch()
    given["mask"] = torch.zeros_like(given["mask"])
    assert all(x.isnan() for x in mismatch(**given, ceiling=2.0))


def test_nothing_is_left_of_a_gradient():
    given = batch()
    given["trainer_log_probs"].requires_grad_()
    assert not any(x.requires_grad for x in mismatch(**given, ceiling=2.0))
    assert not engine_weight(**given).requires_grad


MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("floor", "ceiling"), [(0.0, 3.0), (0.5, 2.0), (0.9, 1.0)])
def test_weights_are_the_ratio_within_its_bounds(mode, floor, ceiling):
    given = batch(1)
    found = engine_weight(**given, mode=mode, floor=floor, ceiling=ceiling)
    for row, weights in zip(ratios(given), found.tolist(), strict=True):
        xs = [sum(row)] * len(row) if mode.startswith("sequence") else row
        expected = [math.exp(x) for x in xs]
        if mode.endswith("truncate"):
            expected = [min(max(w, floor), ceiling) for w in expected]
        else:
            expected = [w if floor <= w <= ceiling else 0.0 for w in expected]
        padding = [0.0] * (len(weights) - len(row))
        assert_close(tensor(weights), tensor(expected + padding))


def test_a_ratio_that_overflows_is_truncated_or_masked():
    rows = {
        "trainer_log_probs": torch.zeros(1, 2),
        "sampler_log_probs": torch.full((1, 2), -200.0),
        "mask": torch.ones(1, 2, dtype=torch.bool),
    }
    for mode in MODES:
        expected = 3.0 if mode.endswith("truncate") else 0.0
        assert (engine_weight(**rows, mode=mode) == expected).all()


def both_policies():
    """Two policies over two tokens out of three words, and all responses."""
    noise = torch.Generator().manual_seed(0)
    trainer, engine = torch.randn(2, 4, 3, generator=noise, dtype=torch.float64)
    y = enumeration.every_sequence(3, 2)
    trainer.requires_grad_()
    new, mu = (enumeration.token_log_probs(x, y) for x in (trainer, engine))
    given = {
        "trainer_log_probs": new,
        "sampler_log_probs": mu,
        "mask": torch.ones_like(y, dtype=torch.bool),
    }
    return trainer, new, mu, given


def test_one_weight_per_response_without_a_ceiling_gives_the_right_gradient():
    trainer, new, mu, given = both_policies()
    rewards = torch.arange(9.0, dtype=torch.float64)
    value = new.sum(-1).exp() @ rewards
    (right,) = torch.autograd.grad(value, trainer, retain_graph=True)
    for level, exact in (("sequence", True), ("token", False)):
        weight = engine_weight(**given, mode=f"{level}_truncate", ceiling=1e9)
        loss = mu.sum(-1).exp() @ (weight * rewards[:, None] * new).sum(-1)
        (found,) = torch.autograd.grad(loss, trainer, retain_graph=True)
        off = (found - right).norm() / right.norm()
        assert (off < 1e-12) == exact
        assert exact or off > 0.05


@pytest.mark.parametrize("ceiling", [1.0, 1.5, 2.0, 3.0])
def test_for_what_is_not_negative_a_mask_has_more_bias_and_a_smaller_square(ceiling):
    _, new, mu, given = both_policies()
    values = torch.linspace(0, 2, 9, dtype=torch.float64)
    right = new.sum(-1).exp() @ values
    truncated, masked = (
        engine_weight(**given, mode=f"sequence_{rule}", ceiling=ceiling)[:, 0] * values
        for rule in ("truncate", "mask")
    )
    chance = mu.sum(-1).exp()
    assert chance @ masked < chance @ truncated < right
    assert chance @ masked.square() < chance @ truncated.square()


def by_loops(log_p, top_k, top_p, min_p):
    """The words that are kept, one after the other, by min-p, top-k and top-p."""
    p = log_p.exp().tolist()
    words = [i for i, x in enumerate(p) if x >= min_p * max(p)]
    words = sorted(words, key=lambda i: -p[i])[: top_k or len(words)]
    total, kept, so_far = sum(p[i] for i in words), [], 0.0
    for i in words:
        if so_far < top_p:
            kept.append(i)
        so_far += p[i] / total
    return kept


shares = st.floats(0.05, 1.0)


@given(
    two_log_policies(fewest=2, most=7), st.none() | st.integers(1, 8), shares, shares
)
def test_the_words_that_are_kept_are_those_of_a_loop(policies, top_k, top_p, min_p):
    log_p, _ = policies
    if len(set(log_p.tolist())) < len(log_p):
        return  # equal words have no order
    found = processed_log_probs(log_p, top_k=top_k, top_p=top_p, min_p=min_p)
    kept = by_loops(log_p, top_k, top_p, min_p)
    expected = torch.full_like(log_p, -inf)
    expected[kept] = log_p[kept].log_softmax(-1)
    assert_close(found, expected)


def test_without_a_limit_nothing_is_cut():
    assert_close(processed_log_probs(TRAINER), TRAINER)
    assert_close(processed_log_probs(TRAINER, top_k=9), TRAINER)


def test_a_word_that_is_not_needed_to_reach_top_p_is_cut():
    even = torch.zeros(2, dtype=torch.float64)  # one of the two is half of all
    assert processed_log_probs(even, top_p=0.5).exp().sum() == 1
    assert processed_log_probs(even, top_p=0.5).isneginf().sum() == 1
    assert processed_log_probs(even, top_p=0.6).isneginf().sum() == 0


def test_a_word_that_is_masked_stays_masked_and_no_gradient_is_nan():
    logits = tensor([2.0, 1.0, -inf, 0.0], requires_grad=True)
    found = processed_log_probs(logits, top_k=2)
    assert found.isneginf().tolist() == [False, False, True, True]
    found[:2].sum().backward()
    assert logits.grad.isfinite().all()


def test_what_makes_no_sense_is_refused_by_name():
    given = batch()
    with pytest.raises(ValueError, match=r"ceiling is 1\.0"):
        mismatch(**given, ceiling=1.0)
    with pytest.raises(ValueError, match="ceiling is nan"):
        mismatch(**given, ceiling=nan)
    with pytest.raises(ValueError, match="mode is 'geometric'"):
        engine_weight(**given, mode="geometric")
    with pytest.raises(ValueError, match="mode is 'sequence_clip'"):
        engine_weight(**given, mode="sequence_clip")
    with pytest.raises(ValueError, match=r"ceiling 0\.5"):
        engine_weight(**given, ceiling=0.5)
    for wrong in ({"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": -0.1}):
        with pytest.raises(ValueError, match="top_k is"):
            processed_log_probs(TRAINER, **wrong)
