"""The chain rule: a joint divergence in parts, checked by listing every action."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.autograd.functional import hessian
from torch.testing import assert_close

from snippets.exact.categorical import kl_divergence_logits
from snippets.exact.gaussian import kl_gaussian
from snippets.exact.hybrid import kl_autoregressive, kl_hybrid


@st.composite
def two_policies(draw):
    """Logits of two choices, the second given the first, of P and of Q."""
    actions, vocab = draw(st.integers(1, 4)), draw(st.integers(1, 4))

    def logits(*shape):
        count = torch.Size(shape).numel()
        row = st.lists(st.floats(-6, 6), min_size=count, max_size=count)
        return tensor(draw(row), dtype=torch.float64).reshape(shape)

    first = [logits(actions) for _ in "PQ"]
    return *first, *(logits(actions, vocab) for _ in "PQ")


def joint(first, later):
    """Log-probabilities of every pair of choices."""
    return (first.log_softmax(-1)[..., None] + later.log_softmax(-1)).flatten(-2)


@given(two_policies())
def test_is_the_kl_of_all_pairs_listed(policies):
    p, q, later_p, later_q = policies
    listed = kl_divergence_logits(joint(p, later_p), joint(q, later_q))
    assert_close(kl_autoregressive(*policies), listed)


@given(two_policies())
def test_is_exactly_zero_for_the_same_policy(policies):
    p, _, later, _ = policies
    assert kl_autoregressive(p, p, later, later) == 0


@given(two_policies())
def test_gradient_is_the_derivative(policies):
    leaves = [x.requires_grad_() for x in policies]
    assert torch.autograd.gradcheck(kl_autoregressive, leaves)


@given(two_policies())
def test_the_marginals_of_the_second_choice_are_a_lower_bound(policies):
    p, q, later_p, later_q = policies
    marginals = [
        (x.softmax(-1)[:, None] * later.softmax(-1)).sum(0).log()
        for x, later in ((p, later_p), (q, later_q))
    ]
    assert kl_divergence_logits(*marginals) <= kl_autoregressive(*policies) + 1e-12


def test_samples_of_a_hybrid_action_agree_within_their_error():
    torch.manual_seed(0)
    p, q = tensor([0.5, -0.5]), tensor([0.0, 0.0])
    mean_p, mean_q = tensor([[0.0], [1.0]]), tensor([[0.5], [1.5]])
    std = torch.ones(2, 1)
    exact = kl_hybrid(p, q, kl_gaussian(mean_p, std, mean_q, std))
    choice = p.softmax(-1).multinomial(100_000, replacement=True)
    parameter = mean_p[choice] + torch.randn(100_000, 1)
    log_ratio = (p.log_softmax(-1) - q.log_softmax(-1))[choice]
    moved = (parameter - mean_q[choice]).square() - (
        parameter - mean_p[choice]
    ).square()
    log_ratio = log_ratio + moved[:, 0] / 2
    error = log_ratio.std() / len(choice) ** 0.5
    # Five standard errors: a right value is outside once in two million seeds.
    assert abs(log_ratio.mean() - exact) < 5 * error


def test_the_curvature_at_the_same_policy_is_the_fisher_information():
    first = tensor([0.5, -0.5], dtype=torch.float64)
    later = tensor([[1.0, 0.0, 0.0], [0.0, 2.0, -1.0]], dtype=torch.float64)
    both = torch.cat([first, later.flatten()])

    def parts(x):
        return x[:2], x[2:].reshape(2, 3)

    def kl(p, q):
        rows = zip(parts(p), parts(q), strict=True)
        (p, q), (later_p, later_q) = rows
        return kl_autoregressive(p, q, later_p, later_q)

    def scores(x):
        return joint(*parts(x))

    score = torch.autograd.functional.jacobian(scores, both)  # of each pair
    fisher = score.T @ (scores(both).exp()[:, None] * score)
    for moved in (lambda x: kl(x, both), lambda x: kl(both, x)):
        assert_close(hessian(moved, both), fisher)


def test_what_p_never_chooses_does_not_count():
    p = tensor([0.0, -inf], requires_grad=True)
    kl = kl_hybrid(p, torch.zeros(2), tensor([0.5, inf]))
    kl.backward()
    assert_close(kl, tensor(0.5) + tensor(2.0).log())
    assert p.grad.isfinite().all()


def test_refuses_parameters_of_other_choices():
    with pytest.raises(ValueError, match=r"kl_given is \[3\]"):
        kl_hybrid(torch.zeros(2), torch.zeros(2), torch.zeros(3))


def test_what_follows_a_choice_that_p_never_makes_is_not_read():
    p = tensor([0.0, -inf], requires_grad=True)
    for never in ([-inf, -inf, -inf], [nan, 0.0, 0.0], [inf, 0.0, 0.0]):
        later_p = tensor([[0.0, 1.0, 2.0], never], requires_grad=True)
        later_q = tensor([[0.0, 0.0, 0.0], never], requires_grad=True)
        kl = kl_autoregressive(p, torch.zeros(2), later_p, later_q)
        alone = kl_divergence_logits(later_p[0].detach(), later_q[0].detach())
        assert_close(kl.detach(), tensor(2.0).log() + alone)
        for slope in torch.autograd.grad(kl, (p, later_p, later_q)):
            assert slope.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    torch.manual_seed(0)
    first, later = torch.randn(2, 50, 3), torch.randn(2, 50, 3, 40)
    rows = [x.to(dtype) for x in (*first, *later)]
    exact = kl_autoregressive(*(x.double() for x in rows))
    eps = torch.finfo(dtype).eps
    # Rounding to nearest is off by at most half a unit in the last place.
    assert_close(kl_autoregressive(*rows).double(), exact, rtol=0.51 * eps, atol=0)


@given(two_policies(), st.floats(1e-6, 1e-2))
def test_is_never_negative_in_float32_however_close(policies, step):
    p, q, later_p, later_q = (x.float() for x in policies)
    assert kl_autoregressive(p, p + step * q, later_p, later_p + step * later_q) >= 0


def test_refuses_later_choices_of_other_first_ones():
    with pytest.raises(ValueError, match=r"later_p is \[3, 4\]"):
        kl_autoregressive(*torch.zeros(2, 2), *torch.zeros(2, 3, 4))
