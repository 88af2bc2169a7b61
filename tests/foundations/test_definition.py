"""The definition, its conventions for zeros, and what a KL is not."""

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.testing import assert_close

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.definition import kl_of_probabilities, nats_to_bits


@st.composite
def distributions(draw, count=2):
    """Distributions over the same 1 to 5 actions."""
    actions = draw(st.integers(1, 5))
    row = st.lists(st.floats(-8, 8), min_size=actions, max_size=actions)
    return [tensor(draw(row), dtype=torch.float64).softmax(-1) for _ in range(count)]


@given(distributions())
def test_agrees_with_thirty_digits(rows):
    p, q = rows
    with mpmath.workdps(30):
        pairs = zip(p.tolist(), q.tolist(), strict=True)
        exact = mpmath.fsum(a * mpmath.log(mpmath.mpf(a) / b) for a, b in pairs)
        # What the rows lack of a sum of 1: the exact KL would be of other rows.
        exact += mpmath.fsum(q.tolist()) - mpmath.fsum(p.tolist())
    # A log-ratio of at most 16 is rounded at 2e-15, near 1 relative to itself.
    assert_close(kl_of_probabilities(p, q).item(), float(exact), rtol=1e-13, atol=1e-30)


@given(distributions())
def test_agrees_with_the_logits(rows):
    p, q = rows
    assert_close(kl_of_probabilities(p, q), kl_divergence_logits(p.log(), q.log()))


@given(distributions())
def test_is_never_negative(rows):
    assert kl_of_probabilities(*rows) >= 0


@given(distributions(), st.floats(1e-9, 1e-2))
def test_keeps_its_digits_for_policies_that_nearly_agree(rows, share):
    p, q = (x.float() for x in rows)
    near = (1 - share) * p + share * q
    exact = kl_of_probabilities(p.double(), near.double())
    found = kl_of_probabilities(p, near)
    assert found >= 0
    # The change of each probability keeps its digits; their squares add up.
    assert_close(found.double(), exact, rtol=1e-5, atol=1e-30)


@given(distributions())
def test_is_zero_only_for_the_same_distribution(rows):
    p, q = rows
    assert kl_of_probabilities(p, p) == 0
    if (p - q).abs().max() > 1e-3:
        assert kl_of_probabilities(p, q) > 1e-7  # half the square of the distance


@given(distributions())
def test_a_bit_is_log_two_nats(rows):
    nats = kl_of_probabilities(*rows)
    assert_close(nats_to_bits(nats) * tensor(2.0).double().log(), nats)


def test_zero_times_log_zero_is_zero():
    assert_close(
        kl_of_probabilities(tensor([0.0, 1.0]), tensor([0.5, 0.5])), tensor(2.0).log()
    )
    assert kl_of_probabilities(tensor([0.0, 1.0]), tensor([0.0, 1.0])) == 0


def test_gradients_are_finite_at_zero():
    p, q = tensor([0.0, 0.5, 0.5]), tensor([0.0, 0.4, 0.6])
    p.requires_grad_(), q.requires_grad_()
    kl_of_probabilities(p, q).backward()
    # Of p log(p/q) - p + q, whose slope differs by what a softmax removes.
    assert_close(q.grad[1:], (1 - p / q)[1:].detach())
    assert_close(p.grad, torch.cat([tensor([0.0]), (p / q).log()[1:]]).detach())
    assert q.grad.isfinite().all()


@given(distributions())
def test_gradient_is_the_derivative(rows):
    logits = [row.log().requires_grad_() for row in rows]

    def through_softmax(p, q):
        return kl_of_probabilities(p.softmax(-1), q.softmax(-1))

    assert torch.autograd.gradcheck(through_softmax, logits)


def test_what_q_excludes_is_infinite():
    assert kl_of_probabilities(tensor([0.5, 0.5]), tensor([0.0, 1.0])) == inf


def test_there_is_no_triangle_inequality():
    p, q, r = (tensor([x, 1 - x]) for x in (0.5, 0.2, 0.05))
    through = kl_of_probabilities(p, q) + kl_of_probabilities(q, r)
    assert kl_of_probabilities(p, r) > 1.5 * through


@pytest.mark.parametrize("row", [[0.5, 0.6], [0.5, 0.4], [-0.5, 1.5], [nan, 0.5]])
def test_a_row_that_is_no_distribution_is_nan(row):
    coin = tensor([0.5, 0.5])
    beside = torch.stack([tensor(row), coin])
    both = coin.expand(2, 2)
    for found in (kl_of_probabilities(both, beside), kl_of_probabilities(beside, both)):
        assert found[0].isnan()
        assert found[1] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("actions", [3, 50, 50_000])
def test_a_softmax_in_half_precision_is_a_distribution(dtype, actions):
    torch.manual_seed(0)
    logits = torch.randn(2, 200 if actions < 1000 else 4, actions)
    p, q = logits.to(dtype).softmax(-1)
    assert kl_of_probabilities(p, q).isfinite().all()
    assert kl_of_probabilities(p.float(), q.float()).isfinite().all()
    assert (kl_of_probabilities(p, p) == 0).all()


def test_refuses_different_shapes():
    with pytest.raises(ValueError, match=r"q is \[1\], p is \[2\]"):
        kl_of_probabilities(tensor([0.5, 0.5]), tensor([1.0]))
