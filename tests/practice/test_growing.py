"""What makes a KL grow, explode or miss its target, and a loss of 0 that trains."""

import math

import pytest
import torch
from torch.testing import assert_close

from snippets.algorithms.language_models.grpo import clipped_losses, group_advantages
from snippets.algorithms.language_models.rlhf import adapt_beta
from snippets.estimate.estimators import k1, k2, k3
from snippets.estimate.gradients import weighted_k3_loss
from snippets.estimate.sequences import seq_mean_token_mean, token_mean
from snippets.exact.categorical import kl_divergence_logits

REF = torch.tensor([0.0, 1.0, -1.0, 0.5], dtype=torch.float64).log_softmax(-1)


def slope(loss):
    """The gradient of the mean of a loss over all actions, to the logits."""
    logits = torch.tensor([1.0, 0.0, 0.0, -1.0], dtype=torch.float64)
    new = logits.requires_grad_().log_softmax(-1)
    value = new.exp().detach() @ loss(new)
    return torch.autograd.grad(value, logits, retain_graph=True)[0], new, logits


def test_k1_in_the_loss_holds_nothing():
    found, *_ = slope(lambda new: k1(new, REF))
    assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-15)


def test_weighted_k3_in_the_loss_has_the_gradient_of_the_kl():
    def loss(new):
        return weighted_k3_loss(
            new_log_probs=new, old_log_probs=new.detach(), ref_log_probs=REF
        )

    found, new, logits = slope(loss)
    right = torch.autograd.grad(kl_divergence_logits(new, REF), logits)[0]
    assert_close(found, right)


@pytest.mark.parametrize("log_ratio", [3.0, 20.0, 30.0])
def test_a_clamp_frees_the_drifted_token_and_k2_does_not(log_ratio):
    new = torch.tensor([-log_ratio], requires_grad=True)
    ref = torch.zeros(1)

    def of(value):
        return torch.autograd.grad(value.sum(), new)[0].item()

    assert of(k3(new, ref).clamp(max=10)) == 0
    assert of(k2(new, ref)) == -log_ratio


def test_a_large_ratio_is_as_rare_as_its_inverse():
    """P(u > c) < 1/c under the sampler, for policies of any kind."""
    torch.manual_seed(0)
    p, q = (3 * torch.randn(2, 200, 50, dtype=torch.float64)).log_softmax(-1)
    for log_c in (0.5, 2.0, 5.0):
        chance = p.exp().where(q - p > log_c, 0.0).sum(-1)
        assert (chance < math.exp(-log_c)).all()


@pytest.mark.parametrize(("kl", "falls"), [(0.05, True), (10.0, False)])
def test_a_target_per_completion_fed_per_token_takes_the_penalty_away(kl, falls):
    beta = 0.2
    for _ in range(50):
        beta = adapt_beta(beta=beta, kl=kl, target=6.0, completions=512, horizon=10_000)
    # 50 batches move log β by 0.2 · 512 / 10,000 each, to first order in that.
    expected = math.exp(-0.512 if falls else 0.512)
    assert math.isclose(beta / 0.2, expected, rel_tol=0.02)


def test_small_numbers_in_the_formula_make_the_kl_of_equal_policies_negative():
    for std, kl in ((0.1, -0.0005), (0.03, -0.0055), (0.01, -0.0454)):
        found = math.log(1 + 1e-5) + std**2 / (2 * (std**2 + 1e-5)) - 0.5
        assert math.isclose(found, kl, abs_tol=5e-5)


def test_the_loss_of_the_first_pass_is_a_covariance_with_length():
    torch.manual_seed(0)
    rewards, lengths = torch.randint(0, 2, (1, 32)).double(), torch.randint(1, 9, (32,))
    advantages = group_advantages(rewards)[0]
    mask = torch.arange(8) < lengths[:, None]
    old = -torch.rand(32, 8, dtype=torch.float64)
    losses = clipped_losses(
        new_log_probs=old,
        old_log_probs=old,
        advantages=advantages,
        mask=mask,
        clip_low=0.2,
        clip_high=0.2,
    )
    length = lengths.double()
    covariance = (advantages * (length - length.mean())).mean()
    assert_close(token_mean(losses, mask), -covariance / length.mean())
    zero = torch.zeros((), dtype=torch.float64)
    assert_close(seq_mean_token_mean(losses, mask), zero, rtol=0, atol=1e-12)
