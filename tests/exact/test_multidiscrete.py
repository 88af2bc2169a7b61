"""`kl_multidiscrete` is the KL of the joint distribution of independent choices."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.autograd.functional import hessian
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from snippets.exact.categorical import kl_divergence_logits
from snippets.exact.multidiscrete import kl_multidiscrete


@st.composite
def two_policies(draw):
    """The choices, and the logits of two policies over them."""
    choices = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    row = st.lists(st.floats(-8, 8), min_size=sum(choices), max_size=sum(choices))
    return choices, *(tensor(draw(row), dtype=torch.float64) for _ in "PQ")


def joint(logits, choices):
    """Log-probabilities of every combination, listed."""
    total = torch.zeros(1, dtype=torch.float64)
    for row in logits.split(choices):
        total = (total[:, None] + row.log_softmax(-1)).flatten()
    return total


@given(two_policies())
def test_is_the_kl_of_all_combinations_listed(policies):
    choices, p, q = policies
    listed = kl_divergence_logits(joint(p, choices), joint(q, choices))
    assert_close(kl_multidiscrete(p, q, choices), listed)


@given(two_policies())
def test_is_the_sum_of_what_torch_says_of_each_choice(policies):
    choices, p, q = policies
    rows = zip(p.split(choices), q.split(choices), strict=True)
    expected = sum(
        kl_divergence(Categorical(logits=a), Categorical(logits=b)) for a, b in rows
    )
    assert_close(kl_multidiscrete(p, q, choices), expected)


@given(two_policies())
def test_is_exactly_zero_for_the_same_policy(policies):
    choices, p, _ = policies
    assert kl_multidiscrete(p, p, choices) == 0


def test_gradient_is_finite_under_a_mask():
    p = tensor([0.0, -inf, 1.0, 2.0], requires_grad=True)
    kl_multidiscrete(p, tensor([0.0, -inf, 0.0, 0.0]), [2, 2]).backward()
    assert p.grad.isfinite().all()


def test_the_curvature_at_the_same_policy_is_the_fisher_information():
    logits = tensor([1.0, 0.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    blocks = [
        p.diag() - p.outer(p) for p in (x.softmax(-1) for x in logits.split([2, 3]))
    ]
    for kl in (
        lambda x: kl_multidiscrete(x, logits, [2, 3]),
        lambda x: kl_multidiscrete(logits, x, [2, 3]),
    ):
        assert_close(hessian(kl, logits), torch.block_diag(*blocks))


def test_one_softmax_over_all_logits_is_another_number():
    torch.manual_seed(0)
    p, q = torch.randn(2, 5)
    assert abs(kl_multidiscrete(p, q, [2, 3]) - kl_divergence_logits(p, q)) > 0.1


def test_keeps_batches():
    p, q = torch.zeros(7, 2, 5), torch.ones(2, 5)
    assert kl_multidiscrete(p, q, (2, 3)).shape == (7, 2)


def test_refuses_choices_that_do_not_fit():
    with pytest.raises(ValueError, match=r"logits_q has \[4\] logits"):
        kl_multidiscrete(torch.zeros(5), torch.zeros(4), [2, 3])


@pytest.mark.parametrize("choices", [[], [5, 0], [6, -1]])
def test_refuses_a_choice_without_actions(choices):
    with pytest.raises(ValueError, match="choices is"):
        kl_multidiscrete(torch.zeros(5), torch.zeros(5), choices)


def test_half_precision_is_rounded_once():
    torch.manual_seed(0)
    p, q = torch.randn(2, 20, 50).bfloat16()
    exact = kl_multidiscrete(p.double(), q.double(), [10] * 5)
    eps = torch.finfo(torch.bfloat16).eps
    got = kl_multidiscrete(p, q, [10] * 5).double()
    # Rounding to nearest is off by at most half a unit in the last place.
    assert_close(got, exact, rtol=0.51 * eps, atol=0)


@given(two_policies(), st.floats(1e-6, 1e-2))
def test_is_never_negative_in_float32_however_close(policies, step):
    choices, p, q = policies
    p, q = p.float(), q.float()
    assert kl_multidiscrete(p, p + step * q, choices) >= 0
