"""Several processes that share a vocabulary find the dense KL and its gradient."""

import pytest
import torch
from torch import tensor
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from snippets.exact.categorical import kl_divergence_logits
from tests.scale.process import CHUNK, LARGE, cases, heads

WORLDS = (1, 2, 4)


def dense(case):
    p, q = (x.clone().requires_grad_() for x in cases()[case])
    kl = kl_divergence_logits(p, q)
    kl.sum().backward()
    return kl.detach(), p.grad, q.grad


def joined(parts, way, case):
    """The slopes of all processes side by side, of P and of Q."""
    return [torch.cat([part[way, case][k] for part in parts], -1) for k in (1, 2)]


@pytest.mark.parametrize("case", cases())
@pytest.mark.parametrize("world", WORLDS)
def test_value_and_gradient_are_the_dense_ones(found, world, case):
    kl, of_p, of_q = dense(case)
    for part in found[world]:
        # Logits of 500 have lost three digits before they come here.
        assert_close(part["ours", case][0], kl, rtol=1e-10, atol=1e-12)
        assert (part["ours", case][0] >= 0).all()
    slopes = joined(found[world], "ours", case)
    assert_close(slopes, [of_p, of_q], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("world", WORLDS)
def test_all_processes_have_the_same_number_and_zero_for_equal_models(found, world):
    for case in cases():
        first, *rest = (part["ours", case][0] for part in found[world])
        assert all(torch.equal(first, other) for other in rest)
    assert (found[world][0]["ours", "equal"][0] == 0).all()


@pytest.mark.parametrize("case", ["ordinary", "far", "equal"])
@pytest.mark.parametrize("world", WORLDS)
def test_from_hidden_states_in_chunks_value_and_gradient_are_the_dense_ones(
    found, world, case
):
    given = [x.clone().requires_grad_() for x in heads(case)]
    kl = kl_divergence_logits(given[0] @ given[1].T, given[2] @ given[3].T)
    (kl @ torch.linspace(0.5, 1.5, len(kl)).double()).backward()
    parts = [part["in chunks", case] for part in found[world]]
    for own, *slopes in parts:
        assert_close(own, kl.detach(), rtol=1e-12, atol=1e-14)
        assert (own == 0).all() if case == "equal" else (own >= 0).all()
        for k in (0, 2):  # of the hidden states each process has the whole slope
            assert_close(slopes[k], given[k].grad, rtol=1e-10, atol=1e-11)
    for k in (1, 3):
        side_by_side = torch.cat([slopes[k] for _, *slopes in parts])
        assert_close(side_by_side, given[k].grad, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("world", WORLDS)
def test_in_chunks_no_process_ever_holds_the_logits_of_its_part(found, world):
    tokens, words = LARGE[0], LARGE[1] // world
    for part in found[world]:
        chunk, per_chunk = tokens * CHUNK * 8, 2 * 3 * tokens * (words // CHUNK) * 8
        assert part["bytes"] < 8 * chunk + per_chunk + 2**12
        assert part["bytes"] < tokens * words * 8 / (1.5 if world == 4 else 3)


@pytest.mark.parametrize("world", WORLDS)
def test_a_gather_that_adds_all_slopes_is_as_many_times_too_large(found, world):
    _, of_p, of_q = dense("ordinary")
    slopes = joined(found[world], "adds all slopes", "ordinary")
    assert_close(slopes, [world * of_p, world * of_q])


@pytest.mark.parametrize("world", WORLDS)
def test_a_plain_gather_has_the_value_and_no_gradient(found, world):
    for part in found[world]:
        kl, of_p, of_q = part["plain", "ordinary"]
        assert_close(kl, dense("ordinary")[0])
        assert of_p is None
        assert of_q is None


@pytest.mark.parametrize("world", [2, 4])
def test_a_sum_that_autograd_misses_has_the_value_and_another_direction(found, world):
    kl, of_p, _ = dense("ordinary")
    assert_close(found[world][0]["sum within", "ordinary"][0], kl)
    slope, _ = joined(found[world], "sum within", "ordinary")
    assert cosine_similarity(slope.flatten(), of_p.flatten(), dim=0) < 0.99


def test_a_mean_of_means_is_not_the_mean_over_all_tokens():
    """Two processes with 1 and 3 tokens: nats per token of all, by sums and counts."""
    kls = [tensor([4.0]), tensor([1.0, 1.0, 2.0])]
    means = torch.stack([x.mean() for x in kls])
    assert means.mean() != torch.cat(kls).mean()
    total, count = sum(x.sum() for x in kls), sum(x.numel() for x in kls)
    assert total / count == torch.cat(kls).mean()
