"""The forms that the page recommends keep their digits where the usual ones do not."""

import mpmath
import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from snippets.exact.bregman import exp_gap
from snippets.exact.categorical import kl_divergence_logits


def exact(x):
    with mpmath.workdps(50):
        return float(mpmath.expm1(mpmath.mpf(x)) - mpmath.mpf(x))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [1e-8, 1e-5, 1e-3, 0.0999, 0.1001, 1.0, 30.0])
def test_the_gap_keeps_float32s_digits_at_every_size(size, sign):
    x = tensor(sign * size)
    # From a tenth on, expm1(x) - x loses a factor of 2 / x of its digits.
    assert_close(exp_gap(x).item(), exact(x.item()), rtol=4e-6, atol=0)


def test_the_common_form_is_off_by_more_than_its_value():
    x = torch.full((), 1e-4)
    common = (x.exp() - 1) - x
    assert abs(common.item() - exact(x.item())) > exact(x.item())


def test_half_of_the_common_form_is_negative_where_policies_nearly_agree():
    torch.manual_seed(0)
    x = 1e-4 * torch.randn(10_000)
    assert ((x.exp() - 1) - x < 0).float().mean() > 0.3
    assert (exp_gap(x) >= 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_large_vocabulary_is_right_to_its_own_rounding(dtype):
    torch.manual_seed(0)
    p, q = torch.randn(2, 2, 150_000).to(dtype)
    expected = kl_divergence_logits(p.double(), q.double())
    # Half precision: one rounding to nearest. float32: the digits of a log-softmax.
    slack = max(0.51 * torch.finfo(dtype).eps, 1e-5)
    assert_close(kl_divergence_logits(p, q).double(), expected, rtol=slack, atol=0)


def test_adding_bfloat16_one_after_the_other_stops_growing():
    torch.manual_seed(0)
    p, q = torch.randn(2, 150_000).bfloat16()
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    terms = log_p.exp() * (log_p - log_q)
    total = torch.zeros((), dtype=torch.bfloat16)
    for term in terms[:20_000]:
        total += term
    right = terms[:20_000].double().sum()
    assert total < 0.9 * right  # a small part of the terms, and already behind
    assert terms.sum().dtype == torch.bfloat16


def test_softmax_then_log_underflows():
    logits = tensor([0.0, -120.0])
    assert logits.softmax(-1).log()[1] == -torch.inf
    assert_close(logits.log_softmax(-1)[1], tensor(-120.0))
