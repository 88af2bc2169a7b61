"""MPO's dual has its minimum where the KL is epsilon; its projection is a KL."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.distributions import Categorical, Normal, kl_divergence
from torch.testing import assert_close

from snippets.algorithms.regularised.mpo import (
    constraint_losses,
    decoupled_kls,
    projection_loss,
    solve_temperature,
    temperature_dual,
)
from snippets.algorithms.regularised.optimal_policy import optimal_policy
from snippets.exact.categorical import kl_divergence_logits
from snippets.lab.mdp import action_values, expected_return, small_problem

PROBLEM = small_problem(torch.float64)


@st.composite
def tables(draw):
    """Logits or values for three states and three actions."""
    row = st.lists(st.floats(-3, 3), min_size=9, max_size=9)
    return tensor(draw(row), dtype=torch.float64).reshape(3, 3)


@st.composite
def gaussians(draw):
    """Mean and log standard deviation of old and new, four dimensions."""
    row = st.lists(st.floats(-2, 2), min_size=16, max_size=16)
    at = tensor(draw(row), dtype=torch.float64).reshape(4, 4)
    names = ("old_mean", "old_log_std", "new_mean", "new_log_std")
    return dict(zip(names, at, strict=True))


# No action above 0.79, so the greedy policy is 0.24 nats away in every state.
open_minded = tables().map(lambda logits: logits / 3)
temperatures = st.floats(0.1, 10).map(lambda x: tensor(x, dtype=torch.float64))


def named(old, q):
    """The arguments of the E-step, by name."""
    return {"old_logits": old, "action_values": q}


def target_of(old, q, eta):
    """The E-step's policy."""
    return optimal_policy(ref_logits=old, rewards=q, beta=eta)


def reached(old, q, eta):
    """The mean KL(target || old), in float64."""
    old, q, eta = old.double(), q.double(), eta.double()
    return kl_divergence_logits(target_of(old, q, eta), old).mean()


@given(tables(), tables(), temperatures, st.floats(0.01, 1))
def test_the_slope_of_the_dual_is_epsilon_less_the_divergence(old, q, eta, epsilon):
    eta.requires_grad_()
    dual = temperature_dual(**named(old, q), eta=eta, epsilon=epsilon).mean()
    (slope,) = torch.autograd.grad(dual, eta)
    # Q / eta is of order 30, and its rounding is the tolerance.
    expected = epsilon - reached(old, q, eta.detach())
    assert_close(slope, expected, atol=1e-12, rtol=1e-7)


@given(open_minded, st.floats(0.01, 0.2))
def test_the_solved_temperature_meets_the_constraint(old, epsilon):
    q = action_values(PROBLEM, old.softmax(-1))
    eta = solve_temperature(**named(old, q), epsilon=epsilon)
    # What the docstring states is 1e-6.
    kl = kl_divergence_logits(target_of(old, q, eta), old).mean()
    assert_close(kl, tensor(epsilon, dtype=torch.float64), atol=0, rtol=1e-9)
    dual = [
        temperature_dual(**named(old, q), eta=eta * x, epsilon=epsilon).mean()
        for x in (0.99, 1.0, 1.01)
    ]
    assert dual[1] < min(dual[0], dual[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [1e-9, 1e-4, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e-3, 1.0, 1e4, 1e12])
def test_the_constraint_holds_whatever_the_scale_of_q(scale, epsilon, dtype):
    torch.manual_seed(0)
    old, q = torch.randn(2, 4, 6, dtype=torch.float64)
    q = q * scale * tensor([[1.0], [1e4], [1e-4], [1.0]])  # states of several scales
    q[0, 1] = q[0, 0] * (1 + 1e-6)  # and two actions that are nearly as good
    old, q = old.to(dtype), q.to(dtype)
    eta = solve_temperature(**named(old, q), epsilon=epsilon)
    assert eta.dtype == dtype
    expected = tensor(epsilon, dtype=torch.float64)
    assert_close(reached(old, q, eta), expected, atol=0, rtol=1e-6)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0])
def test_the_constraint_holds_up_to_the_greedy_policy(epsilon):
    old, q = torch.zeros(1, 5).double(), torch.arange(5.0)[None].double()
    within = math.log(5) - epsilon / 1e6
    eta = solve_temperature(**named(old, q), epsilon=within)
    expected = tensor(within, dtype=torch.float64)
    assert_close(reached(old, q, eta), expected, atol=0, rtol=1e-6)


@given(open_minded, tables(), st.floats(0.02, 0.2))
def test_no_policy_within_epsilon_has_a_higher_mean_value(old, q, epsilon):
    q = q + tensor([0.0, 7.0, 14.0])  # so that greedy is far from every old policy
    new = torch.randn(200, 3, 3, dtype=torch.float64)
    near = old.lerp(new, 0.2)
    everywhere = old.expand_as(near)
    within = kl_divergence_logits(near, everywhere).mean(-1) <= epsilon
    eta = solve_temperature(**named(old, q), epsilon=epsilon)
    best = (target_of(old, q, eta).exp() * q).sum(-1).mean()
    earned = (near.softmax(-1) * q).sum(-1).mean(-1)[within]
    assert (earned <= best + 1e-9).all()  # the bisection's own error, times Q


@given(open_minded, st.floats(0.01, 0.2))
def test_the_improved_policy_returns_more(old, epsilon):
    q = action_values(PROBLEM, old.softmax(-1))
    eta = solve_temperature(**named(old, q), epsilon=epsilon)
    before = expected_return(PROBLEM, old.softmax(-1))
    assert expected_return(PROBLEM, target_of(old, q, eta).exp()) >= before


def test_samples_are_a_policy_uniform_over_themselves():
    q = torch.randn(5, 64, dtype=torch.float64)
    eta, even = tensor(0.7, dtype=torch.float64), torch.zeros_like(q)
    assert_close(target_of(even, q, eta).exp(), (q / eta).softmax(-1))
    expected = eta * (0.1 + (q / eta).exp().mean(-1).log())
    assert_close(temperature_dual(**named(even, q), eta=eta, epsilon=0.1), expected)


def test_without_log_n_the_constraint_is_another():
    # logsumexp where logmeanexp belongs: epsilon grows by the log of the number.
    q = torch.randn(1, 64, dtype=torch.float64)
    samples = named(torch.zeros_like(q), q)
    for eta in (0.1, 1.0, 10.0):
        at = tensor(eta, dtype=torch.float64, requires_grad=True)
        wrong = at * (0.1 + (q / at).logsumexp(-1))
        right = temperature_dual(**samples, eta=at, epsilon=0.1 + math.log(64))
        slopes = [torch.autograd.grad(x.sum(), at)[0] for x in (wrong, right)]
        assert_close(*slopes)
        assert slopes[0] > 0  # for every temperature: the minimum is at zero


@given(tables(), tables())
def test_the_projection_is_a_divergence_plus_an_entropy(target, new):
    p, q = Categorical(logits=target), Categorical(logits=new)
    loss = projection_loss(target_logits=target, new_log_probs=new.log_softmax(-1))
    assert_close(loss, kl_divergence(p, q) + p.entropy())


@given(tables(), tables())
def test_the_projection_pulls_towards_the_target(target, new):
    new, target = new.requires_grad_(), target.requires_grad_()
    loss = projection_loss(target_logits=target, new_log_probs=new.log_softmax(-1))
    loss.sum().backward()
    # A difference of probabilities.
    expected = (new.softmax(-1) - target.softmax(-1)).detach()
    assert_close(new.grad, expected, atol=1e-14, rtol=1e-7)
    assert target.grad is None


@given(gaussians())
def test_each_part_changes_one_thing(at):
    old = Normal(at["old_mean"], at["old_log_std"].exp())
    of_mean, of_std = decoupled_kls(**at)
    # torch squares the ratio of deviations up to e^4 before it takes the logarithm.
    moved = kl_divergence(old, Normal(at["new_mean"], old.scale))
    assert_close(of_mean, moved, atol=1e-12, rtol=1e-7)
    widened = kl_divergence(old, Normal(at["old_mean"], at["new_log_std"].exp()))
    assert_close(of_std, widened, atol=1e-12, rtol=1e-7)


@given(gaussians())
def test_the_parts_sum_to_the_joint_where_one_thing_changes(at):
    for kept in ("mean", "log_std"):
        changed = at | {f"new_{kept}": at[f"old_{kept}"]}
        old = Normal(at["old_mean"], at["old_log_std"].exp())
        new = Normal(changed["new_mean"], changed["new_log_std"].exp())
        joint = kl_divergence(old, new).sum(-1)
        assert_close(
            sum(decoupled_kls(**changed)).sum(-1), joint, atol=1e-12, rtol=1e-7
        )


def test_the_parts_do_not_sum_to_the_joint_where_both_change():
    at = {
        "old_mean": tensor([0.0]),
        "old_log_std": tensor([0.0]),
        "new_mean": tensor([1.0]),
        "new_log_std": tensor([0.5]).log(),
    }
    joint = kl_divergence(Normal(0.0, 1.0), Normal(1.0, 0.5))
    assert joint > 1.5 * sum(decoupled_kls(**at))


def test_the_multiplier_grows_while_the_constraint_is_broken():
    multiplier = tensor([2.0], requires_grad=True)
    kl = tensor([0.3], requires_grad=True)
    named_losses = {"kl": kl, "multiplier": multiplier}
    for epsilon, sign in ((0.1, -1), (0.5, 1)):
        _, dual = constraint_losses(**named_losses, epsilon=epsilon)
        slopes = torch.autograd.grad(dual, (multiplier, kl), allow_unused=True)
        assert slopes[0].sign() == sign  # descent
        assert_close(slopes[0], epsilon - kl.detach())
        assert slopes[1] is None
    penalty, _ = constraint_losses(**named_losses, epsilon=0.1)
    slopes = torch.autograd.grad(penalty, (multiplier, kl), allow_unused=True)
    assert slopes == (None, tensor([2.0]))


def test_a_multiplier_of_zero_gives_the_unpenalised_number():
    kl = tensor([inf, 0.3], requires_grad=True)
    penalty, _ = constraint_losses(kl=kl, multiplier=tensor([0.0, 2.0]), epsilon=0.1)
    assert_close(penalty.detach(), tensor([0.0, 0.6]))
    penalty.sum().backward()
    assert kl.grad.tolist() == [0.0, 2.0]


@pytest.mark.parametrize("mask", [-inf, -1e4, -1e8, torch.finfo(torch.float32).min])
def test_a_masked_action_is_as_good_as_absent(mask):
    torch.manual_seed(0)
    old, q = torch.randn(2, 4, 3)
    eta = tensor(0.5)
    masked = torch.cat([old, torch.full((4, 1), mask)], -1)
    values = torch.cat([q, torch.full((4, 1), 9.0)], -1)
    target, narrow = target_of(masked, values, eta), target_of(old, q, eta)
    assert_close(target[:, :3], narrow)
    short = solve_temperature(**named(old, q), epsilon=0.1)
    assert_close(solve_temperature(**named(masked, values), epsilon=0.1), short)
    dual = temperature_dual(**named(masked, values), eta=eta, epsilon=0.1)
    assert_close(dual, temperature_dual(**named(old, q), eta=eta, epsilon=0.1))
    new = torch.cat([q, torch.full((4, 1), -inf)], -1).requires_grad_()
    loss = projection_loss(target_logits=target, new_log_probs=new.log_softmax(-1))
    expected = projection_loss(target_logits=narrow, new_log_probs=q.log_softmax(-1))
    assert_close(loss, expected)
    loss.sum().backward()
    assert new.grad.isfinite().all()


def test_nothing_changed_is_exactly_zero():
    mean, log_std = torch.randn(2, 100, 5)
    same = {"old_mean": mean, "old_log_std": log_std}
    same |= {"new_mean": mean, "new_log_std": log_std}
    for part in decoupled_kls(**same):
        assert (part == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype):
    old, q = torch.randn(2, 4, 50).to(dtype)
    wide = named(old.float(), q.float())
    half = temperature_dual(**named(old, q), eta=0.7, epsilon=0.1)
    expected = temperature_dual(**wide, eta=0.7, epsilon=0.1).to(dtype)
    assert_close(half, expected, atol=0, rtol=0)
    eta = solve_temperature(**named(old, q), epsilon=0.1)
    assert eta == solve_temperature(**wide, epsilon=0.1)
    assert eta.dtype == torch.float32
    loss = projection_loss(target_logits=old, new_log_probs=q)
    expected = projection_loss(target_logits=old.float(), new_log_probs=q.float())
    assert_close(loss, expected.to(dtype), atol=0, rtol=0)


def test_batches_and_float32():
    old, q = torch.randn(2, 4, 5, 6)
    eta = solve_temperature(**named(old, q), epsilon=0.1)
    assert eta.dtype == torch.float32
    dual = temperature_dual(**named(old, q), eta=eta, epsilon=0.1)
    assert dual.shape == (4, 5)
    assert dual.dtype == torch.float32
    log_probs = old.log_softmax(-1)
    assert projection_loss(target_logits=q, new_log_probs=log_probs).shape == (4, 5)
    parts = decoupled_kls(old_mean=old, old_log_std=old, new_mean=q, new_log_std=q)
    assert parts[0].shape == (4, 5, 6)


@pytest.mark.parametrize("flat", [0.0, 5.0])
def test_an_epsilon_beyond_greedy_is_refused(flat):
    with pytest.raises(ValueError, match=r"epsilon is 2\.0, beyond greedy"):
        solve_temperature(
            **named(torch.zeros(1, 3), tensor([[0.0, 1.0, 2.0]])), epsilon=2.0
        )
    with pytest.raises(ValueError, match=r"epsilon is 0\.1, beyond greedy"):
        solve_temperature(
            **named(torch.zeros(1, 3), torch.full((1, 3), flat)), epsilon=0.1
        )


@pytest.mark.parametrize("epsilon", [0.0, -1.0, nan])
def test_a_limit_that_is_not_positive_is_refused(epsilon):
    at = named(torch.zeros(1, 3), tensor([[0.0, 1.0, 2.0]]))
    with pytest.raises(ValueError, match="epsilon is"):
        solve_temperature(**at, epsilon=epsilon)
    with pytest.raises(ValueError, match="epsilon is"):
        temperature_dual(**at, eta=1.0, epsilon=epsilon)
    with pytest.raises(ValueError, match="epsilon is"):
        constraint_losses(kl=torch.ones(1), multiplier=torch.ones(1), epsilon=epsilon)
