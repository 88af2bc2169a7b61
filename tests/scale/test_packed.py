"""A pack has the sums and means of its sequences, taken one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nan, tensor
from torch.testing import assert_close

from snippets.scale.packed import boundaries_of, has_next, packed_mean, packed_sum


@st.composite
def packs(draw):
    """Sequences of 0 to 5 tokens, their pack with padding of nan, and boundaries."""
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=5))
    rows = [draw(st.lists(st.floats(-9, 9), min_size=n, max_size=n)) for n in lengths]
    padding = [nan] * draw(st.integers(0, 3))
    flat = [x for row in rows for x in row] + padding
    boundaries = torch.cat([tensor([0]), tensor(lengths).cumsum(0)])
    return rows, tensor(flat, dtype=torch.float64), boundaries


@given(packs())
def test_sums_and_means_are_those_of_the_sequences(pack):
    rows, values, boundaries = pack
    sums = [float(sum(row)) for row in rows]
    means = [sum(row) / len(row) if row else nan for row in rows]
    # Sums of up to five numbers, in another order.
    assert_close(packed_sum(values, boundaries).tolist(), sums, rtol=1e-12, atol=1e-13)
    found = packed_mean(values, boundaries).tolist()
    assert_close(found, means, rtol=1e-12, atol=1e-13, equal_nan=True)


@given(packs())
def test_a_token_is_paired_within_its_sequence_alone(pack):
    rows, values, boundaries = pack
    expected = [k + 1 < len(row) for row in rows for k in range(len(row))]
    expected += [False] * (len(values) - len(expected))
    found = has_next(torch.zeros(len(values), dtype=torch.int64), boundaries)
    assert found.tolist() == expected


@given(packs())
def test_segment_ids_have_the_boundaries_of_the_sequences(pack):
    rows, values, boundaries = pack
    ids = [k for k, row in enumerate(rows) for _ in row]
    ids += [len(rows)] * (len(values) - len(ids))
    found = boundaries_of(tensor(ids, dtype=torch.int64), count=len(rows))
    assert found.tolist() == boundaries.tolist()


def test_log_probs_shifted_inside_a_pack_are_those_of_its_sequences():
    torch.manual_seed(0)
    lengths = [4, 0, 1, 5, 2]
    boundaries = tensor([0, *lengths]).cumsum(0)
    tokens = torch.randint(7, (14,))  # two of padding
    logits = torch.randn(14, 7, dtype=torch.float64, requires_grad=True)

    def log_probs(logits, tokens):
        return logits[:-1].log_softmax(-1).gather(-1, tokens[1:, None]).squeeze(-1)

    parts = [slice(a, b) for a, b in boundaries.unfold(0, 2, 1).tolist()]
    expected = [log_probs(logits[part], tokens[part]).sum() for part in parts]
    shifted = torch.cat([log_probs(logits, tokens), torch.zeros(1)])
    pairs = has_next(tokens, boundaries)
    found = packed_sum(shifted.where(pairs, 0.0), boundaries)
    assert_close(found, torch.stack(expected))
    (slope,) = torch.autograd.grad(found.sum(), logits)
    assert (slope[~pairs] == 0).all()
    across = packed_sum(shifted, boundaries)  # the last token of each asks the next one
    assert ((across - found).abs() > 0.1).tolist() == [n > 0 for n in lengths]


def test_a_pack_without_a_token_has_sequences_without_one():
    none, boundaries = torch.zeros(0), tensor([0, 0, 0])
    assert packed_sum(none, boundaries).tolist() == [0, 0]
    assert packed_mean(none, boundaries).isnan().all()
    assert has_next(torch.zeros(0, dtype=torch.int64), boundaries).shape == (0,)


def test_four_sequences_of_sixteen_tokens_have_twelve_pairs_and_not_fifteen():
    boundaries = tensor([0, 4, 8, 12, 16])
    assert has_next(torch.zeros(16, dtype=torch.int64), boundaries).sum() == 12


@given(packs())
def test_padding_has_no_gradient(pack):
    rows, values, boundaries = pack
    values.requires_grad_()
    packed_sum(values, boundaries).sum().backward()
    tokens = sum(map(len, rows))
    assert (values.grad[:tokens] == 1).all()
    assert (values.grad[tokens:] == 0).all()


def test_64k_tokens_keep_their_digits_in_float32():
    torch.manual_seed(0)
    values = torch.rand(65_536)
    boundaries = tensor([0, 65_000, 65_500, 65_536])
    expected = [x.double().sum() for x in values.split([65_000, 500, 36])]
    # Rounded once: half of the spacing of float32.
    assert_close(
        packed_sum(values, boundaries), torch.stack(expected).float(), rtol=6e-8, atol=0
    )
    running = torch.cat([tensor([0.0]), values.cumsum(0)])[boundaries].diff()
    assert (
        (running - torch.stack(expected)) / torch.stack(expected)
    ).abs().max() > 1e-5


def test_what_is_no_pack_is_refused_by_name():
    with pytest.raises(ValueError, match="segment_ids is"):
        boundaries_of(torch.zeros(3), count=1)
    with pytest.raises(ValueError, match="values is"):
        packed_sum(torch.zeros(2, 3), tensor([0, 2]))
    with pytest.raises(ValueError, match="cu_seqlens"):
        packed_sum(torch.zeros(3), tensor([0.0, 3.0]))
