"""What `F.kl_div` does at torch 2.13.0, and the calls that make it a KL."""

import pytest
import torch
from hypothesis import given
from torch import inf, tensor
from torch.nn.functional import kl_div
from torch.testing import assert_close

from snippets.exact.categorical import kl_divergence_logits
from tests.strategies import two_log_policies

P = tensor([0.5, 0.5]).log()
Q = tensor([0.9, 0.1]).log()
PQ = kl_divergence_logits(P, Q)


@given(two_log_policies())
def test_summed_over_the_vocabulary_it_is_the_kl(rows):
    p, q = rows
    found = kl_div(q, p, reduction="none", log_target=True).sum(-1)
    # Terms of both signs, of at most 8 each, are rounded at 1e-15.
    assert_close(found, kl_divergence_logits(p, q), rtol=1e-9, atol=1e-14)


def test_the_second_argument_is_p():
    assert_close(kl_div(Q, P, reduction="sum", log_target=True), PQ)
    assert_close(kl_div(Q, P.exp(), reduction="sum"), PQ)


def test_mean_divides_by_every_element():
    rows = Q.expand(3, 2), P.expand(3, 2)
    with pytest.warns(UserWarning, match="batchmean"):
        mean = kl_div(*rows, reduction="mean", log_target=True)
    assert_close(mean, PQ / 2)
    assert_close(kl_div(*rows, reduction="batchmean", log_target=True), PQ)


def test_batchmean_divides_by_the_first_axis_only():
    rows = Q.expand(3, 7, 2), P.expand(3, 7, 2)
    assert_close(kl_div(*rows, reduction="batchmean", log_target=True), 7 * PQ)


def test_a_log_target_without_the_flag_is_nan():
    assert kl_div(Q, P, reduction="sum").isnan()


def test_an_input_that_is_no_logarithm_is_a_number():
    found = kl_div(Q.exp(), P.exp(), reduction="sum")
    assert found < 0


def test_a_mask_is_nan_in_both_spellings():
    masked = tensor([0.0, -inf])
    assert kl_div(masked, masked, reduction="sum", log_target=True).isnan()
    assert kl_div(masked, masked.exp(), reduction="sum").isnan()


def test_near_policies_are_often_negative():
    torch.manual_seed(0)
    old = torch.randn(1000, 4)
    new = old + 1e-4 * torch.randn(1000, 4)
    rows = new.log_softmax(-1), old.log_softmax(-1)
    found = kl_div(*rows, reduction="none", log_target=True).sum(-1)
    assert (found < 0).float().mean() > 0.2
    assert (kl_divergence_logits(rows[1], rows[0]) >= 0).all()


def test_it_broadcasts_three_tokens_beside_one():
    three, one = torch.zeros(3).log_softmax(-1), torch.zeros(1).log_softmax(-1)
    found = kl_div(one, three, reduction="sum", log_target=True)
    assert_close(found, -tensor(3.0).log())
