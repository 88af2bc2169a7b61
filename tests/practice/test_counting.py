"""Ratios of two KLs that should agree: length, share of tokens, vocabulary, devices."""

import pytest
import torch
from torch.nn.functional import kl_div
from torch.testing import assert_close

from snippets.estimate.estimators import k3
from snippets.estimate.sequences import seq_mean_token_sum, token_mean
from snippets.exact.categorical import kl_divergence_logits
from snippets.lab.gallery import trainer_logs


def batch(fault):
    *_, log = trainer_logs(fault, runs=1, updates=11, passes=1, seed=0)
    return log.of(0)


def kl(log):
    return token_mean(k3(log["old_log_probs"], log["ref_log_probs"]), log["mask"])


def test_a_sum_is_a_mean_times_the_mean_length():
    log = batch("healthy")
    each, mask = k3(log["old_log_probs"], log["ref_log_probs"]), log["mask"]
    length = log["lengths"].float().mean()
    assert_close(seq_mean_token_sum(each, mask), length * token_mean(each, mask))


@pytest.mark.parametrize("fault", ["padding counted", "template counted"])
def test_counted_places_dilute_by_the_share_of_tokens(fault):
    healthy, diluted = batch("healthy"), batch(fault)
    share = healthy["mask"].sum() / diluted["mask"].sum()
    assert share < 0.8
    assert_close(kl(diluted), share * kl(healthy))


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1 / 30), ("batchmean", 5)])
def test_a_reduction_is_a_factor(reduction, factor):
    torch.manual_seed(0)
    p, q = torch.randn(2, 3, 5, 30).log_softmax(-1)
    found = kl_div(q, p, reduction=reduction, log_target=True)
    assert_close(found, factor * kl_divergence_logits(p, q).mean())


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_with_the_count_of_all_the_parts_add_up(parts):
    log = batch("healthy")
    order = log["lengths"].argsort()  # the longest on one device
    old, ref, mask = (log[x][order] for x in ("old_log_probs", "ref_log_probs", "mask"))
    each = k3(old, ref)
    pairs = list(zip(each.chunk(parts), mask.chunk(parts), strict=True))
    count = mask.sum()
    summed = torch.stack([token_mean(x, m, count=count) for x, m in pairs]).sum()
    assert_close(summed, token_mean(each, mask))
    if parts > 1:
        means = torch.stack([token_mean(x, m) for x, m in pairs]).mean()
        assert abs(means - summed) > 1e-5
