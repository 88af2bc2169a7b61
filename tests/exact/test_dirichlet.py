"""`kl_dirichlet` is torch's, the Beta's for two shares, and keeps float32's digits."""

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.autograd.functional import hessian
from torch.distributions import Dirichlet, kl_divergence
from torch.testing import assert_close

from snippets.exact.beta import kl_beta
from snippets.exact.dirichlet import kl_dirichlet


@st.composite
def two_policies(draw):
    """Concentrations of P and Q over 2 to 5 shares."""
    dims = draw(st.integers(2, 5))
    row = st.lists(st.floats(-2, 4), min_size=dims, max_size=dims)
    return [tensor(draw(row), dtype=torch.float64).exp() for _ in "PQ"]


@given(two_policies())
def test_agrees_with_torch(rows):
    expected = kl_divergence(*(Dirichlet(x) for x in rows))
    # torch's terms of up to 1000 cancel: each is rounded at 1e-13.
    assert_close(kl_dirichlet(*rows), expected, rtol=1e-9, atol=1e-11)


@given(two_policies())
def test_two_shares_are_a_beta(rows):
    p, q = (x[:2] for x in rows)
    beta = kl_beta(p[:1], p[1:], q[:1], q[1:])
    assert_close(kl_dirichlet(p, q), beta, rtol=1e-9, atol=1e-11)


def test_samples_agree_within_their_error():
    torch.manual_seed(0)
    rows = tensor([2.0, 3.0, 1.5]), tensor([1.0, 1.0, 2.0])
    p, q = (Dirichlet(x) for x in rows)
    drawn = p.sample((100_000,))
    log_ratio = p.log_prob(drawn) - q.log_prob(drawn)
    error = log_ratio.std() / len(drawn) ** 0.5
    # Five standard errors: a right value is outside once in two million seeds.
    assert abs(log_ratio.mean() - kl_dirichlet(*rows)) < 5 * error


@given(two_policies())
def test_merging_two_shares_never_raises_the_divergence(rows):
    merged = [torch.cat([x[:-2], x[-2:].sum(-1, keepdim=True)]) for x in rows]
    if len(merged[0]) > 1:
        assert kl_dirichlet(*merged) <= kl_dirichlet(*rows) + 1e-10


@given(two_policies())
def test_is_exactly_zero_for_the_same_policy(rows):
    assert kl_dirichlet(rows[0], rows[0]) == 0


@given(two_policies())
def test_is_never_negative(rows):
    assert kl_dirichlet(*rows) >= -1e-26  # a change in the last bits, squared


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e3, 1e8, 1e30])
def test_is_right_from_tiny_to_huge(scale, dtype):
    shares = tensor([[3.0, 1.0, 2.0], [3.03, 1.0, 1.98]], dtype=dtype) * scale
    with mpmath.workdps(150):
        p, q = ([mpmath.mpf(x) for x in row] for row in shares.tolist())
        exact = mpmath.loggamma(sum(p)) - mpmath.loggamma(sum(q))
        for a, b in zip(p, q, strict=True):
            exact += mpmath.loggamma(b) - mpmath.loggamma(a)
            exact += (a - b) * (mpmath.digamma(a) - mpmath.digamma(sum(p)))
    got = kl_dirichlet(*shares).item()
    # float32 rounds once; a hundredth leaves 14 of float64's digits.
    rtol = max(1e-12, torch.finfo(dtype).eps)
    assert_close(got, float(exact), rtol=rtol, atol=0)


def test_one_share_is_always_the_whole():
    assert kl_dirichlet(tensor([3.0]), tensor([5.0])) == 0


@settings(max_examples=25)
@given(two_policies())
def test_gradient_is_the_derivative(rows):
    # Concentrations reach exp(-2), where slopes reach 500: differences lose digits.
    leaves = [x.requires_grad_() for x in rows]
    assert torch.autograd.gradcheck(kl_dirichlet, leaves, rtol=1e-2, atol=1e-4)


def test_the_curvature_at_the_same_policy_is_the_fisher_information():
    shares = (2.0, 0.7, 3.0)
    p = tensor(shares, dtype=torch.float64)
    each, whole = (
        tensor([float(mpmath.polygamma(1, x)) for x in row], dtype=torch.float64)
        for row in (shares, [sum(shares)])
    )
    fisher = each.diag() - whole
    for kl in (lambda x: kl_dirichlet(x, p), lambda x: kl_dirichlet(p, x)):
        assert_close(hessian(kl, p), fisher)


@pytest.mark.parametrize("wrong", [0.0, -1.0, nan, inf])
def test_a_concentration_that_is_not_positive_makes_its_row_nan(wrong):
    p, q = torch.ones(2, 2), tensor([[1.0, 1.0], [1.0, wrong]])
    for kl in (kl_dirichlet(p, q), kl_dirichlet(q, p)):
        assert kl[0] == 0
        assert kl[1].isnan()


@given(two_policies(), st.floats(-1e-3, 1e-3))
def test_is_never_negative_in_float32_however_close(rows, change):
    p = rows[0].float()
    q = p * (1 + change * torch.linspace(-1, 1, len(p)))
    assert kl_dirichlet(p, q) >= 0


def test_refuses_different_numbers_of_shares():
    with pytest.raises(ValueError, match=r"concentration_q is \[3\]"):
        kl_dirichlet(torch.ones(2), torch.ones(3))
