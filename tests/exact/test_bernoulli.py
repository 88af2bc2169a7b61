"""`kl_bernoulli` is the categorical KL of two outcomes, right at certainty too."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.autograd.functional import hessian
from torch.distributions import Bernoulli, Independent, kl_divergence
from torch.testing import assert_close

from snippets.exact.bernoulli import kl_bernoulli, kl_multibinary
from snippets.exact.categorical import kl_divergence_logits

logits = st.floats(-15, 15)


def double(*numbers):
    return [tensor(number, dtype=torch.float64) for number in numbers]


@given(logits, logits)
def test_agrees_with_torch(p, q):
    p, q = double(p, q)
    expected = kl_divergence(Bernoulli(logits=p), Bernoulli(logits=q))
    # torch forms 1 - p: at a logit of 15 that keeps nine of sixteen digits.
    assert_close(kl_bernoulli(p, q), expected, rtol=1e-6, atol=1e-8)


@given(logits, logits)
def test_agrees_with_thirty_digits(p, q):
    with mpmath.workdps(30):
        on_p, on_q = (1 / (1 + mpmath.exp(-mpmath.mpf(x))) for x in (p, q))
        exact = on_p * mpmath.log(on_p / on_q)
        exact += (1 - on_p) * mpmath.log((1 - on_p) / (1 - on_q))
    p, q = double(p, q)
    # Each probability is rounded at 2e-16 of a logarithm of at most 15; where both
    # logits nearly agree, the digits of their difference are what is left.
    change = max(abs(p - q).item(), 1e-15)
    assert_close(
        kl_bernoulli(p, q).item(), float(exact), rtol=1e-13 + 1e-14 / change, atol=0
    )


@given(logits, logits)
def test_is_a_categorical_with_two_actions(p, q):
    p, q = double(p, q)
    rows = (torch.stack([x, torch.zeros_like(x)]) for x in (p, q))
    # As above: the sum of two rounded terms.
    assert_close(kl_bernoulli(p, q), kl_divergence_logits(*rows), rtol=1e-9, atol=1e-14)


@given(logits, st.floats(-1e-3, 1e-3))
def test_is_never_negative_in_float32(p, change):
    p = tensor(p)
    assert kl_bernoulli(p, p + change) >= 0
    assert kl_multibinary(p.expand(3), (p + change).expand(3)) >= 0


def test_a_small_change_keeps_its_digits_in_float32():
    p = torch.linspace(-10, 10, 41)
    q = p + 1e-3
    exact = kl_bernoulli(p.double(), q.double())
    # The log-odds are rounded at 1e-6 of a change of 1e-3, which is squared.
    assert_close(kl_bernoulli(p, q).double(), exact, rtol=2e-3, atol=0)


@given(logits)
def test_is_exactly_zero_for_the_same_policy(p):
    (p,) = double(p)
    assert kl_bernoulli(p, p) == 0


@given(logits, logits)
def test_gradient_is_the_derivative(p, q):
    p, q = (x.requires_grad_() for x in double(p, q))
    assert torch.autograd.gradcheck(kl_bernoulli, (p, q))


def test_the_curvature_at_the_same_policy_is_the_fisher_information():
    logits = tensor([0.3, -2.0, 0.0], dtype=torch.float64)
    on = logits.sigmoid()
    fisher = (on * (1 - on)).diag()  # the variance of each switch
    for kl in (
        lambda x: kl_multibinary(x, logits),
        lambda x: kl_multibinary(logits, x),
        lambda x: kl_bernoulli(x, logits).sum(),
    ):
        assert_close(hessian(kl, logits), fisher)


def test_samples_agree_within_their_error():
    torch.manual_seed(0)
    p, q = Bernoulli(logits=tensor(1.0)), Bernoulli(logits=tensor(-0.5))
    drawn = p.sample((100_000,))
    log_ratio = p.log_prob(drawn) - q.log_prob(drawn)
    error = log_ratio.std() / len(drawn) ** 0.5
    # Five standard errors: a right value is outside once in two million seeds.
    assert abs(log_ratio.mean() - kl_bernoulli(tensor(1.0), tensor(-0.5))) < 5 * error


@pytest.mark.parametrize("certain", [inf, -inf])
def test_a_certain_switch(certain):
    sure, open_ = tensor(certain), tensor(0.0)
    assert_close(kl_bernoulli(sure, open_), tensor(2.0).log())
    assert kl_bernoulli(open_, sure) == inf
    assert kl_bernoulli(sure, sure) == 0
    assert kl_bernoulli(sure, -sure) == inf


@pytest.mark.parametrize("certain", [inf, -inf])
def test_gradient_is_finite_at_certainty(certain):
    p, q = tensor(certain, requires_grad=True), tensor(0.3, requires_grad=True)
    kl_bernoulli(p, q).backward()
    assert p.grad.isfinite()
    assert q.grad.isfinite()


def test_an_outcome_that_underflows_in_p_adds_nothing():
    p = tensor(-200.0, requires_grad=True)
    kl = kl_bernoulli(p, tensor(-inf))
    assert kl == 0
    kl.backward()
    assert p.grad.isfinite()


def test_where_the_divergence_is_infinite_only_q_has_a_gradient():
    p, q = tensor(0.0, requires_grad=True), tensor(inf, requires_grad=True)
    kl_bernoulli(p, q).backward()
    assert not p.grad.isfinite()
    assert_close(q.grad, tensor(1.0 - 0.5))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_logits_of_any_size_keep_a_finite_value(scale):
    p, q = tensor(scale), tensor(-scale)
    expected = 2 * scale / 2 if scale > 1 else 0.0  # P is sure, or both are fair
    assert_close(kl_bernoulli(p, q).item(), expected)


def test_torch_says_infinite_where_one_minus_p_rounds_to_zero():
    p, q = tensor(0.0), tensor(120.0)
    assert kl_divergence(Bernoulli(logits=p), Bernoulli(logits=q)) == inf
    assert_close(kl_bernoulli(p, q), tensor(60 - math.log(2)))


def test_half_precision_is_rounded_once():
    p, q = (tensor(x, dtype=torch.float16) for x in (0.1, 3.0))
    exact = kl_bernoulli(p.double(), q.double())
    eps = torch.finfo(torch.float16).eps
    # Rounding to nearest is off by at most half a unit in the last place.
    assert_close(kl_bernoulli(p, q).double(), exact, rtol=0.51 * eps, atol=0)


def test_switches_of_one_action_add_up():
    torch.manual_seed(0)
    p, q = torch.randn(2, 5, 3)
    joint = [Independent(Bernoulli(logits=x), 1) for x in (p, q)]
    assert_close(kl_multibinary(p, q), kl_divergence(*joint))
    assert (kl_multibinary(p, p) == 0).all()


def test_refuses_shapes_that_broadcasting_would_square():
    with pytest.raises(ValueError, match=r"logits_q is \[4, 1\]"):
        kl_bernoulli(torch.zeros(4), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="needs 1 axes"):
        kl_multibinary(tensor(0.0), tensor(0.0))


def test_refuses_integer_logits():
    with pytest.raises(ValueError, match="floating point"):
        kl_bernoulli(tensor(1), tensor(0))
