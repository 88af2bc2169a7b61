"""The neighbours of the KL agree with their definitions and bound it as they should."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.testing import assert_close

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.fisher import fisher_of_logits
from snippets.foundations.neighbours import (
    chi_squared,
    jensen_shannon,
    kl_to_mixture,
    renyi,
    total_variation,
)
from tests.strategies import two_policies


def f_divergence(f, p, q):
    """E_Q[f(P/Q)] with thirty digits."""
    with mpmath.workdps(30):
        pairs = zip(p.softmax(-1).tolist(), q.softmax(-1).tolist(), strict=True)
        return float(mpmath.fsum(b * f(mpmath.mpf(a) / b) for a, b in pairs))


@given(two_policies())
def test_each_is_its_f_divergence(rows):
    p, q = rows
    middle = {
        total_variation: lambda r: abs(r - 1) / 2,
        chi_squared: lambda r: (r - 1) ** 2,
        jensen_shannon: lambda r: (
            (r * mpmath.log(2 * r / (1 + r)) + mpmath.log(2 / (1 + r))) / 2
        ),
    }
    for divergence, f in middle.items():
        exact = f_divergence(f, p, q)
        assert_close(divergence(p, q).item(), exact, rtol=1e-9, atol=1e-14)


@given(two_policies(), st.floats(1e-9, 1 - 1e-9))
def test_the_kl_to_a_mixture_has_thirty_digits_as_its_judge(rows, share):
    p, q = rows
    with mpmath.workdps(40):
        ps, qs = (
            [mpmath.exp(mpmath.mpf(y)) for y in x.log_softmax(-1).tolist()]
            for x in rows
        )
        ps, qs = ([y / mpmath.fsum(row) for y in row] for row in (ps, qs))
        pairs = zip(ps, qs, strict=True)
        exact = mpmath.fsum(
            a * mpmath.log(a / (share * a + (1 - mpmath.mpf(share)) * b))
            for a, b in pairs
        )
    found = kl_to_mixture(p, q, share).item()
    # Log-probabilities are rounded at 1e-15; near policies keep their difference.
    assert_close(found, float(exact), rtol=1e-9, atol=1e-28)


@given(two_policies(), st.floats(0.05, 0.95))
def test_the_kl_to_a_mixture_is_the_kl_to_the_mixture(rows, share):
    p, q = (x.softmax(-1) for x in rows)
    mixture = (share * p + (1 - share) * q).log()
    expected = kl_divergence_logits(rows[0], mixture)
    assert_close(kl_to_mixture(*rows, share), expected, rtol=1e-7, atol=1e-15)


@pytest.mark.parametrize("share", [1e-12, 1e-6, 0.5, 1 - 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_ratio_of_the_two_is_finite(share, dtype):
    p = tensor([[0.0, -80.0], [0.0, 700.0], [-inf, 0.0]], dtype=dtype)
    q = tensor([[0.0, 80.0], [0.0, -700.0], [0.0, -inf]], dtype=dtype)
    p.requires_grad_(), q.requires_grad_()
    kl = kl_to_mixture(p, q, share)
    assert ((kl >= 0) & (kl <= -math.log(share) * (1 + 1e-6) + 1e-30)).all()
    kl.sum().backward()
    assert p.grad.isfinite().all()
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.1, math.nan])
def test_refuses_shares_that_are_none(share):
    with pytest.raises(ValueError, match="share is"):
        kl_to_mixture(torch.zeros(2), torch.zeros(2), share)


@given(two_policies())
def test_the_symmetric_ones_are_symmetric(rows):
    p, q = rows
    for divergence in (total_variation, jensen_shannon, ALL["Renyi below 1"]):
        assert_close(divergence(p, q), divergence(q, p))


@given(two_policies())
def test_they_bound_the_kl(rows):
    p, q = rows
    kl = kl_divergence_logits(p, q)
    slack = 1e-12  # rounding
    assert 2 * total_variation(p, q) ** 2 <= kl + slack
    assert kl <= chi_squared(p, q).log1p() + slack
    assert jensen_shannon(p, q) <= math.log(2) + slack


@given(two_policies(), st.floats(0.1, 0.9), st.floats(1.1, 4))
def test_renyi_grows_with_its_order_and_the_kl_is_in_between(rows, below, above):
    kl = kl_divergence_logits(*rows)
    assert renyi(*rows, below) <= kl + 1e-12 <= renyi(*rows, above) + 2e-12


@given(two_policies())
def test_renyi_of_order_two_is_the_log_of_chi_squared(rows):
    assert_close(renyi(*rows, 2.0), chi_squared(*rows).log1p(), rtol=1e-7, atol=1e-12)


ALL = {
    "total variation": total_variation,
    "Jensen-Shannon": jensen_shannon,
    "chi squared": chi_squared,
    "Renyi below 1": lambda p, q: renyi(p, q, 0.5),
    "Renyi above 1": lambda p, q: renyi(p, q, 3.0),
    "KL to a mixture": lambda p, q: kl_to_mixture(p, q, 0.3),
}
each = pytest.mark.parametrize("divergence", ALL.values(), ids=ALL)


@each
@given(two_policies())
def test_is_exactly_zero_for_the_same_policy(divergence, rows):
    assert divergence(rows[0], rows[0]) == 0


@each
@given(two_policies())
def test_an_action_masked_in_both_is_as_good_as_absent(divergence, rows):
    masked = [torch.cat([x, tensor([-inf])]).requires_grad_() for x in rows]
    assert_close(divergence(*masked), divergence(*rows))
    divergence(*masked).backward()
    free = [x.clone().requires_grad_() for x in rows]
    divergence(*free).backward()
    for with_mask, without in zip(masked, free, strict=True):
        assert_close(with_mask.grad[:-1], without.grad)
        assert with_mask.grad[-1] == 0


@given(two_policies())
def test_gradients_are_derivatives(rows):
    p, q = (x.requires_grad_() for x in rows)
    for name, divergence in ALL.items():
        if name != "total variation":  # it has a corner wherever P(x) = Q(x)
            # A fourth-order error of the finite difference, where E_Q[P³/Q³] is large.
            assert torch.autograd.gradcheck(divergence, (p, q), rtol=1e-2)


@each
@given(two_policies(largest=3.0), st.floats(1e-7, 1e-2))
def test_keeps_its_digits_and_its_sign_for_policies_that_nearly_agree(
    divergence, rows, size
):
    p, change = (x.float() for x in rows)
    q = p + size * change
    found, exact = divergence(p, q), divergence(p.double(), q.double())
    assert found >= 0
    # Log-probabilities of at most 8 are rounded at 2.4e-7: the log-ratio is off by
    # twice that, the divergence by twice its size times that, or by the square.
    off = 5e-7
    second = exact if divergence is not total_variation else exact.square()
    slack = 4 * off * second.sqrt() + off**2
    if divergence is total_variation:
        slack = tensor(off).double()
    assert abs(found - exact) <= 4 * slack


@each
@given(two_policies())
def test_policies_that_underflow_alike_are_equal(divergence, rows):
    p = torch.cat([rows[0].float(), tensor([-90.0, -100.0, -200.0])])
    assert divergence(p, p) == 0


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(divergence, dtype):
    torch.manual_seed(0)
    p, q = tensor([[1, 0, -1, 0.5], [1.1, 0, -1, 0.5]]).to(dtype)
    half = torch.finfo(dtype).eps / 2  # the rounding, and float32's own beside it
    tiny = torch.finfo(dtype).tiny
    exact = divergence(p.double(), q.double())
    assert_close(divergence(p, q).double(), exact, rtol=1.02 * half, atol=tiny)
    p, q = torch.randn(2, 50_000).to(dtype)
    exact = divergence(p.double(), q.double())
    assert_close(divergence(p, q).double(), exact, rtol=1.02 * half, atol=0)


@each
def test_refuses_what_would_broadcast(divergence):
    with pytest.raises(ValueError, match=r"logits_q is \[2, 1\]"):
        divergence(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"logits_q is \[2, 1, 3\]"):
        divergence(torch.zeros(2, 3), torch.zeros(2, 1, 3))
    with pytest.raises(ValueError, match="logits_p must be floating point"):
        divergence(torch.zeros(3).long(), torch.zeros(3))


@each
def test_a_row_with_every_action_masked_is_nan(divergence):
    masked, free = tensor([-inf, -inf]), torch.zeros(2)
    assert divergence(masked, free).isnan()


def test_chi_squared_is_finite_where_the_weight_overflows():
    p, q = tensor([0.0, -110.0]), tensor([0.0, -200.0])
    # p^2 / q of the second action, e^(200 - 220); the rest is below 1e-40.
    assert_close(chi_squared(p, q).item(), math.exp(-20), rtol=1e-5, atol=0)


def test_chi_squared_has_the_curvature_of_twice_the_kl_at_equal_policies():
    p = tensor([1.0, 0.0, -0.5], dtype=torch.float64)
    for f in (lambda x: chi_squared(x, p), lambda x: chi_squared(p, x)):
        assert_close(torch.autograd.functional.hessian(f, p), 2 * fisher_of_logits(p))


@pytest.mark.parametrize("order", [1e-9, 1e-3, 1 - 1e-9, 1 + 1e-9, 300.0])
def test_extreme_orders_keep_their_digits(order):
    torch.manual_seed(0)
    p, q = torch.randn(2, 100, 4)
    exact = renyi(p.double(), q.double(), order)
    assert_close(renyi(p, q, order).double(), exact, rtol=1e-5, atol=0)
    if abs(order - 1) < 1e-6:
        assert_close(
            exact, kl_divergence_logits(p.double(), q.double()), rtol=1e-6, atol=0
        )


def test_a_large_order_does_not_overflow():
    p, q = tensor([0.0, -100.0]), tensor([-100.0, 0.0])
    # The log of p^3 / q^2, over two.
    assert_close(renyi(p, q, 3.0), tensor(100.0))


def test_what_each_is_if_q_excludes_an_action_of_p():
    p, q = tensor([0.0, 0.0]), tensor([0.0, -inf])
    assert total_variation(p, q) == 0.5
    assert_close(renyi(p, q, 0.5), tensor(2.0).log())
    mixture = kl_divergence_logits(p, tensor([3.0, 1.0]).log())
    other = kl_divergence_logits(q, tensor([3.0, 1.0]).log())
    assert_close(jensen_shannon(p, q), (mixture + other) / 2)
    assert chi_squared(p, q) == renyi(p, q, 3.0) == inf


def test_what_each_is_if_nothing_is_shared():
    p, q = tensor([0.0, -inf]), tensor([-inf, 0.0])
    assert total_variation(p, q) == 1
    assert_close(jensen_shannon(p, q), tensor(2.0).log())
    for divergence in (chi_squared, ALL["Renyi below 1"], ALL["Renyi above 1"]):
        assert divergence(p, q) == inf


def test_the_others_are_not_symmetric():
    p, q = tensor([1.0, 0.0, -1.0]), tensor([-3.0, 0.0, 3.0])
    for divergence in (chi_squared, ALL["Renyi above 1"], kl_divergence_logits):
        assert divergence(p, q) > 1.1 * divergence(q, p)


@pytest.mark.parametrize("order", [1.0, 0.0, -1.0])
def test_refuses_orders_that_are_none(order):
    with pytest.raises(ValueError, match="order is"):
        renyi(torch.zeros(2), torch.zeros(2), order)
