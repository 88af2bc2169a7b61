"""`kl_divergence_logits` is torch's KL, and right where torch is not."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.autograd.functional import hessian
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from snippets.exact.categorical import kl_divergence_logits


@st.composite
def two_policies(draw):
    """Logits of two policies over the same 1 to 6 actions."""
    actions = draw(st.integers(1, 6))
    row = st.lists(st.floats(-10, 10), min_size=actions, max_size=actions)
    return tuple(tensor(draw(row), dtype=torch.float64) for _ in "PQ")


@given(two_policies())
def test_agrees_with_torch(policies):
    p, q = policies
    expected = kl_divergence(Categorical(logits=p), Categorical(logits=q))
    assert_close(kl_divergence_logits(p, q), expected)


@given(two_policies(), st.floats(-10, 10))
def test_needs_no_normalised_logits(policies, shift):
    p, q = policies
    assert_close(kl_divergence_logits(p + shift, q - shift), kl_divergence_logits(p, q))


@given(two_policies())
def test_an_action_masked_in_both_is_as_good_as_absent(policies):
    p, q = policies
    masked_p, masked_q = (torch.cat([x, tensor([-inf])]) for x in policies)
    assert_close(kl_divergence_logits(masked_p, masked_q), kl_divergence_logits(p, q))


@given(two_policies())
def test_gradient_is_finite_under_a_mask(policies):
    p, q = (torch.cat([x, tensor([-inf])]).requires_grad_() for x in policies)
    kl_divergence_logits(p, q).backward()
    assert p.grad.isfinite().all()
    assert q.grad.isfinite().all()


@given(two_policies())
def test_gradient_is_the_derivative(policies):
    p, q = (x.requires_grad_() for x in policies)
    assert torch.autograd.gradcheck(kl_divergence_logits, (p, q))


def test_an_action_masked_in_q_alone_costs_infinity():
    free, masked = tensor([0.0, 0.0]), tensor([0.0, -inf])
    assert kl_divergence_logits(free, masked) == inf
    assert_close(kl_divergence_logits(masked, free), tensor(2.0).log())


def test_is_finite_where_torch_underflows():
    p, q = tensor([0.0, 0.0]), tensor([0.0, -120.0])
    assert kl_divergence(Categorical(logits=p), Categorical(logits=q)) == inf
    assert_close(kl_divergence_logits(p, q), tensor(60.0) - tensor(2.0).log())


@given(two_policies())
def test_is_exactly_zero_for_the_same_policy(policies):
    for logits in policies:
        assert kl_divergence_logits(logits, logits) == 0


@given(two_policies())
def test_sums_over_the_actions_of_p(policies):
    log_p, log_q = (x.log_softmax(-1).tolist() for x in policies)
    by_hand = mpmath.fsum(
        mpmath.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True)
    )
    # The logits are at most 20 apart, so that a term is at most 20 and rounds by 1e-15.
    assert abs(kl_divergence_logits(*policies) - float(by_hand)) < 1e-13


def test_the_mean_log_ratio_of_samples_of_p_is_within_its_error():
    torch.manual_seed(0)
    p, q = tensor([1.0, 0.0, -1.0]), tensor([0.0, 0.5, 0.0])
    drawn = Categorical(logits=p).sample((100_000,))
    log_ratio = (p.log_softmax(-1) - q.log_softmax(-1))[drawn]
    error = log_ratio.std() / drawn.numel() ** 0.5
    # Five standard errors: a right value is outside once in two million seeds.
    assert abs(log_ratio.mean() - kl_divergence_logits(p, q)) < 5 * error


def test_an_action_masked_in_p_alone_adds_nothing():
    p, q = tensor([0.0, -inf]), tensor([0.0, 0.0])
    assert_close(kl_divergence_logits(p, q), tensor(2.0).log())


def test_a_row_without_actions_is_no_distribution():
    assert kl_divergence_logits(tensor([-inf, -inf]), tensor([0.0, 0.0])).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    torch.manual_seed(0)
    p, q = torch.randn(2, 8, 1000).to(dtype)
    kl = kl_divergence_logits(p, q)
    assert kl.dtype == dtype
    exact = kl_divergence_logits(p.double(), q.double())
    # Rounding to nearest is off by at most half a unit in the last place.
    torch.testing.assert_close(
        kl.double(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=0
    )


def test_half_precision_does_not_underflow():
    p, q = (tensor(x, dtype=torch.float16) for x in ([0.0, 0.0], [0.0, -60.0]))
    expected = tensor(30 - math.log(2), dtype=torch.float16)
    assert_close(kl_divergence_logits(p, q), expected, rtol=0, atol=0)


def test_torch_loses_the_gradient_under_a_mask():
    logits = tensor([1.0, 0.0, -inf], requires_grad=True)
    q = Categorical(logits=tensor([0.0, 0.0, -inf]))
    kl_divergence(Categorical(logits=logits), q).backward()
    assert logits.grad.isnan().any()


def test_torch_calls_an_underflow_in_half_precision_infinite():
    p, q = (tensor(x, dtype=torch.float16) for x in ([0.0, 0.0], [0.0, -20.0]))
    assert kl_divergence(Categorical(logits=p), Categorical(logits=q)) == inf
    assert kl_divergence_logits(p, q).isfinite()


def test_batches_broadcast():
    assert kl_divergence_logits(torch.zeros(5, 1, 3), torch.zeros(4, 3)).shape == (
        5,
        4,
    )


def test_refuses_different_numbers_of_actions():
    with pytest.raises(ValueError, match="P has 3 actions, Q has 1"):
        kl_divergence_logits(torch.zeros(3), torch.zeros(1))


def test_refuses_a_number_in_place_of_a_row():
    with pytest.raises(ValueError, match="need an axis of actions"):
        kl_divergence_logits(tensor(0.0), tensor(0.0))


def test_refuses_integer_logits():
    with pytest.raises(ValueError, match="floating point, not"):
        kl_divergence_logits(tensor([1, 2]), tensor([1, 2]))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_logits_of_any_size_keep_a_finite_value(scale):
    p, q = tensor([1.0, 0.0, -1.0]) * scale, tensor([0.0, 1.0, -1.0]) * scale
    expected = scale if scale > 1 else 0.0  # P is sure, or both are uniform
    assert_close(kl_divergence_logits(p, q).item(), expected)
    assert kl_divergence_logits(-q, -p) == 0  # they agree about the last action


def test_a_probability_that_underflows_in_p_counts_as_masked_in_p():
    p = tensor([0.0, -200.0], requires_grad=True)
    masked = kl_divergence_logits(p, tensor([0.0, -inf]))
    assert masked == 0
    masked.backward()
    assert p.grad.isfinite().all()
    # float64 can hold exp(-200), and then it is not nothing.
    assert kl_divergence_logits(p.double(), tensor([0.0, -inf])) == inf


def test_disjoint_policies_are_infinitely_far_apart():
    assert kl_divergence_logits(tensor([0.0, -inf]), tensor([-inf, 0.0])) == inf


def test_where_the_divergence_is_infinite_only_q_has_a_gradient():
    p = tensor([0.0, 0.0], requires_grad=True)
    q = tensor([0.0, -inf], requires_grad=True)
    kl_divergence_logits(p, q).backward()
    assert not p.grad.isfinite().any()
    assert_close(q.grad, tensor([1.0, 0.0]) - tensor([0.5, 0.5]))


def test_a_row_of_the_batch_without_a_finite_value_leaves_the_others_alone():
    p = torch.zeros(2, 2, requires_grad=True)
    q = tensor([[0.0, -inf], [0.0, 1.0]])
    kl_divergence_logits(p, q)[1].backward()
    alone = torch.zeros(2, requires_grad=True)
    kl_divergence_logits(alone, q[1]).backward()
    assert_close(p.grad[1], alone.grad)


def test_refuses_a_batch_beside_a_column():
    with pytest.raises(ValueError, match="P has 4 actions, Q has 1"):
        kl_divergence_logits(torch.zeros(4), torch.zeros(4, 1))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (5, 1, 2, 3), (0, 3)])
def test_keeps_any_leading_shape(shape):
    assert kl_divergence_logits(torch.zeros(shape), torch.ones(3)).shape == shape[:-1]


@given(two_policies(), st.floats(1e-6, 1e-2))
def test_is_never_negative_in_float32_however_close(policies, step):
    p, q = (x.float() for x in policies)
    assert kl_divergence_logits(p, p + step * q) >= 0


def close_policies(rows, actions, kl):
    """Logits in float32 whose KL is about this, and that KL from float64."""
    torch.manual_seed(0)
    p = torch.randn(rows, actions)
    q = p + (2 * kl) ** 0.5 * torch.randn(rows, actions)
    return p, q, kl_divergence_logits(p.double(), q.double())


def relative_error(kl, exact):
    return (kl.double() / exact - 1).abs()


def test_a_large_vocabulary_keeps_its_digits_in_float32():
    p, q, exact = close_policies(20, 131_072, 5e-7)
    kl = kl_divergence_logits(p, q)
    assert (kl >= 0).all()
    # A term has a relative error of 1e-4, and 131,072 of them average.
    assert relative_error(kl, exact).max() < 1e-4
    theirs = kl_divergence(Categorical(logits=p), Categorical(logits=q))
    assert relative_error(theirs, exact).median() > 0.1


def test_four_actions_keep_their_digits_in_float32():
    p, q, exact = close_policies(10_000, 4, 1e-7)
    kl = kl_divergence_logits(p, q)
    assert (kl >= 0).all()
    # Two logits of about 1 are rounded at 6e-8 each, and differ by 4e-4.
    usual = exact > 1e-8
    assert relative_error(kl, exact).median() < 1e-3
    assert relative_error(kl, exact)[usual].max() < 1e-2
    theirs = kl_divergence(Categorical(logits=p), Categorical(logits=q))
    assert (theirs < 0).any()


def test_a_large_vocabulary_in_bfloat16():
    torch.manual_seed(0)
    p, q = torch.randn(20, 50_000), 0.1 * torch.randn(20, 50_000)
    p, q = p.bfloat16(), (p + q).bfloat16()
    exact = kl_divergence_logits(p.double(), q.double())
    eps = torch.finfo(torch.bfloat16).eps
    # Rounding to nearest is off by at most half a unit in the last place.
    assert relative_error(kl_divergence_logits(p, q), exact).max() < 0.51 * eps


MASKS = [-inf, -1e4, -1e8, torch.finfo(torch.float32).min]


@pytest.mark.parametrize("in_q", MASKS)
@pytest.mark.parametrize("in_p", MASKS)
def test_soft_masks_are_masks(in_p, in_q):
    p = tensor([0.0, 1.0, in_p], requires_grad=True)
    q = tensor([0.3, 0.0, in_q], requires_grad=True)
    kl = kl_divergence_logits(p, q)
    short = [x.detach()[:2].requires_grad_() for x in (p, q)]
    expected = kl_divergence_logits(*short)
    assert_close(kl, expected)
    slopes = torch.autograd.grad(kl, (p, q))
    for slope, right in zip(slopes, torch.autograd.grad(expected, short), strict=True):
        assert_close(slope, torch.cat([right, tensor([0.0])]))


@pytest.mark.parametrize("logit", [-80.0, -87.0, -88.0, -95.0, -103.0, -110.0])
@pytest.mark.parametrize("swap", [False, True])
def test_probabilities_around_the_smallest_normal_number(logit, swap):
    rows = [tensor([0.0, x], requires_grad=True) for x in (logit, 0.0)]
    rows = rows[::-1] if swap else rows
    kl = kl_divergence_logits(*rows)
    exact = kl_divergence_logits(*(x.detach().double() for x in rows))
    # A logarithm of 87 is rounded at 4e-6, and its exponential in proportion.
    assert_close(kl.double(), exact, rtol=1e-5, atol=0)
    for slope in torch.autograd.grad(kl, rows):
        assert slope.isfinite().all()


# torch's own modules for forward mode use a deprecated function of torch.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_forward_and_reverse_mode_agree():
    p, q, tangent = torch.randn(3, 5, dtype=torch.float64)
    for function, at in (
        (lambda x: kl_divergence_logits(x, q), p),
        (lambda x: kl_divergence_logits(p, x), q),
    ):
        _, forward = torch.func.jvp(function, (at,), (tangent,))
        assert_close(forward, torch.func.grad(function)(at) @ tangent)
        both = torch.func.hessian(function)(at)  # forward over reverse
        assert_close(both, hessian(function, at))


def test_is_differentiable_twice():
    p = tensor([1.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    q = tensor([0.0, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(kl_divergence_logits, (p, q))


def test_the_curvature_at_the_same_policy_is_the_fisher_information():
    logits = tensor([1.0, 0.0, -1.0, -inf], dtype=torch.float64)
    p = logits.softmax(-1)
    fisher = p.diag() - p.outer(p)  # the covariance of the score
    for kl in (
        lambda x: kl_divergence_logits(x, logits),
        lambda x: kl_divergence_logits(logits, x),
    ):
        assert_close(hessian(kl, logits), fisher)


@pytest.mark.parametrize("rare", [-80.0, -88.0, -90.0, -100.0, -103.0, -110.0])
def test_equal_logits_give_zero_however_rare_an_action(rare):
    logits = tensor([0.0, rare, -1.0])
    assert kl_divergence_logits(logits, logits) == 0
    assert kl_divergence_logits(logits.double(), 8 * logits.double() / 8) == 0
    assert kl_divergence_logits(logits, tensor([0.0, -inf, -1.0])) in (0, inf)
