"""Checks the terms of GRPO and its successors by listing every token and completion."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

from snippets.algorithms.language_models.grpo import (
    centred_advantages,
    clipped_losses,
    group_advantages,
    grpo_kl,
    mean_log_ratio,
    sequence_clipped_losses,
    unbiased_kl,
)
from snippets.algorithms.regularised.optimal_policy import regret
from snippets.estimate.sequences import (
    seq_mean_token_mean,
    seq_mean_token_sum,
    token_mean,
)
from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.neighbours import chi_squared
from snippets.lab.enumeration import every_sequence, prefixes, token_log_probs
from tests.strategies import logits, masks, numbers, padded

CLIP = {"clip_low": 0.2, "clip_high": 0.28}


@st.composite
def policies(draw):
    """Logits of new, old and ref after one prefix."""
    new, old, ref = (draw(logits(4, largest=2)) for _ in range(3))
    return new.requires_grad_(), old, ref


def listed(**policies):
    """Every token once: log-probabilities `(vocab, 1)`, and a mask."""
    found = {f"{x}_log_probs": y.log_softmax(-1)[:, None] for x, y in policies.items()}
    return found | {"mask": torch.ones(4, 1, dtype=torch.bool)}


def gradient(value, by):
    return torch.autograd.grad(value, by, retain_graph=True)[0]


@given(policies())
def test_on_policy_the_mean_is_the_kl(policy):
    new, _, ref = policy
    mean = new.softmax(-1) @ grpo_kl(**listed(new=new, ref=ref))[:, 0]
    assert_close(mean, kl_divergence_logits(new, ref))


@given(policies())
def test_on_policy_the_gradient_is_that_of_the_other_direction(policy):
    new, _, ref = policy
    mean = new.softmax(-1).detach() @ grpo_kl(**listed(new=new, ref=ref))[:, 0]
    exact = gradient(kl_divergence_logits(ref, new), new)
    assert_close(gradient(mean, new), exact)


@given(policies())
def test_the_weight_gives_the_kl_and_its_gradient_off_policy(policy):
    new, old, ref = policy
    mean = old.softmax(-1) @ unbiased_kl(**listed(new=new, old=old, ref=ref))[:, 0]
    exact = kl_divergence_logits(new, ref)
    assert_close(mean, exact)
    assert_close(gradient(mean, new), gradient(exact, new))


@given(policies())
def test_the_weight_gives_them_on_policy_too(policy):
    new, _, ref = policy
    terms = unbiased_kl(**listed(new=new, old=new, ref=ref))[:, 0]
    mean = new.softmax(-1).detach() @ terms
    exact = kl_divergence_logits(new, ref)
    assert_close(mean, exact)
    assert_close(gradient(mean, new), gradient(exact, new))


@given(policies())
def test_a_weight_without_gradient_leaves_the_other_direction(policy):
    new, old, ref = policy
    weight = (new.log_softmax(-1) - old.log_softmax(-1)).exp().detach()
    terms = weight * grpo_kl(**listed(new=new, ref=ref))[:, 0]
    mean = old.softmax(-1) @ terms
    assert_close(mean, kl_divergence_logits(new, ref))
    assert_close(gradient(mean, new), gradient(kl_divergence_logits(ref, new), new))


@given(policies())
def test_a_flipped_log_ratio_has_chi_squared_less_the_kl_as_its_mean(policy):
    new, _, ref = policy
    mean = new.softmax(-1) @ grpo_kl(**listed(new=ref, ref=new))[:, 0]
    assert_close(mean, chi_squared(new, ref) - kl_divergence_logits(new, ref))


def each_loss(new, old, ref, mask, advantages):
    """All four terms of a batch."""
    both = {"new_log_probs": new, "old_log_probs": old, "mask": mask}
    return [
        grpo_kl(new_log_probs=new, ref_log_probs=ref, mask=mask),
        unbiased_kl(**both, ref_log_probs=ref),
        mean_log_ratio(**both),
        clipped_losses(**both, advantages=advantages, **CLIP),
        sequence_clipped_losses(**both, advantages=advantages, **CLIP),
    ]


@given(policies())
def test_the_reference_and_the_sampler_get_no_gradient(policy):
    new, old, ref = (x.requires_grad_() for x in policy)
    columns = list(listed(new=new, old=old, ref=ref).values())
    for term in each_loss(*columns, torch.ones(4).double()):
        (term.sum()).backward(retain_graph=True)
    assert ref.grad is None
    assert old.grad is None
    assert new.grad is not None


def tables():
    """Three policies over all completions of three tokens, `(states, actions)`."""
    generator = torch.Generator().manual_seed(0)
    new, old, ref = torch.randn(3, 13, 3, generator=generator, dtype=torch.float64)
    return new.requires_grad_(), old, ref


COMPLETIONS = every_sequence(3, 3)
WHOLE = torch.ones_like(COMPLETIONS, dtype=torch.bool)


def completions(**policies):
    """The arguments for every completion, under each policy."""
    found = {
        f"{x}_log_probs": token_log_probs(y, COMPLETIONS) for x, y in policies.items()
    }
    return found | {"mask": WHOLE}


def chance(policy):
    return token_log_probs(policy, COMPLETIONS).sum(-1).exp()


def visits(sampler):
    """How often each prefix is continued, by the policy that samples, `(states)`."""
    each = chance(sampler).detach()[:, None].expand(COMPLETIONS.shape)
    places = prefixes(COMPLETIONS, 3)
    return torch.zeros(13).double().index_add(0, places.flatten(), each.flatten())


def kl_of_completions(p, q):
    log_p, log_q = (token_log_probs(x, COMPLETIONS).sum(-1) for x in (p, q))
    return log_p.exp() @ (log_p - log_q)


def test_over_completions_the_value_on_policy_is_the_kl_of_completions():
    new, _, ref = tables()
    terms = grpo_kl(**completions(new=new, ref=ref))
    assert_close(chance(new) @ terms.sum(-1), kl_of_completions(new, ref))


def test_over_completions_each_prefix_has_its_own_gradient_and_no_more():
    new, _, ref = tables()
    seen = visits(new)
    plain = grpo_kl(**completions(new=new, ref=ref))
    weighted = unbiased_kl(**completions(new=new, old=new, ref=ref))
    per_prefix = kl_divergence_logits(ref, new), kl_divergence_logits(new, ref)
    for terms, each in zip((plain, weighted), per_prefix, strict=True):
        found = gradient(chance(new).detach() @ terms.sum(-1), new)
        assert_close(found, gradient(seen @ each, new))
        exact = gradient(kl_of_completions(new, ref), new)
        assert (found - exact).norm() > 0.1 * exact.norm()


def test_over_completions_the_weight_leaves_the_prefixes_of_the_sampler():
    new, old, ref = tables()
    terms = unbiased_kl(**completions(new=new, old=old, ref=ref))
    mean = chance(old) @ terms.sum(-1)
    per_prefix = visits(old) @ kl_divergence_logits(new, ref)
    assert_close(mean, per_prefix)
    assert_close(gradient(mean, new), gradient(per_prefix, new))
    kl = visits(new) @ kl_divergence_logits(new, ref)
    assert (mean - kl).abs() > 0.1 * kl


def test_over_completions_the_mean_log_ratio_is_minus_the_step_kl_per_token():
    new, old, _ = tables()
    found = -(chance(old) @ mean_log_ratio(**completions(new=new, old=old)))
    assert_close(found, kl_of_completions(old, new) / 3)


def end_of_training(ref, rewards, beta):
    """Where k3 in the loss comes to rest: beta · ref / (shift - reward), by bisection.

    The best policy for mean reward - beta · KL(ref || new).
    """
    low, high = rewards.max(), rewards.max() + beta  # sums above and below 1
    for _ in range(100):
        shift = (low + high) / 2
        total = (beta * ref.softmax(-1) / (shift - rewards)).sum()
        low, high = (shift, high) if total > 1 else (low, shift)
    return beta * ref.softmax(-1) / (high - rewards)


@given(policies(), st.floats(0.1, 2))
def test_training_with_k3_rests_at_a_ratio(policy, beta):
    rewards, _, ref = policy
    rewards = rewards.detach()
    new = end_of_training(ref, rewards, beta).log().requires_grad_()
    log_new = new.log_softmax(-1)
    loss = beta * grpo_kl(**listed(new=new, ref=ref))[:, 0] - rewards * log_new
    found = gradient(log_new.detach().exp() @ loss, new)
    # Bisection stops within float64 of a shift near 2, of which beta is a tenth.
    assert_close(found, torch.zeros(4).double(), rtol=0, atol=1e-9)


def test_training_with_the_weighted_term_rests_at_the_tilted_policy():
    ref = torch.tensor([0.5, 0.0, -1.0, 1.0]).double()
    rewards = torch.tensor([0.0, 1.0, 2.0, -1.0]).double()
    new = (ref + rewards / 0.3).requires_grad_()
    loss = 0.3 * unbiased_kl(**listed(new=new, old=new, ref=ref))[:, 0]
    loss = loss - rewards * new.log_softmax(-1)
    found = gradient(new.detach().softmax(-1) @ loss, new)
    assert_close(found, torch.zeros(4).double(), rtol=0, atol=1e-14)  # of terms near 1
    # With k3 alone the worst token keeps more, and the objective is missed.
    other = end_of_training(ref, rewards, 0.3)
    assert other[3] > 10 * new.softmax(-1)[3]
    missed = regret(new_logits=other.log(), ref_logits=ref, rewards=rewards, beta=0.3)
    assert missed > 0.05


@given(numbers(2, 5))
def test_advantages_have_mean_zero_and_the_deviation_of_a_sample(rewards):
    assume((rewards.std(-1) > 0.1).all())
    found = group_advantages(rewards)
    zero, one = torch.zeros(2).double(), torch.ones(2).double()
    assert_close(found.mean(-1), zero, rtol=0, atol=1e-12)  # rounding
    assert_close(found.std(-1), one)
    expected = rewards - rewards.mean(-1, keepdim=True)
    assert_close(centred_advantages(rewards), expected, rtol=1e-9, atol=1e-12)


@given(numbers(2, 5), st.floats(0.1, 10), st.floats(-5, 5))
def test_a_group_forgets_the_unit_and_the_level_of_rewards(rewards, unit, level):
    assume((rewards.std(-1) > 0.1).all())
    found = group_advantages(unit * rewards + level)
    assert_close(found, group_advantages(rewards), rtol=1e-9, atol=1e-9)


def test_groups_are_rows():
    rewards = torch.tensor([[0.0, 1.0], [10.0, 30.0]]).double()
    assert_close(
        centred_advantages(rewards), torch.tensor([[-0.5, 0.5], [-10, 10]]).double()
    )
    root = 0.5**0.5
    assert_close(group_advantages(rewards), torch.tensor([[-root, root]] * 2).double())


@given(numbers(2, 3, 4), masks(2, 3, 4))
def test_batches_of_groups_are_rows(rewards, mask):
    for advantages in (group_advantages, centred_advantages):
        found, masked = advantages(rewards), advantages(rewards, mask)
        for i in range(2):
            assert_close(found[i], advantages(rewards[i]))
            assert_close(masked[i], advantages(rewards[i], mask[i]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("reward", [0.1, -0.7, 0.0, 60_000.0])
@pytest.mark.parametrize("samples", [2, 3, 7, 64])
def test_equal_rewards_give_exactly_nothing(dtype, reward, samples):
    rewards = torch.full((2, samples), reward, dtype=dtype)
    for advantages in (group_advantages, centred_advantages):
        found = advantages(rewards)
        assert found.dtype == dtype
        assert (found == 0).all()


def test_a_sum_beyond_float16_is_no_overflow():
    rewards = torch.tensor([[60_000.0, 60_000.0, 0.0, 0.0]], dtype=torch.float16)
    exact = torch.tensor([[30_000.0, 30_000.0, -30_000.0, -30_000.0]])
    assert centred_advantages(rewards).tolist() == exact.tolist()
    unit = math.sqrt(3) / 2  # half of four are one deviation away, with three for four
    expected = torch.tensor([[unit, unit, -unit, -unit]]).half()
    assert_close(group_advantages(rewards), expected, rtol=1e-3, atol=0)


def test_completions_under_the_mask_are_no_part_of_the_group():
    rewards = torch.tensor([[1.0, torch.nan, 0.0, 0.0], [3.0, 5.0, torch.inf, 1.0]])
    mask = torch.tensor([[True, False, True, True], [True, True, False, False]])
    for advantages in (group_advantages, centred_advantages):
        found = advantages(rewards, mask)
        for row, kept, group in zip(found, mask, rewards, strict=True):
            assert_close(row[kept], advantages(group[kept][None])[0])
            assert (row[~kept] == 0).all()


def test_one_valid_completion_or_none_teaches_nothing():
    rewards = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    mask = torch.tensor([[True, False], [False, False]])
    for advantages in (group_advantages, centred_advantages):
        assert (advantages(rewards, mask) == 0).all()


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_a_reward_that_is_not_finite_spoils_its_own_group_only(odd):
    rewards = torch.tensor([[0.0, 1.0, odd], [0.0, 1.0, 2.0]])
    for advantages in (group_advantages, centred_advantages):
        found = advantages(rewards)
        assert found[0].isnan().all()
        assert_close(found[1:], advantages(rewards[1:]))


@given(padded())
def test_the_mean_log_ratio_is_the_mean_over_the_tokens_of_each(batch):
    rows, new, mask = batch
    old = new / 2 + 1
    found = mean_log_ratio(new_log_probs=new, old_log_probs=old, mask=mask)
    expected = [sum(x - (x / 2 + 1) for x in row) / len(row) for row in rows]
    assert_close(found, torch.tensor(expected).double())


def test_an_empty_completion_has_the_ratio_of_equal_policies():
    new, old = torch.full((2, 3), -1.0), torch.full((2, 3), -2.0)
    mask = torch.tensor([[False] * 3, [True] * 3])
    tokens = {"new_log_probs": new, "old_log_probs": old, "mask": mask}
    assert mean_log_ratio(**tokens).tolist() == [0.0, 1.0]
    losses = sequence_clipped_losses(**tokens, advantages=torch.ones(2), **CLIP)
    assert_close(losses, -torch.tensor([1.0, 1.28]))


@pytest.mark.parametrize("advantage", [3.0, -3.0, 0.5, 0.0])
def test_the_losses_are_minus_the_clipped_surrogate_of_every_token(advantage):
    step = torch.tensor([[0.1, 0.5, -0.5, torch.nan]])
    old = torch.tensor([[-1.0, -2.0, -3.0, torch.nan]])
    mask = torch.tensor([[True, True, True, False]])
    found = clipped_losses(
        new_log_probs=old + step,
        old_log_probs=old,
        advantages=torch.tensor([advantage]),
        mask=mask,
        **CLIP,
    )
    ratios = [math.exp(x) for x in step[0, :3].tolist()]
    # PPO's definition, with two limits.
    surrogate = [min(x * advantage, min(max(x, 0.8), 1.28) * advantage) for x in ratios]
    assert_close(found, -torch.tensor([[*surrogate, 0.0]]))


@pytest.mark.parametrize("advantage", [3.0, -3.0])
@pytest.mark.parametrize("mean_step", [0.1, 0.5, -0.5])
def test_gspo_clips_the_geometric_mean_of_the_ratios(advantage, mean_step):
    step = torch.tensor([[mean_step + 0.4, mean_step - 0.4, torch.nan]])
    mask = torch.tensor([[True, True, False]])
    found = sequence_clipped_losses(
        new_log_probs=step,
        old_log_probs=torch.zeros_like(step),
        advantages=torch.tensor([advantage]),
        mask=mask,
        **CLIP,
    )
    ratio = math.exp(mean_step)
    surrogate = min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
    assert_close(found, -torch.tensor([surrogate]))


def test_on_policy_the_gradient_of_the_losses_is_the_policy_gradient():
    new, _, _ = tables()
    advantages = torch.linspace(-1, 1, 27).double()
    given_ = completions(new=new, old=new)
    losses = clipped_losses(**given_, advantages=advantages, **CLIP)
    found = gradient(chance(new).detach() @ losses.sum(-1), new)
    assert_close(found, -gradient(chance(new) @ advantages, new))


def test_the_three_ways_to_average_weigh_a_token_by_its_completion_or_not():
    values = torch.ones(2, 8).double().requires_grad_()
    mask = torch.arange(8) < torch.tensor([[2], [8]])
    means = (seq_mean_token_mean, token_mean)
    weight = {f: gradient(f(values, mask), values) for f in means}
    constant = gradient(seq_mean_token_sum(values, mask) / 100, values)
    for each in (*weight.values(), constant):
        assert (each[~mask] == 0).all()
    by_sequence = weight[seq_mean_token_mean]
    assert_close(by_sequence[0, 0], 4 * by_sequence[1, 0])
    assert_close(weight[token_mean][mask], torch.full((10,), 1 / 10).double())
    assert_close(constant[mask], torch.full((10,), 1 / 200).double())


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf])
def test_what_stands_under_the_mask_is_read_by_no_value_and_no_gradient(junk):
    head = torch.ones(2, 3, requires_grad=True)  # a linear head: 0 · nan would show
    mask = torch.tensor([[True, False, True], [True, True, False]])
    tokens = [(head * x).where(mask, junk * head) for x in (-1.0, -2.0, -0.5)]
    for found in each_loss(*tokens, mask, torch.tensor([1.0, -2.0])):
        assert found.isfinite().all()
        assert found.ndim == 1 or (found[~mask] == 0).all()
        slope = gradient(found.sum(), tokens[0])
        assert slope.isfinite().all()
        assert (slope[~mask] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("drift", [-30.0, -25.0, 8.0, 30.0])
def test_tokens_that_drifted_from_the_reference_keep_their_gradient(dtype, drift):
    new = torch.tensor([[-1.0]], dtype=dtype, requires_grad=True)
    old, ref = new.detach(), new.detach() + drift
    mask = torch.ones(1, 1, dtype=torch.bool)
    terms = unbiased_kl(
        new_log_probs=new, old_log_probs=old, ref_log_probs=ref, mask=mask
    )
    log_ratio = old.double() - ref.double()  # as the dtype stores them
    assert_close(gradient(terms.sum(), new).double(), log_ratio)


@pytest.mark.parametrize(
    ("dtype", "rise"), [(torch.float32, 90.0), (torch.float16, 12.0)]
)
def test_a_ratio_that_overflows_has_a_finite_loss_and_gradient(dtype, rise):
    new = torch.tensor([[0.0, -1.0]], dtype=dtype, requires_grad=True)
    tokens = {"new_log_probs": new, "old_log_probs": new.detach() - rise}
    tokens["mask"] = torch.ones(1, 2, dtype=torch.bool)
    advantages = torch.ones(1, dtype=dtype)
    for losses in (clipped_losses, sequence_clipped_losses):
        found = losses(**tokens, advantages=advantages, **CLIP)
        assert_close(found, torch.full_like(found, -1.28))
        assert (gradient(found.sum(), new) == 0).all()


def test_a_token_that_a_policy_cannot_give_is_inf_or_nan_as_documented():
    never, rare = torch.tensor([[-torch.inf]]), torch.tensor([[-2.0]])
    mask = torch.ones(1, 1, dtype=torch.bool)
    found = grpo_kl(new_log_probs=rare, ref_log_probs=never, mask=mask)
    assert found == torch.inf
    for ref in (rare, never):
        assert grpo_kl(new_log_probs=never, ref_log_probs=ref, mask=mask).isnan()


def test_identical_policies_have_a_kl_of_exactly_nothing_and_float32_is_kept():
    log_probs = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 3, 5, dtype=torch.bool)
    advantages = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    plain, weighted, log_ratio, losses, by_sequence = each_loss(
        *[log_probs] * 3, mask, advantages
    )
    for found in (plain, weighted, log_ratio):
        assert found.dtype == torch.float32
        assert (found == 0).all()
    assert (losses == -advantages[..., None]).all()
    assert (by_sequence == -advantages).all()


def test_a_small_step_keeps_its_digits_in_float32():
    new = torch.zeros(1, 3)
    ref = torch.tensor([[1e-3, -1e-4, 1e-5]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    found = grpo_kl(new_log_probs=new, ref_log_probs=ref, mask=mask).double()
    x = ref.double()
    # Half the square but for a third of x: the series keeps all digits of float32.
    assert_close(found, x.square() / 2 * (1 + x / 3), rtol=1e-6, atol=0)


def test_unusable_arguments_are_named():
    tokens, one = torch.zeros(2, 3), torch.ones(2)
    mask = torch.ones(2, 3, dtype=torch.bool)
    for bad in (torch.ones(2, 3), torch.ones(3, dtype=torch.bool), mask[:1]):
        for call in range(5):
            with pytest.raises(ValueError, match="mask"):
                each_loss(tokens, tokens, tokens, bad, one)[call]
    both = {"new_log_probs": tokens, "old_log_probs": tokens, "mask": mask}
    for losses in (clipped_losses, sequence_clipped_losses):
        for advantages in (torch.ones(1), torch.ones(2, 1), torch.ones(2).long()):
            with pytest.raises(ValueError, match="advantages"):
                losses(**both, advantages=advantages, **CLIP)
        with pytest.raises(ValueError, match="clip_low"):
            losses(**both, advantages=one, clip_low=-0.2, clip_high=0.2)
        with pytest.raises(ValueError, match="clip_high"):
            losses(**both, advantages=one, clip_low=0.2, clip_high=-0.2)
    for advantages in (group_advantages, centred_advantages):
        for one in ((3, 1), (2, 3, 1)):
            with pytest.raises(ValueError, match="rewards has one completion"):
                advantages(torch.zeros(one))
        assert advantages(torch.zeros(2, 1, 3)).shape == (2, 1, 3)
        with pytest.raises(ValueError, match="rewards must be floating point"):
            advantages(torch.zeros(3, 2, dtype=torch.long))
        with pytest.raises(ValueError, match=r"rewards is \[4\], and needs 2 axes"):
            advantages(torch.zeros(4))  # the rewards of one group, as a flat list
        with pytest.raises(ValueError, match="mask"):
            advantages(torch.zeros(3, 2), torch.ones(3, 1, dtype=torch.bool))
