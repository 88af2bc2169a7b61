"""The Fisher matrix is the Hessian of both KLs, and they part at third order."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.autograd.functional import hessian
from torch.testing import assert_close

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.definition import kl_of_probabilities
from snippets.foundations.fisher import (
    fisher_of_logits,
    fisher_vector_product,
    probability_within,
    quadratic_kl,
)


@st.composite
def rows(draw, count=1):
    """Rows of numbers for the same 2 to 5 actions."""
    actions = draw(st.integers(2, 5))
    row = st.lists(st.floats(-3, 3), min_size=actions, max_size=actions)
    return [tensor(draw(row), dtype=torch.float64) for _ in range(count)]


@given(rows())
def test_is_the_hessian_of_both_directions(row):
    (p,) = row
    for direction in (
        lambda q: kl_divergence_logits(p, q),
        lambda q: kl_divergence_logits(q, p),
    ):
        assert_close(fisher_of_logits(p), hessian(direction, p), rtol=1e-7, atol=1e-10)


@given(rows())
def test_is_the_covariance_of_the_score(row):
    (p,) = row
    probabilities = p.softmax(-1)
    scores = torch.eye(len(p)).double() - probabilities  # one row per action
    covariance = scores.T @ (probabilities[:, None] * scores)
    assert_close(fisher_of_logits(p), covariance)


@given(rows(2))
def test_the_quadratic_form_is_that_of_the_matrix(pair):
    p, step = pair
    assert_close(quadratic_kl(p, step), step @ fisher_of_logits(p) @ step / 2)


@given(rows(2))
def test_both_directions_meet_it_at_third_order(pair):
    p, step = pair
    gaps = []
    for size in (1e-2, 5e-3):
        q = p + size * step
        model = quadratic_kl(p, size * step)
        both = kl_divergence_logits(p, q), kl_divergence_logits(q, p)
        gaps += [abs(kl - model) for kl in both]
    # Half the step leaves an eighth, and what the fourth order of 0.03 adds.
    assert gaps[2] <= gaps[0] / 7 + 2e-7
    assert gaps[3] <= gaps[1] / 7 + 2e-7


@given(rows(1))
def test_moving_all_logits_alike_changes_nothing(row):
    (p,) = row
    assert_close(quadratic_kl(p, torch.ones_like(p)), tensor(0.0).double())


@given(rows(2))
def test_the_product_is_that_of_the_matrix(pair):
    p, vector = pair
    assert_close(fisher_vector_product(p, vector), fisher_of_logits(p) @ vector)


@given(rows(2))
def test_the_product_is_the_hessian_vector_product_of_autograd(pair):
    p, vector = pair
    q = p.clone().requires_grad_()
    kl = kl_divergence_logits(p, q)
    (slope,) = torch.autograd.grad(kl, q, create_graph=True)
    (product,) = torch.autograd.grad(slope @ vector, q)
    assert_close(fisher_vector_product(p, vector), product, rtol=1e-7, atol=1e-12)


# Such that what is left of the others, at least 0.01 exp(-10), is far above rounding.
probability = st.floats(1e-4, 0.99)
budget = st.floats(1e-4, 0.1)


@given(probability, budget)
def test_the_whole_kl_is_used(p, kl):
    old = tensor([p, 1 - p], dtype=torch.float64)
    most = probability_within(old[0], kl)
    used = kl_of_probabilities(old, torch.stack([most, 1 - most]))
    # A rounding of 1e-16, over a KL of 1e-4 or over what is left of the others.
    assert_close(used.item(), kl, rtol=1e-9, atol=0)


def test_a_large_kl_allows_what_rounds_to_one():
    # What is left of the others is e to the -500: no float64 beside 1 can say it.
    left = 1 - probability_within(tensor(0.996).double(), 2.0)
    assert 0 <= left <= torch.finfo(torch.float64).eps


@given(rows(2), st.floats(0, 1))
def test_no_policy_within_the_kl_goes_further(pair, share):
    old, step = pair
    new = old + share * step
    kl = kl_divergence_logits(old, new).item()
    most = probability_within(old.softmax(-1), kl)
    least = 1 - probability_within(1 - old.softmax(-1), kl)
    slack = 2e-8  # a KL of 1e-16, which is rounding, already moves 1e-8
    assert (new.softmax(-1) <= most + slack).all()
    assert (new.softmax(-1) >= least - slack).all()


def test_a_coin_has_a_closed_form():
    kl = 0.01
    exact = (1 + math.sqrt(-math.expm1(-2 * kl))) / 2
    assert_close(probability_within(tensor([0.5]).double(), kl).item(), exact)


def test_without_a_kl_nothing_moves():
    p = tensor([0.5, 0.01, 0.999])
    assert_close(probability_within(p, 0.0), p)


def test_what_is_no_probability_is_nan_in_its_row_alone():
    found = probability_within(tensor([0.0, 1.0, -0.5, 1.5, nan, 0.5]), 0.01)
    assert found[:-1].isnan().all()
    assert found[-1].isfinite()


@pytest.mark.parametrize("kl", [-0.01, nan])
def test_refuses_what_is_no_kl(kl):
    with pytest.raises(ValueError, match="kl is"):
        probability_within(tensor(0.5), kl)


def test_the_most_probability_is_a_constant():
    p = tensor([0.5, 0.1], requires_grad=True)
    assert not probability_within(p, 0.01).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_twelve_orders_of_magnitude_of_p_and_of_the_kl(dtype):
    p = tensor([1e-12, 1e-6, 1e-3, 0.5, 1 - 1e-6], dtype=dtype)
    for kl in (1e-12, 1e-6, 1e-2, 1.0):
        most = probability_within(p, kl)
        exact = probability_within(p.double(), kl)
        assert_close(most.double(), exact, rtol=1e-5, atol=0)  # of the log-odds
        assert (most >= p * (1 - 1e-6)).all()


def test_a_nearly_sure_policy_keeps_the_digits_of_its_curvature():
    logits = tensor([0.0, -30.0, -31.0])
    exact = fisher_of_logits(logits.double())
    assert_close(fisher_of_logits(logits).double(), exact, rtol=1e-5, atol=0)


def test_what_p_never_does_is_not_read():
    logits = tensor([1.0, 0.0, -inf])
    for junk in (inf, -inf, nan):
        step = tensor([0.3, -0.2, junk])
        assert_close(quadratic_kl(logits, step), quadratic_kl(logits[:2], step[:2]))
        product = fisher_vector_product(logits, step)
        assert_close(product[:2], fisher_vector_product(logits[:2], step[:2]))
        assert product[2] == 0
