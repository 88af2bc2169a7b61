"""Checks DPO and its relatives against optima that are found without them."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from snippets.algorithms.language_models.dpo import (
    answer_log_ratio,
    dpo_loss,
    f_dpo_loss,
    forward_link,
    ipo_loss,
    jensen_shannon_link,
    kto_loss,
    kto_reference_point,
)
from snippets.algorithms.regularised.optimal_policy import anchor_divergence, soft_optimum

BETA = 0.4
numbers = st.floats(-2, 2)


@st.composite
def problems(draw):
    """A reference over four answers, and their rewards."""
    rows = [draw(st.lists(numbers, min_size=4, max_size=4)) for _ in range(2)]
    ref, rewards = (torch.tensor(row).double() for row in rows)
    return ref.log_softmax(-1), rewards


def every_pair(values):
    """The values of both answers of every ordered pair."""
    return values[:, None].expand(4, 4), values[None, :].expand(4, 4)


def mean_loss(loss, logits, ref, rewards):
    """Over all pairs, won as often as Bradley and Terry say."""
    wins = torch.sub(*every_pair(rewards)).sigmoid()
    chosen, rejected = every_pair(logits.log_softmax(-1) - ref)
    return (wins * loss(chosen, rejected, BETA)).sum()


def slope(loss, logits, ref, rewards):
    logits = logits.detach().requires_grad_()
    return torch.autograd.grad(mean_loss(loss, logits, ref, rewards), logits)[0]


@given(problems())
def test_the_loss_is_least_at_the_optimum_of_the_penalised_reward(problem):
    ref, rewards = problem
    best = soft_optimum(ref, rewards, BETA)
    found = slope(dpo_loss, best, ref, rewards)
    assert_close(found, torch.zeros(4).double(), rtol=0, atol=1e-12)  # rounding
    least = mean_loss(dpo_loss, best, ref, rewards)
    assert mean_loss(dpo_loss, best.roll(1), ref, rewards) >= least - 1e-12


@given(problems())
def test_the_implicit_reward_is_the_reward_up_to_a_constant(problem):
    ref, rewards = problem
    implicit = BETA * (soft_optimum(ref, rewards, BETA) - ref)
    assert_close(implicit - implicit[0], rewards - rewards[0])


@given(problems(), st.floats(0.1, 5))
def test_the_price_is_the_one_of_a_nat(problem, beta):
    ref, rewards = problem
    chosen, rejected = every_pair(soft_optimum(ref, rewards, beta) - ref)
    lost = torch.sub(*every_pair(rewards)).sigmoid().log()
    assert_close(dpo_loss(chosen, rejected, beta), -lost)


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
        return dpo_loss(chosen / by_length[0], rejected / by_length[1], beta)

    # The reward times the length, with a constant that is no constant any more.
    shift = torch.zeros(()).double()
    for _ in range(100):
        best = ref + lengths * (rewards - shift) / BETA
        density = best.logsumexp(-1)
        shift = shift + density * BETA / (best.softmax(-1) @ lengths)  # Newton
    found = slope(mean_over_tokens, best, ref, rewards)
    assert_close(found, torch.zeros(4).double(), rtol=0, atol=1e-9)  # of Newton's steps
    same = torch.tensor([0.0, 1.0, 1.0, 0.0]).double()
    best = soft_optimum(ref, same, BETA)
    assert slope(mean_over_tokens, best, ref, same).abs().max() > 1e-3


@given(st.floats(-20, 20), st.floats(0.01, 2))
def test_where_one_answer_always_wins_the_loss_never_stops_falling(gap, beta):
    chosen = torch.tensor(gap).double().requires_grad_()
    dpo_loss(chosen, torch.zeros(()).double(), beta).backward()
    assert chosen.grad < 0


@given(st.floats(0.01, 2))
def test_the_squared_loss_has_its_least_at_a_finite_gap(beta):
    zero = torch.zeros(()).double()
    gap = torch.full_like(zero, 1 / (2 * beta))
    assert ipo_loss(gap, zero, beta) == 0
    for other in (gap * 0.5, gap * 2, -gap):
        assert ipo_loss(other, zero, beta) > 0


@given(problems())
def test_ipo_is_least_at_the_optimum_for_the_rate_of_wins(problem):
    ref, rewards = problem
    wins = torch.sub(*every_pair(rewards)).sigmoid().mean(-1)
    best = soft_optimum(ref, wins, BETA)
    found = slope(ipo_loss, best, ref, rewards)
    assert_close(found, torch.zeros(4).double(), rtol=0, atol=1e-12)  # rounding
    # A rate is a reward between 0 and 1, so no answer gains more than 1 / beta nats.
    assert anchor_divergence(best, ref) <= (best - ref).max() <= 1 / BETA


def f_optimum(ref, rewards, ratio_of):
    """The best E[reward] - beta D_f, by bisection for what normalises it."""
    low, high = rewards.max() - 100, rewards.max() + 100
    for _ in range(200):
        shift = (low + high) / 2
        total = ref.exp() @ ratio_of((rewards - shift) / BETA)
        low, high = (shift, high) if total > 1 else (low, shift)
    return (ref.exp() * ratio_of((rewards - high) / BETA)).log()


def forward_ratio(slopes):  # f' = -1 / u, so u = -1 / f', and no u has f' of 0
    return torch.where(slopes < 0, -1 / slopes, torch.inf)


def jensen_shannon_ratio(slopes):  # f' = log(2 u / (1 + u)), below log 2
    odds = 2 * (-slopes).exp() - 1
    return torch.where(odds > 0, 1 / odds, torch.inf)


def forward_divergence(new, ref):
    return (ref * (ref / new).log()).sum()


def twice_jensen_shannon(new, ref):
    mean = (new + ref) / 2
    return (new * (new / mean).log() + ref * (ref / mean).log()).sum()


@pytest.mark.parametrize(
    ("link", "divergence"),
    [
        (forward_link, forward_divergence),
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
    [(forward_link, forward_ratio), (jensen_shannon_link, jensen_shannon_ratio)],
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
        return f_dpo_loss(chosen, rejected, beta, link)

    found = slope(loss, best, ref, rewards)
    assert_close(found, torch.zeros(4).double(), **close)


def expected_point(new, ref, data):
    """The reference point of many prompts, by listing prompts and wrong answers."""
    total = torch.zeros(()).double()
    for prompt, other in itertools.permutations(range(len(new)), 2):
        for answer in range(new.shape[-1]):
            log_ratio = new[prompt, answer] - ref[prompt, answer]
            total += data[other, answer] * log_ratio
    return max(0.0, total.item() / math.perm(len(new), 2))


def test_the_reference_point_is_no_divergence():
    ref = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]]).double()
    # Each prompt learns to give its own answer, and not the other prompt's: it is 0.
    apart = torch.tensor([[0.9, 0.09, 0.01], [0.01, 0.09, 0.9]]).double()
    # Both learn to give the answer that all of the data is: it is too large.
    alike = torch.tensor([[0.3, 0.6, 0.1], [0.1, 0.6, 0.3]]).double()
    only = torch.tensor([[0.0, 1.0, 0.0]] * 2).double()
    for new, data, larger in ((apart, ref, False), (alike, only, True)):
        log_ratio = (new / ref).log()
        divergence = anchor_divergence(new.log(), ref.log()).mean()
        point = kto_reference_point((data.flip(0) * log_ratio).sum(-1))
        assert_close(point.item(), expected_point(new.log(), ref.log(), data))
        assert (point > 2 * divergence) if larger else (point == 0 < divergence)


def test_the_reference_point_is_a_mean_without_a_gradient():
    mismatched = torch.tensor([1.0, 2.0], requires_grad=True)
    assert kto_reference_point(mismatched) == 1.5
    assert kto_reference_point(-mismatched) == 0
    assert kto_reference_point(torch.tensor([3.0, -1.0])) == 1  # at least 0 as a whole
    assert not kto_reference_point(mismatched).requires_grad


def test_the_value_of_an_answer_is_measured_from_the_reference_point():
    ratio = torch.tensor([1.0, 1.0, 3.0, -1.0], requires_grad=True)
    good = torch.tensor([True, False, True, False])
    loss = kto_loss(ratio, torch.tensor(1.0), good, 0.5)
    expected = [0.5, 0.5, 1 / (1 + math.exp(1.0)), 1 / (1 + math.exp(1.0))]
    assert_close(loss, torch.tensor(expected))
    loss.sum().backward()
    assert (ratio.grad < 0).tolist() == good.tolist()


def test_answers_are_summed_and_padding_is_not_read():
    new = torch.tensor([[-1.0, -2.0, torch.nan]], requires_grad=True)
    ref = torch.tensor([[-2.0, -0.5, torch.nan]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    ratio = answer_log_ratio(new, ref, mask)
    assert_close(ratio, torch.tensor([-0.5]))
    ratio.sum().backward()
    assert_close(new.grad, mask.float())
    assert ref.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_and_both_precisions(dtype):
    new, ref = torch.randn(
        2, 3, 4, 5, dtype=dtype, generator=torch.Generator().manual_seed(0)
    )
    mask = torch.arange(5) < torch.tensor([1, 5, 2, 3])[:, None].expand(3, 4, 1)
    ratio = answer_log_ratio(new, ref, mask)
    assert_close(ratio[1], answer_log_ratio(new[1], ref[1], mask[1]))
    point = kto_reference_point(ratio[0])
    assert point.dtype == ratio.dtype == dtype
    losses = (
        dpo_loss,
        ipo_loss,
        lambda *pair: f_dpo_loss(*pair, forward_link),
        lambda *pair: f_dpo_loss(*pair, jensen_shannon_link),
        lambda x, y, beta: kto_loss(x, point, y > 0, beta),
    )
    for loss in losses:
        found = loss(ratio, ratio.flip(-1), BETA)
        assert found.dtype == dtype
        assert_close(found[1], loss(ratio[1], ratio[1].flip(-1), BETA))


def test_a_price_that_is_not_positive_is_refused():
    zero, good = torch.zeros(2), torch.tensor([True, False])
    for beta in (0.0, -0.1, math.nan):
        for loss in (dpo_loss, ipo_loss):
            with pytest.raises(ValueError, match="beta"):
                loss(zero, zero, beta)
        with pytest.raises(ValueError, match="beta"):
            f_dpo_loss(zero, zero, beta, forward_link)
        with pytest.raises(ValueError, match="beta"):
            kto_loss(zero, zero[0], good, beta)


def test_the_reference_itself_has_the_loss_of_a_coin():
    zero = torch.zeros(3)
    assert_close(dpo_loss(zero, zero, BETA), torch.full((3,), math.log(2)))
    for link in (forward_link, jensen_shannon_link):
        found = f_dpo_loss(zero, zero, BETA, link)
        assert_close(found, torch.full((3,), math.log(2)))
    assert jensen_shannon_link(zero).tolist() == [0.0] * 3


def test_an_empty_answer_has_the_log_ratio_of_nothing():
    none = torch.zeros(2, 3, dtype=torch.bool)
    ratio = answer_log_ratio(torch.ones(2, 3), torch.zeros(2, 3), none)
    assert ratio.tolist() == [0.0, 0.0]


def test_a_mask_of_numbers_is_refused():
    with pytest.raises(ValueError, match="mask"):
        answer_log_ratio(torch.ones(2, 3), torch.zeros(2, 3), torch.ones(2, 3))


def test_the_forward_link_overflows_where_an_answer_is_given_up():
    for rarer, lost in ((88.0, False), (89.0, True)):  # exp(88.7) is float32's largest
        rejected = torch.tensor(-rarer, requires_grad=True)
        loss = f_dpo_loss(torch.tensor(0.0), rejected, BETA, forward_link)
        loss.backward()
        assert loss == 0
        assert rejected.grad.isnan() == lost


def test_both_answers_lose_where_they_share_what_is_learned():
    features = torch.tensor([1.0, 0.0, 3.0]).double()  # chosen, rejected, not compared
    ref = torch.zeros(3).double().log_softmax(-1)
    weight = torch.zeros(()).double().requires_grad_()
    losses = []
    for _ in range(20):
        ratio = (features * weight).log_softmax(-1) - ref
        losses.append(dpo_loss(ratio[0], ratio[1], BETA))
        weight.data -= torch.autograd.grad(losses[-1], weight)[0]
    assert losses[-1] < losses[0]
    assert (ratio[:2] < 0).all()


def test_a_gap_of_thousands_is_no_overflow():
    far = torch.tensor(-1e5)
    assert_close(dpo_loss(far, torch.zeros(()), 1.0), torch.tensor(1e5))
