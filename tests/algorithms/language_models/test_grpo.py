"""Checks the terms of GRPO and its successors by listing every token and answer."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

from snippets.algorithms.language_models.grpo import (
    centred_advantages,
    clipped_gain,
    clipped_losses,
    corrected_divergence,
    group_advantages,
    grpo_divergence,
    sequence_ratio,
)
from snippets.algorithms.regularised.optimal_policy import anchor_divergence, regret
from snippets.lab.enumeration import every_sequence, prefixes, token_log_probs
from snippets.estimate.sequences import mean_of_means, mean_of_sums, token_mean
from snippets.foundations.neighbours import chi_squared

numbers = st.floats(-2, 2)


@st.composite
def policies(draw):
    """Logits of new, old and ref after one prefix."""
    rows = [draw(st.lists(numbers, min_size=4, max_size=4)) for _ in range(3)]
    new, old, ref = (torch.tensor(row).double() for row in rows)
    return new.requires_grad_(), old, ref


def listed(*logits):
    """Every token once: log-probabilities `(vocab, 1)`, and a mask."""
    columns = [row.log_softmax(-1)[:, None] for row in logits]
    return [*columns, torch.ones(len(logits[0]), 1, dtype=torch.bool)]


def gradient(value, by):
    return torch.autograd.grad(value, by, retain_graph=True)[0]


@given(policies())
def test_on_policy_the_mean_is_the_divergence(policy):
    new, _, ref = policy
    mean = new.softmax(-1) @ grpo_divergence(*listed(new, ref))[:, 0]
    assert_close(mean, anchor_divergence(new, ref))


@given(policies())
def test_on_policy_the_gradient_is_that_of_the_other_direction(policy):
    new, _, ref = policy
    mean = new.softmax(-1).detach() @ grpo_divergence(*listed(new, ref))[:, 0]
    exact = gradient(anchor_divergence(ref, new), new)
    assert_close(gradient(mean, new), exact)


@given(policies())
def test_the_weight_gives_the_divergence_and_its_gradient_off_policy(policy):
    new, old, ref = policy
    mean = old.softmax(-1) @ corrected_divergence(*listed(new, old, ref))[:, 0]
    exact = anchor_divergence(new, ref)
    assert_close(mean, exact)
    assert_close(gradient(mean, new), gradient(exact, new))


@given(policies())
def test_the_weight_gives_them_on_policy_too(policy):
    new, _, ref = policy
    terms = corrected_divergence(*listed(new, new, ref))[:, 0]
    mean = new.softmax(-1).detach() @ terms
    exact = anchor_divergence(new, ref)
    assert_close(mean, exact)
    assert_close(gradient(mean, new), gradient(exact, new))


@given(policies())
def test_a_weight_without_gradient_leaves_the_other_direction(policy):
    new, old, ref = policy
    columns = listed(new, old, ref)
    weight = (columns[0] - columns[1]).exp().detach()[:, 0]
    terms = weight * grpo_divergence(*listed(new, ref))[:, 0]
    mean = old.softmax(-1) @ terms
    assert_close(mean, anchor_divergence(new, ref))
    assert_close(gradient(mean, new), gradient(anchor_divergence(ref, new), new))


@given(policies())
def test_a_flipped_log_ratio_has_chi_squared_less_the_divergence_as_its_mean(policy):
    new, _, ref = policy
    mean = new.softmax(-1) @ grpo_divergence(*listed(ref, new))[:, 0]
    assert_close(mean, chi_squared(new, ref) - anchor_divergence(new, ref))


@given(policies())
def test_the_reference_and_the_sampler_get_no_gradient(policy):
    new, old, ref = policy
    ref, old = ref.requires_grad_(), old.requires_grad_()
    grpo_divergence(*listed(new, ref)).sum().backward()
    corrected_divergence(*listed(new, old, ref)).sum().backward()
    sequence_ratio(*listed(old, new)).sum().backward()
    log_old, log_new, mask = listed(old, new)
    advantages = torch.ones(4).double()
    clipped_losses(log_old, log_new, advantages, mask, 0.2, 0.2).sum().backward()
    assert ref.grad is None
    assert old.grad is None
    assert new.grad is not None


def tables():
    """Three policies over all answers of three tokens, `(states, actions)`."""
    generator = torch.Generator().manual_seed(0)
    new, old, ref = torch.randn(3, 13, 3, generator=generator, dtype=torch.float64)
    return new.requires_grad_(), old, ref


ANSWERS = every_sequence(3, 3)
WHOLE = torch.ones_like(ANSWERS, dtype=torch.bool)


def answers(policy):
    return token_log_probs(policy, ANSWERS)


def visits(sampler):
    """How often each prefix is continued, by the policy that samples, `(states)`."""
    chance = answers(sampler).detach().sum(-1).exp()[:, None].expand(ANSWERS.shape)
    places = prefixes(ANSWERS, 3)
    return torch.zeros(13).double().index_add(0, places.flatten(), chance.flatten())


def test_over_answers_the_value_on_policy_is_the_divergence_of_answers():
    new, _, ref = tables()
    log_new, log_ref = answers(new), answers(ref)
    chance = log_new.detach().sum(-1).exp()
    mean = chance @ grpo_divergence(log_new, log_ref, WHOLE).sum(-1)
    assert_close(mean, chance @ (log_new - log_ref).sum(-1))


def test_over_answers_each_prefix_has_its_own_gradient_and_no_more():
    new, _, ref = tables()
    log_new, log_ref = answers(new), answers(ref)
    chance = log_new.sum(-1).exp()
    kl = chance @ (log_new - log_ref).sum(-1)
    seen = visits(new)
    cases = {
        grpo_divergence(log_new, log_ref, WHOLE): anchor_divergence(ref, new),
        corrected_divergence(log_new, log_new, log_ref, WHOLE): anchor_divergence(
            new, ref
        ),
    }
    for terms, per_prefix in cases.items():
        found = gradient(chance.detach() @ terms.sum(-1), new)
        assert_close(found, gradient(seen @ per_prefix, new))
        exact = gradient(kl, new)
        assert (found - exact).norm() > 0.1 * exact.norm()


def test_over_answers_the_weight_leaves_the_prefixes_of_the_sampler():
    new, old, ref = tables()
    log_new, log_old, log_ref = answers(new), answers(old), answers(ref)
    terms = corrected_divergence(log_new, log_old, log_ref, WHOLE)
    mean = log_old.sum(-1).exp() @ terms.sum(-1)
    per_prefix = visits(old) @ anchor_divergence(new, ref)
    assert_close(mean, per_prefix)
    assert_close(gradient(mean, new), gradient(per_prefix, new))
    kl = visits(new) @ anchor_divergence(new, ref)
    assert (mean - kl).abs() > 0.1 * kl


def test_over_answers_the_log_of_the_ratio_is_the_divergence_of_the_step_per_token():
    new, old, _ = tables()
    log_new, log_old = answers(new), answers(old)
    chance = log_old.sum(-1).exp()
    found = -(chance @ sequence_ratio(log_old, log_new, WHOLE).log())
    assert_close(found, chance @ (log_old - log_new).sum(-1) / 3)


def end_of_training(ref, rewards, beta):
    """Where k3 in the loss comes to rest: beta · ref / (price - reward), by bisection.

    The best policy for mean reward - beta · KL(ref || new).
    """
    low, high = rewards.max(), rewards.max() + beta  # sums above and below 1
    for _ in range(100):
        price = (low + high) / 2
        total = (beta * ref.softmax(-1) / (price - rewards)).sum()
        low, high = (price, high) if total > 1 else (low, price)
    return beta * ref.softmax(-1) / (high - rewards)


@given(policies(), st.floats(0.1, 2))
def test_training_with_k3_rests_at_a_ratio(policy, beta):
    rewards, _, ref = policy
    rewards = rewards.detach()
    new = end_of_training(ref, rewards, beta).log().requires_grad_()
    log_new = new.log_softmax(-1)
    loss = beta * grpo_divergence(*listed(new, ref))[:, 0] - rewards * log_new
    found = gradient(log_new.detach().exp() @ loss, new)
    # Bisection stops within float64 of a price near 2, of which beta is a tenth.
    assert_close(found, torch.zeros(4).double(), rtol=0, atol=1e-9)


def test_training_with_the_weighted_term_rests_at_the_tilted_policy():
    ref = torch.tensor([0.5, 0.0, -1.0, 1.0]).double()
    rewards = torch.tensor([0.0, 1.0, 2.0, -1.0]).double()
    new = (ref + rewards / 0.3).requires_grad_()
    log_new = new.log_softmax(-1)
    loss = 0.3 * corrected_divergence(*listed(new, new, ref))[:, 0] - rewards * log_new
    found = gradient(log_new.detach().exp() @ loss, new)
    assert_close(found, torch.zeros(4).double(), rtol=0, atol=1e-14)  # of terms near 1
    # With k3 alone the worst token keeps more, and the objective is missed.
    other = end_of_training(ref, rewards, 0.3)
    assert other[3] > 10 * new.softmax(-1)[3]
    assert regret(other.log(), ref, rewards, 0.3) > 0.01  # rounding is 1e-16


@given(st.lists(numbers, min_size=2, max_size=6), st.floats(0.5, 4), numbers)
def test_the_standard_deviation_removes_the_scale(values, scale, shift):
    rewards = torch.tensor(values).double()
    assume(rewards.std() > 1e-3)  # shifting rounds smaller differences away
    found = group_advantages(rewards * scale + shift)
    assert_close(found, group_advantages(rewards))
    assert_close(found * rewards.std(), centred_advantages(rewards))
    assert_close(
        centred_advantages(rewards * scale), scale * centred_advantages(rewards)
    )


@given(st.lists(numbers, min_size=2, max_size=6))
def test_the_advantages_of_a_group_sum_to_zero_and_keep_its_order(values):
    rewards = torch.tensor(values).double()
    found = centred_advantages(rewards)
    assert_close(found.sum(), torch.tensor(0.0).double(), rtol=0, atol=1e-12)
    assert_close(found - found[0], rewards - rewards[0], rtol=0, atol=1e-12)


def test_groups_are_rows():
    rewards = torch.tensor([[0.0, 1.0], [10.0, 30.0]]).double()
    assert_close(
        centred_advantages(rewards), torch.tensor([[-0.5, 0.5], [-10, 10]]).double()
    )
    root = 0.5**0.5
    assert_close(group_advantages(rewards), torch.tensor([[-root, root]] * 2).double())


def test_equal_rewards_teach_nothing_though_their_mean_is_rounded():
    rewards = torch.full((2, 8), 0.1)
    rest = rewards - rewards.mean(-1, keepdim=True)
    assert (rest != 0).all()  # over a standard deviation as small, near one
    assert (rest / rewards.std(-1, keepdim=True)).abs().min() > 0.5
    assert (group_advantages(rewards) == 0).all()
    assert (centred_advantages(rewards) == 0).all()


def test_the_logarithm_of_the_ratio_of_a_sequence_is_minus_the_mean_k1():
    new = torch.tensor([[-1.0, -2.0, torch.nan], [-0.5, -0.5, -0.5]])
    old = torch.tensor([[-1.5, -1.0, torch.nan], [-0.5, -1.0, -2.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    found = sequence_ratio(old, new, mask).log()
    assert_close(found, torch.tensor([(0.5 - 1.0) / 2, (0.5 + 1.5) / 3]))


def test_the_gain_is_limited_on_the_side_that_improves_it():
    ratio = torch.tensor([0.5, 1.5, 0.5, 1.5])
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    expected = torch.tensor([0.5, 1.28, -0.8, -1.5])
    assert_close(clipped_gain(ratio, advantage, 0.2, 0.28), expected)


def test_the_losses_are_minus_the_gain_of_every_token():
    old = torch.tensor([[-1.0, -1.0, -1.0], [-2.0, -2.0, torch.nan]])
    step = torch.tensor([[0.1, 0.5, -0.5], [0.5, -0.5, 0.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = clipped_losses(old, old + step, torch.tensor([2.0, -1.0]), mask, 0.2, 0.28)
    up, down = step[0, 1].exp(), step[0, 2].exp()  # out of the limits
    first = [2 * step[0, 0].exp(), torch.tensor(2 * 1.28), 2 * down]
    second = [-up, torch.tensor(-0.8), torch.tensor(0.0)]
    assert_close(found, -torch.stack([torch.stack(first), torch.stack(second)]))


def test_on_policy_the_gradient_of_the_losses_is_the_policy_gradient():
    new, _, _ = tables()
    log_new, advantages = answers(new), torch.linspace(-1, 1, 27).double()
    chance = log_new.sum(-1).exp()
    losses = clipped_losses(log_new, log_new, advantages, WHOLE, 0.2, 0.28)
    found = gradient(chance.detach() @ losses.sum(-1), new)
    assert_close(found, -gradient(chance @ advantages, new))


def test_the_three_ways_to_average_price_a_token_by_its_answer_or_not():
    values = torch.ones(2, 8).double().requires_grad_()
    mask = torch.arange(8) < torch.tensor([[2], [8]])
    price = {f: gradient(f(values, mask), values) for f in (mean_of_means, token_mean)}
    constant = gradient(mean_of_sums(values, mask) / 100, values)
    for each in (*price.values(), constant):
        assert (each[~mask] == 0).all()
    assert_close(price[mean_of_means][0, 0], 4 * price[mean_of_means][1, 0])
    assert_close(price[token_mean][mask], torch.full((10,), 1 / 10).double())
    assert_close(constant[mask], torch.full((10,), 1 / 200).double())


def test_what_stands_under_the_mask_is_not_read():
    tokens = [torch.tensor([[-1.0, torch.nan]], requires_grad=True) for _ in range(3)]
    new, old, ref = tokens
    mask = torch.tensor([[True, False]])
    one = torch.ones(1)
    for found in (
        grpo_divergence(new, ref, mask),
        corrected_divergence(new, old, ref, mask),
        sequence_ratio(old, new, mask),
        clipped_losses(old, new, one, mask, 0.2, 0.2),
    ):
        (slope,) = torch.autograd.grad(found.sum(), new)
        assert found.isfinite().all()
        assert slope.isfinite().all()
        assert slope[0, 1] == 0
        assert found.ndim == 1 or found[0, 1] == 0


def test_identical_policies_pay_exactly_nothing_and_float32_is_kept():
    log_probs = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 3, 5, dtype=torch.bool)
    for penalty in (
        grpo_divergence(log_probs, log_probs, mask),
        corrected_divergence(log_probs, log_probs, log_probs, mask),
    ):
        assert penalty.dtype == torch.float32
        assert (penalty == 0).all()
    assert (sequence_ratio(log_probs, log_probs, mask) == 1).all()
    advantages = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    losses = clipped_losses(log_probs, log_probs, advantages, mask, 0.2, 0.28)
    assert (losses == -advantages[..., None]).all()


def test_a_small_step_keeps_its_digits_in_float32():
    new = torch.zeros(1, 3)
    ref = torch.tensor([[1e-3, -1e-4, 1e-5]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    found = grpo_divergence(new, ref, mask).double()
    x = ref.double()
    # Half the square but for a third of x: what float32 leaves of expm1(x) - x is x's
    # last digit over x / 2, a hundredth at 1e-5.
    assert_close(found, x.square() / 2 * (1 + x / 3), rtol=0.02, atol=0)


def test_unusable_arguments_are_named():
    zeros = torch.zeros(1, 2)
    for mask in (torch.ones(1, 2), torch.ones(2, dtype=torch.bool)):
        for call in (
            lambda m: grpo_divergence(zeros, zeros, m),
            lambda m: corrected_divergence(zeros, zeros, zeros, m),
            lambda m: sequence_ratio(zeros, zeros, m),
            lambda m: clipped_losses(zeros, zeros, torch.ones(1), m, 0.2, 0.2),
        ):
            with pytest.raises(ValueError, match="mask must be boolean"):
                call(mask)
    with pytest.raises(ValueError, match=r"low and high are -0\.2 and 0\.2"):
        clipped_gain(zeros, zeros, -0.2, 0.2)
    with pytest.raises(ValueError, match=r"low and high are 0\.2 and -0\.2"):
        clipped_gain(zeros, zeros, 0.2, -0.2)
    for advantages in (group_advantages, centred_advantages):
        with pytest.raises(ValueError, match="rewards has one answer"):
            advantages(torch.zeros(3, 1))
        with pytest.raises(ValueError, match="rewards must be floating point"):
            advantages(torch.zeros(3, 2, dtype=torch.long))
