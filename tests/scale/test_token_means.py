"""Two and four ranks find the mean over all tokens and its gradient; others do not."""

import pytest
import torch
from torch import nan, tensor
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from snippets.estimate.sequences import sequence_log_prob, token_mean
from snippets.scale.token_means import global_count, rank_token_mean
from tests.scale import ranks

WORLDS = [2, 4]


def one_process(loss):
    """Value and gradient of a loss of all the data, in this process."""
    policy = ranks.model()
    value = loss(policy, *ranks.data())
    value.backward()
    return value.detach(), ranks.gradient_of(policy)


def over_tokens(policy, features, ref, mask):
    return token_mean(ranks.token_kl(policy, features, ref), mask)


def over_sequences(policy, features, ref, mask):
    return ranks.sequence_kl(policy, features, ref, mask, sequence_log_prob)


RIGHT = {"tokens": over_tokens, "sequences": over_sequences}


@pytest.mark.parametrize("world", [1, *WORLDS])
@pytest.mark.parametrize("kind", RIGHT)
def test_value_and_gradient_are_those_of_one_process(found, world, kind):
    expected = one_process(RIGHT[kind])
    assert expected[1].abs().max() > 0.01
    for part in found[world]:
        assert_close(part[kind, "ours"], expected)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("way", ["mean of means", "count of the rank"])
def test_another_count_has_another_value_and_direction(found, world, way):
    value, gradient = one_process(over_tokens)
    other, slope = found[world][0]["tokens", way]
    assert (other - value).abs() > 0.02 * value
    assert cosine_similarity(slope, gradient, dim=0) < 0.999


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", RIGHT)
def test_without_the_number_of_ranks_the_gradient_is_that_much_too_small(
    found, world, kind
):
    _, gradient = one_process(RIGHT[kind])
    _, slope = found[world][0][kind, "without the ranks"]
    assert_close(world * slope, gradient)


@pytest.mark.parametrize("world", WORLDS)
def test_a_gather_that_adds_slopes_has_the_number_of_ranks_in_it(found, world):
    assert_close(
        found[world][0]["sequences", "adding gather"], one_process(over_sequences)
    )


@pytest.mark.parametrize("world", WORLDS)
def test_the_own_part_of_a_sequence_is_another_loss(found, world):
    value, gradient = one_process(over_sequences)
    parts = [part["sequences", "own part"] for part in found[world]]
    assert abs(sum(x for x, _ in parts) / world - value) > 0.1 * value
    assert cosine_similarity(parts[0][1], gradient, dim=0) < 0.999


@pytest.mark.parametrize("world", WORLDS)
def test_all_ranks_have_the_same_gradient(found, world):
    for way in (("tokens", "ours"), ("sequences", "ours")):
        first, *rest = (part[way][1] for part in found[world])
        assert all(torch.equal(first, other) for other in rest)


def test_the_faults_in_numbers():
    """One token of 9 nats and two of 1: the mean of means is 5, the mean 11 / 3."""
    values = [tensor([[9.0, nan]]), tensor([[1.0, 1.0]])]
    masks = [tensor([[True, False]]), tensor([[True, True]])]
    pairs = list(zip(values, masks, strict=True))
    assert sum(token_mean(*pair) for pair in pairs) / 2 == 5
    count = global_count(masks)
    assert count == 3
    assert count.dtype == torch.int64
    parts = [rank_token_mean(*pair, count=count, ranks=2) for pair in pairs]
    assert_close(sum(parts) / 2, tensor(11 / 3))


def test_a_part_without_tokens_is_zero_and_has_a_gradient():
    values = torch.full((2, 3), nan, requires_grad=True)
    none = torch.zeros(2, 3, dtype=torch.bool)
    part = rank_token_mean(values, none, count=5, ranks=2)
    part.backward()
    assert part == 0
    assert (values.grad == 0).all()


def test_what_makes_no_sense_is_refused_by_name():
    values, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="masks is empty"):
        global_count([])
    with pytest.raises(ValueError, match="boolean"):
        global_count([mask.float()])
    for wrong in ({"count": 0, "ranks": 2}, {"count": 3, "ranks": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            rank_token_mean(values, mask, **wrong)
