"""Where a penalty is put decides the gradient, and the gradient where training ends."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.testing import assert_close

from snippets.algorithms.regularised.optimal_policy import optimal_policy
from snippets.estimate.estimators import k1, k2, k3
from snippets.estimate.gradients import weighted_k3_loss
from snippets.estimate.placement import (
    kl_penalty,
    penalised_loss,
    penalised_reward,
    policy_gradient_loss,
)
from snippets.estimate.sampling import log_prob
from snippets.exact.categorical import kl_divergence_logits

REF = tensor([2.0, 1.0, 0.5, 0.0, -1.0, -1.5], dtype=torch.float64)
REWARDS = tensor([0.0, 0.3, 0.6, 0.2, 1.0, 0.5], dtype=torch.float64)
BETA = 0.5
BEST = optimal_policy(ref_logits=REF, rewards=REWARDS, beta=BETA)
IN_REWARD = {"k1": k1, "k2": k2, "k3": k3}
IN_LOSS = {
    "k1": lambda new, ref, _: k1(new, ref),
    "k2": lambda new, ref, _: k2(new, ref),
    "k3": lambda new, ref, _: k3(new, ref),
    "ρ k3": lambda new, ref, _: weighted_k3_loss(
        new_log_probs=new, old_log_probs=new.detach(), ref_log_probs=ref
    ),
    "exact": lambda _, __, logits: kl_divergence_logits(logits, REF.to(logits.dtype)),
}
WAYS = [("reward", name) for name in IN_REWARD] + [("loss", name) for name in IN_LOSS]
RIGHT = {("reward", "k1"), ("loss", "k2"), ("loss", "ρ k3"), ("loss", "exact")}


def loss_of(place, name, new, ref, advantages, logits):
    """One of the eight losses, from log-probabilities of the sampled actions."""
    if place == "reward":
        advantages = advantages - BETA * IN_REWARD[name](new, ref).detach()
    loss = policy_gradient_loss(
        new_log_probs=new, old_log_probs=new.detach(), advantages=advantages
    )
    if place == "loss":
        loss = loss + BETA * IN_LOSS[name](new, ref, logits)
    return loss


def follow(place, name, steps):
    """Where the expected gradient leads, all actions listed."""
    logits = REF.clone().requires_grad_()
    ref = REF.log_softmax(-1)
    for _ in range(steps):
        new = logits.log_softmax(-1)
        losses = loss_of(place, name, new, ref, REWARDS, logits)
        mean = new.detach().exp() @ losses.expand(6)
        (gradient,) = torch.autograd.grad(mean, logits)
        logits = (logits - gradient).detach().requires_grad_()
    return logits.detach().log_softmax(-1)


def sample(place, name, steps, batch):
    """The same from sampled batches, in float32, from a fixed seed."""
    torch.manual_seed(0)
    logits = REF.float().requires_grad_()
    for step in range(steps):
        actions = logits.detach().softmax(-1).multinomial(batch, replacement=True)
        new, ref = (
            log_prob(x.float().expand(batch, -1), actions=actions, temperature=1.0)
            for x in (logits, REF)
        )
        rewards = REWARDS.float()[actions]
        losses = loss_of(place, name, new, ref, rewards - rewards.mean(), logits)
        (gradient,) = torch.autograd.grad(losses.mean(), logits)
        logits = (logits - (1 - step / steps) * gradient).detach().requires_grad_()
    return logits.detach().double().log_softmax(-1)


@pytest.mark.parametrize(("place", "name"), sorted(RIGHT))
def test_four_ways_end_at_the_optimum(place, name):
    assert kl_divergence_logits(follow(place, name, 800), BEST) < 1e-10


def test_k3_in_the_loss_ends_at_the_optimum_of_the_other_direction():
    """Which maximises E[r] - β KL(ref || π): π = β ref / (λ - r), summing to 1."""
    ref, low, high = REF.softmax(-1), REWARDS.max(), REWARDS.max() + BETA
    for _ in range(200):
        middle = (low + high) / 2
        too_much = (BETA * ref / (middle - REWARDS)).sum() > 1
        low, high = (middle, high) if too_much else (low, middle)
    expected = BETA * ref / (high - REWARDS)
    found = follow("loss", "k3", 1500)
    # What plain descent leaves after 1500 steps.
    assert_close(found.exp(), expected, rtol=0, atol=1e-6)
    assert kl_divergence_logits(found, BEST) > 0.1


def test_k1_in_the_loss_ends_at_the_best_action():
    assert follow("loss", "k1", 3000)[REWARDS.argmax()].exp() > 0.99


@pytest.mark.parametrize("name", ["k2", "k3"])
def test_k2_and_k3_in_the_reward_drop_an_action(name):
    # Listed, nothing stops k3: later it overflows. Sampled, the action is never seen.
    end = follow("reward", name, 400)
    assert end.min().exp() < 1e-3 < BEST.min().exp() / 10
    assert kl_divergence_logits(end, BEST) > 0.1


@pytest.mark.parametrize("name", ["k2", "k3"])
def test_the_penalty_of_k2_and_k3_grows_as_an_action_vanishes(name):
    new = torch.linspace(-8, -1, 50)  # reference at -1
    penalty = IN_REWARD[name](new, torch.full_like(new, -1.0))
    assert (penalty.diff() < 0).all()
    assert (k1(new, torch.full_like(new, -1.0)).diff() > 0).all()


@pytest.mark.parametrize(("place", "name"), WAYS)
def test_sampled_training_repeats_and_ends_on_the_right_side(place, name):
    end = sample(place, name, 400, 256)
    # 400 batches of 256 with a falling step leave less than 1e-3 nats, over 5 seeds.
    assert (kl_divergence_logits(end, BEST) < 1e-3) == ((place, name) in RIGHT)
    if place == "reward":  # the same seed, the same end to the last bit
        assert torch.equal(end, sample(place, name, 400, 256))


@st.composite
def problems(draw):
    """Reference logits, rewards and a coefficient for 2 to 6 actions."""
    actions = draw(st.integers(2, 6))
    row = st.lists(st.floats(-3, 3), min_size=actions, max_size=actions)
    logits, rewards, new = tensor([draw(row) for _ in range(3)], dtype=torch.float64)
    return logits, rewards, new, draw(st.floats(0.1, 5))


@given(problems())
def test_at_the_optimum_the_penalised_reward_is_the_same_for_all_actions(problem):
    logits, rewards, _, beta = problem
    best = optimal_policy(ref_logits=logits, rewards=rewards, beta=beta)
    penalised = penalised_reward(
        rewards=rewards,
        old_log_probs=best,
        ref_log_probs=logits.log_softmax(-1),
        beta=beta,
    )
    assert_close(penalised, penalised[:1].expand_as(penalised))


@given(problems())
def test_both_places_have_the_gradient_of_the_objective(problem):
    logits, rewards, start, beta = problem
    policy, ref = start.requires_grad_(), logits.log_softmax(-1)
    new = policy.log_softmax(-1)
    objective = new.exp() @ (rewards - beta * (new - ref))
    (right,) = torch.autograd.grad(objective, policy, retain_graph=True)
    old = new.detach()
    for losses in (
        policy_gradient_loss(
            new_log_probs=new,
            old_log_probs=old,
            advantages=penalised_reward(
                rewards=rewards, old_log_probs=old, ref_log_probs=ref, beta=beta
            ),
        ),
        penalised_loss(
            new_log_probs=new,
            old_log_probs=old,
            ref_log_probs=ref,
            advantages=rewards,
            beta=beta,
        ),
    ):
        (found,) = torch.autograd.grad(old.exp() @ losses, policy, retain_graph=True)
        assert_close(-found, right, rtol=0, atol=1e-10)


@given(problems())
def test_the_penalised_loss_is_right_off_policy_too(problem):
    logits, rewards, start, beta = problem
    policy, ref = start.requires_grad_(), logits.log_softmax(-1)
    new, old = policy.log_softmax(-1), (logits / 2).log_softmax(-1)
    objective = new.exp() @ (rewards - beta * (new - ref))
    (right,) = torch.autograd.grad(objective, policy, retain_graph=True)
    losses = old.exp() @ penalised_loss(
        new_log_probs=new,
        old_log_probs=old,
        ref_log_probs=ref,
        advantages=rewards,
        beta=beta,
    )
    assert_close(losses, -objective, rtol=0, atol=1e-10)
    assert_close(torch.autograd.grad(losses, policy)[0], -right, rtol=0, atol=1e-10)


def test_a_penalty_of_coefficient_zero_is_zero_even_of_an_infinite_kl():
    kl = tensor([1.0, inf, torch.nan], requires_grad=True)
    assert kl_penalty(kl, 0.0).tolist() == [0, 0, 0]
    assert kl_penalty(kl, 0.5)[:2].tolist() == [0.5, inf]


def test_with_beta_zero_the_reference_is_not_read():
    new = tensor([-1.0, -2.0], requires_grad=True)
    old, never = tensor([-1.5, -1.5]), tensor([-inf, torch.nan])
    advantages = tensor([1.0, -2.0])
    whole = penalised_loss(
        new_log_probs=new,
        old_log_probs=old,
        ref_log_probs=never,
        advantages=advantages,
        beta=0.0,
    )
    plain = policy_gradient_loss(
        new_log_probs=new, old_log_probs=old, advantages=advantages
    )
    assert torch.equal(whole, plain)
    (slope,) = torch.autograd.grad(whole.sum(), new)
    assert torch.equal(slope, torch.autograd.grad(plain.sum(), new)[0])
    rewards = penalised_reward(
        rewards=advantages, old_log_probs=old, ref_log_probs=never, beta=0.0
    )
    assert torch.equal(rewards, advantages)


@pytest.mark.parametrize("beta", [-1e-9, -1.0, float("nan")])
def test_refuses_a_beta_that_rewards_divergence(beta):
    with pytest.raises(ValueError, match="beta is"):
        kl_penalty(torch.zeros(2), beta)


def test_an_advantage_enters_with_its_sign_and_size():
    """Not only 1: minus rho times the advantage."""
    new, old = tensor([-1.0, -1.0]), tensor([-2.0, -0.5])
    found = policy_gradient_loss(
        new_log_probs=new, old_log_probs=old, advantages=tensor([3.0, -0.25])
    )
    assert_close(found, tensor([-3.0, 0.25]) * tensor([1.0, -0.5]).exp())


@pytest.mark.parametrize("flat", ["advantages", "old_log_probs", "ref_log_probs"])
def test_a_flat_batch_beside_a_column_is_refused(flat):
    given = dict.fromkeys(
        ("new_log_probs", "old_log_probs", "ref_log_probs", "advantages"),
        torch.zeros(4, 1),
    )
    with pytest.raises(ValueError, match=flat):
        penalised_loss(**given | {flat: torch.zeros(4)}, beta=0.1)


def test_rewards_and_advantages_get_no_gradient():
    names = ("new_log_probs", "old_log_probs", "ref_log_probs", "advantages")
    x = {name: torch.randn(3).requires_grad_() for name in names}
    new, old, ref, advantages = x.values()
    constant = penalised_reward(
        rewards=advantages.detach(), old_log_probs=old, ref_log_probs=ref, beta=0.1
    )
    assert not constant.requires_grad
    penalised_loss(**x, beta=0.1).sum().backward()
    policy_gradient_loss(
        new_log_probs=new, old_log_probs=old, advantages=advantages
    ).sum().backward()
    assert [y.grad is None for y in x.values()] == [False, True, True, True]
