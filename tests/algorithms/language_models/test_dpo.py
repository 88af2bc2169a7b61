"""Checks DPO and its relatives against optima that are found without them."""

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from snippets.algorithms.language_models.dpo import (
    alpha_link,
    completion_log_ratio,
    dpo_loss,
    f_dpo_loss,
    ipo_loss,
    jensen_shannon_link,
    kto_loss,
    kto_reference_point,
)
from snippets.algorithms.regularised.optimal_policy import optimal_policy
from snippets.exact.categorical import kl_divergence_logits
from tests.strategies import log_probs, numbers, padded

BETA = 0.4
forward_link = partial(alpha_link, alpha=1.0)


@st.composite
def problems(draw):
    """A reference over four completions, and their rewards."""
    return draw(log_probs(4, largest=2)), draw(numbers(4, largest=2))


def optimum(ref, rewards, beta=BETA):
    return optimal_policy(ref_logits=ref, rewards=rewards, beta=beta)


def every_pair(values):
    """The values of both answers of every ordered pair."""
    return values[:, None].expand(4, 4), values[None, :].expand(4, 4)


def mean_loss(loss, logits, ref, rewards):
    """Over all pairs, won as often as Bradley and Terry say."""
    wins = torch.sub(*every_pair(rewards)).sigmoid()
    chosen, rejected = every_pair(logits.log_softmax(-1) - ref)
    losses = loss(chosen=chosen, rejected=rejected, beta=BETA)
    return (wins * losses).sum()


def slope(loss, logits, ref, rewards):
    logits = logits.detach().requires_grad_()
    return torch.autograd.grad(mean_loss(loss, logits, ref, rewards), logits)[0]


@given(problems())
def test_the_loss_is_least_at_the_optimum_of_the_penalised_reward(problem):
    ref, rewards = problem
    best = optimum(ref, rewards)
    found = slope(dpo_loss, best, ref, rewards)
    assert_close(found, torch.zeros(4).double(), rtol=0, atol=1e-12)  # rounding
    least = mean_loss(dpo_loss, best, ref, rewards)
    assert mean_loss(dpo_loss, best.roll(1), ref, rewards) >= least - 1e-12


@given(problems())
def test_the_implicit_reward_is_the_reward_up_to_a_constant(problem):
    ref, rewards = problem
    implicit = BETA * (optimum(ref, rewards) - ref)
    assert_close(implicit - implicit[0], rewards - rewards[0])


@given(problems(), st.floats(0.1, 5))
def test_the_coefficient_is_that_of_the_kl(problem, beta):
    ref, rewards = problem
    chosen, rejected = every_pair(optimum(ref, rewards, beta) - ref)
    lost = torch.sub(*every_pair(rewards)).sigmoid().log()
    assert_close(dpo_loss(chosen=chosen, rejected=rejected, beta=beta), -lost)


@given(problems())
def test_without_the_reference_the_loss_has_another_optimum(problem):
    _, rewards = problem
    alone = (rewards / BETA).log_softmax(-1)
    found = slope(dpo_loss, alone, torch.zeros(4).double(), rewards)
    assert_close(found, torch.zeros(4).double(), rtol=0, atol=1e-12)  # rounding


@given(problems(), st.permutations([1.0, 2.0, 4.0, 8.0]))
def test_a_mean_over_tokens_has_the_optimum_of_another_reward(problem, order):
    ref, rewards = problem
    lengths = torch.tensor(order).double()
    by_length = every_pair(lengths)

    def mean_over_tokens(chosen, rejected, beta):
        means = {"chosen": chosen / by_length[0], "rejected": rejected / by_length[1]}
        return dpo_loss(**means, beta=beta)

    # The reward times the length, with a constant that is no constant any more.
    shift = torch.zeros(()).double()
    for _ in range(100):
        best = ref + lengths * (rewards - shift) / BETA
        density = best.logsumexp(-1)
        shift = shift + density * BETA / (best.softmax(-1) @ lengths)  # Newton
    found = slope(mean_over_tokens, best, ref, rewards)
    assert_close(found, torch.zeros(4).double(), rtol=0, atol=1e-9)  # of Newton's steps
    same = torch.tensor([0.0, 1.0, 1.0, 0.0]).double()
    best = optimum(ref, same)
    assert slope(mean_over_tokens, best, ref, same).abs().max() > 1e-3


@given(st.floats(-20, 20), st.floats(0.01, 2))
def test_where_one_completion_always_wins_the_loss_never_stops_falling(gap, beta):
    chosen = torch.tensor(gap).double().requires_grad_()
    zero = torch.zeros(()).double()
    dpo_loss(chosen=chosen, rejected=zero, beta=beta).backward()
    assert chosen.grad < 0


@given(st.floats(0.01, 2))
def test_the_squared_loss_has_its_least_at_a_finite_gap(beta):
    zero = torch.zeros(()).double()
    gap = torch.full_like(zero, 1 / (2 * beta))
    assert ipo_loss(chosen=gap, rejected=zero, beta=beta) == 0
    for other in (gap * 0.5, gap * 2, -gap):
        assert ipo_loss(chosen=other, rejected=zero, beta=beta) > 0


@given(problems())
def test_ipo_is_least_at_the_optimum_for_the_rate_of_wins(problem):
    ref, rewards = problem
    wins = torch.sub(*every_pair(rewards)).sigmoid().mean(-1)
    best = optimum(ref, wins)
    found = slope(ipo_loss, best, ref, rewards)
    assert_close(found, torch.zeros(4).double(), rtol=0, atol=1e-12)  # rounding
    # A rate is a reward between 0 and 1: no log-ratio rises by more than 1 / beta.
    largest = (best - ref).max()
    assert kl_divergence_logits(best, ref) <= largest + 1e-14  # rounding near 0
    assert largest <= 1 / BETA


def f_optimum(ref, rewards, ratio_of):
    """The best E[reward] - beta D_f, by bisection for what normalises it."""
    low, high = rewards.max() - 100, rewards.max() + 100
    for _ in range(200):
        shift = (low + high) / 2
        total = ref.exp() @ ratio_of((rewards - shift) / BETA)
        low, high = (shift, high) if total > 1 else (low, shift)
    return (ref.exp() * ratio_of((rewards - high) / BETA)).log()


def alpha_ratio(alpha, slopes):  # f' = (1 - u^-alpha) / alpha, below 1 / alpha
    left = 1 - alpha * slopes
    return torch.where(left > 0, left ** (-1 / alpha), torch.inf)


def jensen_shannon_ratio(slopes):  # f' = log(2 u / (1 + u)), below log 2
    odds = 2 * (-slopes).exp() - 1
    return torch.where(odds > 0, 1 / odds, torch.inf)


def alpha_divergence(alpha, new, ref):
    """The mean over ref of f(u), as the paper defines f, with u = new / ref."""
    u = new / ref
    if alpha == 1:  # its limit
        f = u - 1 - u.log()
    else:
        f = (u ** (1 - alpha) - (1 - alpha) * u - alpha) / (alpha * (alpha - 1))
    return (ref * f).sum()


def twice_jensen_shannon(new, ref):
    mean = (new + ref) / 2
    return (new * (new / mean).log() + ref * (ref / mean).log()).sum()


@pytest.mark.parametrize(
    ("link", "divergence"),
    [
        (forward_link, partial(alpha_divergence, 1.0)),
        (partial(alpha_link, alpha=0.3), partial(alpha_divergence, 0.3)),
        (partial(alpha_link, alpha=0.7), partial(alpha_divergence, 0.7)),
        (jensen_shannon_link, twice_jensen_shannon),
    ],
)
@given(problem=problems())
def test_a_link_is_the_slope_of_its_divergence(link, divergence, problem):
    ref, other = problem[0].exp(), problem[1].softmax(-1).requires_grad_()
    (found,) = torch.autograd.grad(divergence(other, ref), other)
    assert_close(found, link((other / ref).log()))


@pytest.mark.parametrize(
    ("link", "ratio_of"),
    [
        (forward_link, partial(alpha_ratio, 1.0)),
        (partial(alpha_link, alpha=0.3), partial(alpha_ratio, 0.3)),
        (jensen_shannon_link, jensen_shannon_ratio),
    ],
)
@given(problem=problems())
def test_a_link_has_the_optimum_of_its_own_divergence(link, ratio_of, problem):
    ref, rewards = problem
    best = f_optimum(ref, rewards, ratio_of)
    # Bisection leaves 1e-14 of the shift, which steep links multiply.
    close = {"rtol": 1e-5, "atol": 1e-5}
    assert_close(best.exp().sum(), torch.ones(()).double(), **close)
    gaps = BETA * link(best - ref)
    assert_close(gaps - gaps[0], rewards - rewards[0], **close)

    def loss(chosen, rejected, beta):
        return f_dpo_loss(chosen=chosen, rejected=rejected, beta=beta, link=link)

    found = slope(loss, best, ref, rewards)
    assert_close(found, torch.zeros(4).double(), **close)


def expected_point(new, ref, data):
    """The reference point of many prompts, by listing prompts and their completions."""
    total = torch.zeros(()).double()
    for prompt, other in itertools.permutations(range(len(new)), 2):
        for token in range(new.shape[-1]):
            log_ratio = new[prompt, token] - ref[prompt, token]
            total += data[other, token] * log_ratio
    return max(0.0, total.item() / math.perm(len(new), 2))


def test_the_reference_point_is_no_kl():
    ref = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]]).double()
    # Each prompt learns its own completion, and not the other prompt's: it is 0.
    apart = torch.tensor([[0.9, 0.09, 0.01], [0.01, 0.09, 0.9]]).double()
    # Both learn to give the completion that all of the data is: it is too large.
    alike = torch.tensor([[0.3, 0.6, 0.1], [0.1, 0.6, 0.3]]).double()
    only = torch.tensor([[0.0, 1.0, 0.0]] * 2).double()
    for new, data, larger in ((apart, ref, False), (alike, only, True)):
        log_ratio = (new / ref).log()
        divergence = kl_divergence_logits(new.log(), ref.log()).mean()
        point = kto_reference_point((data.flip(0) * log_ratio).sum(-1))
        assert_close(point.item(), expected_point(new.log(), ref.log(), data))
        assert (point > 2 * divergence) if larger else (point == 0 < divergence)


def test_the_reference_point_is_a_mean_without_a_gradient():
    mismatched = torch.tensor([1.0, 2.0], requires_grad=True)
    assert kto_reference_point(mismatched) == 1.5
    assert kto_reference_point(-mismatched) == 0
    assert kto_reference_point(torch.tensor([3.0, -1.0])) == 1  # at least 0 as a whole
    assert not kto_reference_point(mismatched).requires_grad


def test_the_value_of_a_completion_is_measured_from_the_reference_point():
    ratios = torch.tensor([1.0, 1.0, 3.0, -1.0], requires_grad=True)
    good = torch.tensor([True, False, True, False])
    point = torch.tensor(1.0)
    loss = kto_loss(log_ratios=ratios, reference_point=point, desirable=good, beta=0.5)
    expected = [0.5, 0.5, 1 / (1 + math.exp(1.0)), 1 / (1 + math.exp(1.0))]
    assert_close(loss, torch.tensor(expected))
    loss.sum().backward()
    assert (ratios.grad < 0).tolist() == good.tolist()


@given(padded())
def test_completions_are_summed(batch):
    rows, new, mask = batch
    found = completion_log_ratio(new_log_probs=new, ref_log_probs=new / 2, mask=mask)
    assert_close(found, torch.tensor([sum(row) / 2 for row in rows]).double())


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf])
def test_what_stands_under_the_mask_is_read_by_no_value_and_no_gradient(junk):
    head = torch.ones(1, 3, requires_grad=True)  # a linear head: 0 · nan would show
    new, ref = (torch.tensor([[x, y, junk]]) for x, y in ((-1.0, -2.0), (-2.0, -0.5)))
    mask = torch.tensor([[True, True, False]])
    ref.requires_grad_()
    new = new * head
    ratio = completion_log_ratio(new_log_probs=new, ref_log_probs=ref, mask=mask)
    assert_close(ratio, torch.tensor([-0.5]))
    (slope,) = torch.autograd.grad(ratio.sum(), new)
    assert_close(slope, mask.float())
    assert not torch.autograd.grad(
        completion_log_ratio(new_log_probs=new, ref_log_probs=ref, mask=mask).sum(),
        ref,
        allow_unused=True,
    )[0]


def every_loss(ratios):
    """All losses, of a batch of log-ratios against its mirror image."""
    pair = {"chosen": ratios, "rejected": ratios.flip(-1), "beta": BETA}
    good, point = ratios > 0, torch.zeros((), dtype=ratios.dtype)
    return [
        dpo_loss(**pair),
        ipo_loss(**pair),
        f_dpo_loss(**pair, link=forward_link),
        f_dpo_loss(**pair, link=jensen_shannon_link),
        kto_loss(log_ratios=ratios, reference_point=point, desirable=good, beta=BETA),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_are_rows(dtype):
    generator = torch.Generator().manual_seed(0)
    ratios = torch.randn(3, 4, dtype=dtype, generator=generator)
    for found, row in zip(every_loss(ratios), every_loss(ratios[1]), strict=True):
        assert found.dtype == dtype
        assert_close(found[1], row)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    generator = torch.Generator().manual_seed(0)
    ratios = (3 * torch.randn(50, generator=generator)).to(dtype)
    for half, wide in zip(every_loss(ratios), every_loss(ratios.float()), strict=True):
        assert half.dtype == dtype
        # A link rounds once, and the loss of two links once more.
        assert_close(half, wide.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=0)
    point = kto_reference_point(ratios)
    assert point == ratios.float().mean().clamp(min=0).to(dtype)


def test_a_coefficient_that_is_not_positive_is_refused():
    zero, good = torch.zeros(2), torch.tensor([True, False])
    pair = {"chosen": zero, "rejected": zero}
    single = {"log_ratios": zero, "reference_point": zero[0], "desirable": good}
    for beta in (0.0, -0.1, math.nan):
        for loss in (dpo_loss, ipo_loss, partial(f_dpo_loss, link=forward_link)):
            with pytest.raises(ValueError, match="beta"):
                loss(**pair, beta=beta)
        with pytest.raises(ValueError, match="beta"):
            kto_loss(**single, beta=beta)
        with pytest.raises(ValueError, match="alpha"):
            alpha_link(zero, beta)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 1), torch.zeros(1), torch.zeros(3)])
def test_pairs_that_would_broadcast_are_refused(wrong):
    for loss in (dpo_loss, ipo_loss, partial(f_dpo_loss, link=forward_link)):
        for pair in ((wrong, torch.zeros(2)), (torch.zeros(2), wrong)):
            with pytest.raises(ValueError, match="rejected"):
                loss(chosen=pair[0], rejected=pair[1], beta=BETA)
    point, good = torch.zeros(()), torch.ones(2, dtype=torch.bool)
    single = {"log_ratios": wrong, "reference_point": point, "desirable": good}
    with pytest.raises(ValueError, match="desirable"):
        kto_loss(**single, beta=BETA)
    with pytest.raises(ValueError, match="desirable"):
        kto_loss(**single | {"desirable": torch.ones_like(wrong)}, beta=BETA)
    with pytest.raises(ValueError, match="reference_point"):
        kto_loss(**single | {"reference_point": torch.zeros(2)}, beta=BETA)


def test_the_reference_itself_has_the_loss_of_a_coin():
    zero = torch.zeros(3)
    coin = torch.full((3,), math.log(2))
    assert_close(dpo_loss(chosen=zero, rejected=zero, beta=BETA), coin)
    for link in (forward_link, jensen_shannon_link):
        pair = {"chosen": zero, "rejected": zero, "beta": BETA, "link": link}
        assert_close(f_dpo_loss(**pair), coin)
        assert link(zero).tolist() == [0.0] * 3


def test_an_empty_completion_has_the_log_ratio_of_nothing():
    none = torch.zeros(2, 3, dtype=torch.bool)
    tokens = {"new_log_probs": torch.ones(2, 3), "ref_log_probs": torch.zeros(2, 3)}
    assert completion_log_ratio(**tokens, mask=none).tolist() == [0.0, 0.0]


def test_a_mask_of_numbers_is_refused():
    tokens = {"new_log_probs": torch.ones(2, 3), "ref_log_probs": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match="mask"):
        completion_log_ratio(**tokens, mask=torch.ones(2, 3))


@pytest.mark.parametrize("alpha", [1e-4, 1e-6])
def test_a_small_alpha_is_the_logarithm(alpha):
    ratios = torch.linspace(-3, 3, 7).double()
    # The next term of the series is alpha x² / 2, below 5 alpha.
    assert_close(alpha_link(ratios, alpha), ratios, rtol=0, atol=5 * alpha)


@pytest.mark.parametrize("rarer", [80.0, 88.0, 89.0, 200.0])
def test_a_pair_that_is_decided_beyond_float32_has_no_gradient(rarer):
    chosen = torch.tensor(0.0, requires_grad=True)
    rejected = torch.tensor(-rarer, requires_grad=True)
    pair = {"chosen": chosen, "rejected": rejected, "beta": BETA}
    loss = f_dpo_loss(**pair, link=forward_link)
    loss.backward()
    assert loss == chosen.grad == rejected.grad == 0


def test_a_chosen_completion_that_was_given_up_overflows_as_documented():
    lost, rare = torch.tensor(-89.0), torch.tensor(-89.5)
    pair = {"beta": BETA, "link": forward_link}
    assert f_dpo_loss(chosen=lost, rejected=torch.tensor(0.0), **pair) == torch.inf
    assert f_dpo_loss(chosen=lost, rejected=rare, **pair).isnan()


def test_both_completions_lose_where_they_share_what_is_learned():
    features = torch.tensor([1.0, 0.0, 3.0]).double()  # chosen, rejected, not compared
    ref = torch.zeros(3).double().log_softmax(-1)
    weight = torch.zeros(()).double().requires_grad_()
    losses = []
    for _ in range(20):
        ratio = (features * weight).log_softmax(-1) - ref
        losses.append(dpo_loss(chosen=ratio[0], rejected=ratio[1], beta=BETA))
        weight.data -= torch.autograd.grad(losses[-1], weight)[0]
    assert losses[-1] < losses[0]
    assert (ratio[:2] < 0).all()


def test_a_gap_of_thousands_is_no_overflow():
    far, near = torch.tensor(-1e5), torch.zeros(())
    assert_close(dpo_loss(chosen=far, rejected=near, beta=1.0), torch.tensor(1e5))
