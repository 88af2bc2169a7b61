"""A map never raises a KL, and one that can be undone leaves it as it is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.testing import assert_close

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.chain_rule import per_token, sequence_kl
from snippets.foundations.data_processing import pushed_forward


@st.composite
def mapped(draw):
    """Two policies, and a group for each of their actions."""
    actions = draw(st.integers(1, 6))
    row = st.lists(st.floats(-6, 6), min_size=actions, max_size=actions)
    groups = draw(st.lists(st.integers(0, 3), min_size=actions, max_size=actions))
    p, q = (tensor(draw(row), dtype=torch.float64).log_softmax(-1) for _ in "PQ")
    return p, q, tensor(groups)


@given(mapped())
def test_a_map_never_raises_the_divergence(case):
    p, q, groups = case
    merged = (pushed_forward(x, groups, 4) for x in (p, q))
    assert kl_divergence_logits(*merged) <= kl_divergence_logits(p, q) + 1e-12


@given(mapped())
def test_probabilities_of_groups_add_up(case):
    p, _, groups = case
    expected = torch.zeros(4).double().index_add(0, groups, p.exp())
    assert_close(pushed_forward(p, groups, 4).exp(), expected)


@given(mapped())
def test_a_map_that_can_be_undone_changes_nothing(case):
    p, q, _ = case
    torch.manual_seed(0)
    turned = (pushed_forward(x, torch.randperm(len(p)), len(p)) for x in (p,))
    assert_close(next(turned).sort().values, p.sort().values)
    order = torch.arange(len(p)).flip(0)
    merged = (pushed_forward(x, order, len(p)) for x in (p, q))
    assert_close(kl_divergence_logits(*merged), kl_divergence_logits(p, q))


letters = st.lists(st.floats(-4, 4), min_size=6, max_size=6)


@given(letters, letters)
def test_two_tokenisers_agree_per_text_and_not_per_token(p, q):
    first, second = zip(
        *((tensor(x[:2]).double(), tensor(x[2:]).double().view(2, 2)) for x in (p, q)),
        strict=True,
    )  # of two letters: the first, and the second after each first
    tables = [
        a.log_softmax(-1)[:, None] + b.log_softmax(-1)
        for a, b in zip(first, second, strict=True)
    ]
    in_pairs = kl_divergence_logits(*(table.flatten() for table in tables))
    kls = [kl_divergence_logits(*first)[None], kl_divergence_logits(*second)]
    reached = torch.cat([torch.zeros(1).double(), first[0].log_softmax(-1)])
    in_letters = sequence_kl(torch.cat(kls), reached)
    assert_close(in_letters, in_pairs)
    rates = per_token(in_letters, tensor(2.0)), per_token(in_pairs, tensor(1.0))
    assert_close(2 * rates[0], rates[1])


def test_one_group_for_all_knows_nothing():
    p, q = tensor([1.0, 0.0]).log_softmax(-1), tensor([0.0, 3.0]).log_softmax(-1)
    merged = (pushed_forward(x, tensor([0, 0]), 1) for x in (p, q))
    assert kl_divergence_logits(*merged) == 0


def test_refuses_groups_of_other_actions():
    with pytest.raises(ValueError, match=r"groups is .* \[3\], for 2 actions"):
        pushed_forward(torch.zeros(2), tensor([0, 1, 1]), 2)
    with pytest.raises(ValueError, match=r"groups is torch.float32"):
        pushed_forward(torch.zeros(2), tensor([0.0, 1.0]), 2)
    with pytest.raises(ValueError, match="count is 0"):
        pushed_forward(torch.zeros(2), tensor([0, 0]), 0)


def test_a_group_of_masked_actions_has_finite_gradients():
    logits = tensor([1.0, 0.0, -inf, -inf], requires_grad=True)
    groups = tensor([0, 1, 2, 2])
    merged = pushed_forward(logits.log_softmax(-1), groups, 4)
    assert_close(merged.exp()[2:], torch.zeros(2))
    kl_divergence_logits(merged, tensor([0.5, 0.0, -inf, -inf])).backward()
    alone = tensor([1.0, 0.0], requires_grad=True)
    kl_divergence_logits(alone, tensor([0.5, 0.0])).backward()
    assert_close(logits.grad, torch.cat([alone.grad, torch.zeros(2)]))


def test_a_group_that_is_not_counted_makes_everything_nan():
    for groups in (tensor([0, 1, 2]), tensor([0, -1, 1])):
        assert pushed_forward(torch.zeros(3), groups, 2).isnan().all()


def test_groups_are_compared_where_they_are():
    log_probs = torch.zeros(2, 3, device="meta")
    groups = torch.zeros(3, dtype=torch.int64, device="meta")
    assert pushed_forward(log_probs, groups, 2).device.type == "meta"
