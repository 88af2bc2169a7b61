"""The checkers accept right functions, and name the fault of each wrong one."""

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import kl_div

from snippets.estimate.estimators import k1, k2, k3
from snippets.estimate.gradients import score_loss, weighted_k2_loss, weighted_k3_loss
from snippets.exact.categorical import kl_divergence_logits
from snippets.practice.testing import faults_of, faults_of_loss


def usual(p, q):
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def filled(p, q):
    """As most repairs of a mask do it: after the subtraction, where P has `-inf`."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    gap = (log_p - log_q).masked_fill(log_p.isneginf(), 0.0)
    return (log_p.exp() * gap).sum(-1)


def in_float64(p, q):
    dtype = torch.promote_types(p.dtype, q.dtype)
    return kl_divergence_logits(p.double(), q.double()).to(dtype)


def in_float32(p, q):
    return kl_divergence_logits(p.float(), q.float())


def refusing_half(p, q):
    if p.dtype == torch.bfloat16:
        raise ValueError("not in bfloat16")
    return kl_divergence_logits(p, q)


RIGHT = {
    "ours": kl_divergence_logits,
    "in float64": in_float64,
    "in float32": in_float32,
    "rounded to bfloat16": lambda p, q: kl_divergence_logits(p, q).bfloat16(),
    "rounded and back": lambda p, q: kl_divergence_logits(p, q).bfloat16().float(),
    "P detached": lambda p, q: kl_divergence_logits(p.detach(), q),
    "Q detached": lambda p, q: kl_divergence_logits(p, q.detach()),
    "without gradients": torch.no_grad()(kl_divergence_logits),
    "refuses bfloat16": refusing_half,
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_kl_has_no_faults(name):
    assert faults_of(RIGHT[name]) == []


def test_a_right_kl_has_no_faults_where_gradients_are_off():
    with torch.no_grad():
        assert faults_of(kl_divergence_logits) == []
    with torch.inference_mode():
        assert faults_of(kl_divergence_logits) == []


def test_the_callers_random_numbers_stay_where_they_were():
    before = torch.get_rng_state()
    faults_of(kl_divergence_logits)
    assert (torch.get_rng_state() == before).all()


def torch_kl(p, q):
    return kl_divergence(Categorical(logits=p), Categorical(logits=q))


def batchmean(p, q):
    return kl_div(q.log_softmax(-1), p.softmax(-1), reduction="batchmean")


def unnormalised(p, q):
    return (p.softmax(-1) * (p - q).masked_fill(p.isneginf(), 0.0)).sum(-1)


def clamped_logs(p, q):
    log_p, log_q = (x.log_softmax(-1).clamp(min=-20.0) for x in (p, q))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def with_eps(p, q):
    p, q = (x.softmax(-1) + 1e-8 for x in (p, q))
    return (p * (p.log() - q.log())).sum(-1)


def detached_weight(p, q):
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    gap = (log_p - log_q).masked_fill(log_p.isneginf(), 0.0)
    return (log_p.exp().detach() * gap).sum(-1)


def half_detached(p, q):
    """Right in its value, and the log-ratio of P carries no gradient while Q's does."""
    return (
        kl_divergence_logits(p, q)
        - (q.softmax(-1) * q.detach()).sum(-1) * 0.5
        + ((q.softmax(-1) * q).sum(-1).detach() * 0.5)
    )


def twice(p, q):
    return 2 * kl_divergence_logits(p, q)


WRONG = {
    "swapped": (lambda p, q: kl_divergence_logits(q, p), "P and Q are swapped"),
    "sign": (lambda p, q: -kl_divergence_logits(p, q), "the wrong sign"),
    "twice": (twice, "2.000 times"),
    "bits": (lambda p, q: kl_divergence_logits(p, q) / 0.6931472, "in bits"),
    "mean": (lambda p, q: kl_divergence_logits(p, q) / p.shape[-1], "a mean over 3"),
    "of the batch": (lambda p, q: kl_divergence_logits(p, q).mean(), "the shape []"),
    "batchmean": (batchmean, "the shape []"),
    "usual, under a mask": (usual, "mask of -inf in P and Q makes it nan"),
    "usual, near": (usual, "negative for"),
    "usual, in bfloat16": (usual, "50,000 actions"),
    "filled, in bfloat16": (filled, "50,000 actions"),
    "a little off in bfloat16": (
        lambda p, q: (
            kl_divergence_logits(p, q) * (1.05 if p.dtype == torch.bfloat16 else 1)
        ),
        "5% off over 50,000 actions",
    ),
    "filled, underflow": (filled, "P underflows and Q has a mask"),
    "torch": (torch_kl, "makes its gradient to P [nan"),
    "clamped logs": (clamped_logs, "should be inf"),
    "unnormalised": (unnormalised, "normalise them"),
    "eps": (with_eps, "should be inf"),
    "floor": (
        lambda p, q: kl_divergence_logits(p, q).clamp(min=1e-8),
        "not 0 for equal",
    ),
    "clamp": (lambda p, q: filled(p, q).clamp(min=0.0), "off for policies"),
    "abs": (lambda p, q: filled(p, q).abs(), "off for policies"),
    "3 beside 1": (usual, "3 actions beside 1"),
    "detached weight": (detached_weight, "gradient to P is 0"),
    "half of it detached": (half_detached, "gradient to Q is ["),
    "nan_to_num": (
        lambda p, q: usual(p, q).nan_to_num(),
        "mask of -inf in P and Q makes it 0, not",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_fault_of_a_wrong_kl_is_named(name):
    function, fault = WRONG[name]
    faults = faults_of(function)
    assert any(fault in found for found in faults), faults
    assert all(found[0].isupper() and found[-1] == "." for found in faults)


def named(loss):
    """A loss of three positional arguments, as one by keyword."""
    return lambda *, new_log_probs, old_log_probs, ref_log_probs: loss(
        new_log_probs, old_log_probs, ref_log_probs
    )


def rho(new, old):
    return (new - old).exp()


RIGHT_LOSSES = {
    "weighted k3": weighted_k3_loss,
    "weighted k1, the log-ratio a constant": named(
        lambda n, o, r: rho(n, o) * (n - r).detach()
    ),
    "weighted k1": named(lambda n, o, r: rho(n, o) * (n - r)),
    "without gradients": torch.no_grad()(weighted_k3_loss),
}


@pytest.mark.parametrize("name", RIGHT_LOSSES)
def test_a_right_loss_has_no_faults(name):
    faults = faults_of_loss(RIGHT_LOSSES[name])
    squares = [x for x in faults if "square" in x]
    assert faults == squares  # a formula without a check of shapes broadcasts
    assert "weighted k1" in name or not squares


def test_a_surrogate_is_right_in_its_gradient_alone():
    assert faults_of_loss(weighted_k2_loss, gradient_only=True) == []
    assert any("times" in x or "not" in x for x in faults_of_loss(weighted_k2_loss))


WRONG_LOSSES = {
    "k3 in the loss": (
        named(lambda n, _, r: k3(n, r)),
        "On-policy its gradient is that of KL(ref || new)",
    ),
    "k3 without its weight": (named(lambda n, _, r: k3(n, r)), "Off-policy it is"),
    "k1 in the loss": (
        named(lambda n, _, r: k1(n, r)),
        "On-policy its gradient is 0",
    ),
    "detached weight": (
        named(lambda n, o, r: rho(n, o).detach() * k3(n, r)),
        "On-policy its gradient is that of KL(ref || new)",
    ),
    "detached k3": (
        named(lambda n, o, r: rho(n, o) * k3(n, r).detach()),
        "its gradient is [",
    ),
    "sign": (
        named(
            lambda n, o, r: (
                -weighted_k3_loss(new_log_probs=n, old_log_probs=o, ref_log_probs=r)
            )
        ),
        "the wrong sign",
    ),
    "old for new": (
        named(
            lambda n, o, r: weighted_k3_loss(
                new_log_probs=o, old_log_probs=n, ref_log_probs=r
            )
        ),
        "Off-policy it is",
    ),
    "ref for new": (
        named(
            lambda n, o, r: weighted_k3_loss(
                new_log_probs=r, old_log_probs=o, ref_log_probs=n
            )
        ),
        "On-policy it is",
    ),
    "a mean": (named(lambda n, _, r: k3(n, r).mean()), "the shape []"),
    "a product that cancels": (
        named(lambda n, o, r: rho(n, o) * ((r - n).exp() - 1 - (r - n))),
        "Its gradient is 0 where log(new/ref) is -30 in torch.float32",
    ),
    "overflow": (
        named(lambda n, o, r: rho(n, o) * ((3 * (r - n)).exp() - 1 - 3 * (r - n)) / 3),
        "at a log-ratio of -30",
    ),
    "a square": (RIGHT_LOSSES["weighted k1"], "ref_log_probs as a column"),
    "bits": (
        named(lambda n, o, r: rho(n, o) * (n - r) / 0.6931472),
        "On-policy it is 1.443 times the KL, which is in bits",
    ),
    "clamped": (named(lambda n, o, r: rho(n, o) * (n - r).clamp(min=0)), "On-policy"),
    "abs": (named(lambda n, o, r: rho(n, o) * (n - r).abs()), "On-policy"),
}


@pytest.mark.parametrize("name", WRONG_LOSSES)
def test_the_fault_of_a_wrong_loss_is_named(name):
    loss, fault = WRONG_LOSSES[name]
    faults = faults_of_loss(loss)
    assert any(fault in found for found in faults), faults


def test_a_loss_without_a_gradient_trains_nothing():
    without = torch.no_grad()(weighted_k3_loss)
    (fault,) = faults_of_loss(without, gradient_only=True)
    assert "nothing is trained" in fault


def test_a_loss_on_policy_can_be_right_and_wrong_off_policy():
    on_policy = named(lambda n, _, r: k1(n, r).detach() * n)
    faults = faults_of_loss(on_policy, gradient_only=True)
    assert any(x.startswith("Off-policy its gradient") for x in faults)
    assert not any(x.startswith("On-policy") for x in faults)
    score = named(lambda n, _, r: score_loss(new_log_probs=n, ref_log_probs=r))
    assert not any(
        x.startswith("On-policy") for x in faults_of_loss(score, gradient_only=True)
    )
    squared = named(lambda n, _, r: k2(n, r))
    assert not any(
        x.startswith("On-policy") for x in faults_of_loss(squared, gradient_only=True)
    )
