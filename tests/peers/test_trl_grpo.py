"""TRL's GRPO loss, against the pieces that our pages put together."""

import inspect
from dataclasses import fields
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
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
from snippets.estimate.gradients import weighted_k3_loss
from snippets.estimate.sequences import (
    seq_mean_token_mean,
    seq_mean_token_sum,
    token_mean,
)
from tests.peers.records import assert_default, assert_estimate, options_of

pytest.importorskip("trl", minversion="1.16")
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import nanstd

MASK = torch.arange(5) < torch.tensor([[2], [5], [3], [4]])
REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
ADVANTAGES = group_advantages(REWARDS[None])[0]


@pytest.fixture
def log_probs():
    """New, old and ref for four completions; steps large enough to be clipped."""
    generator = torch.Generator().manual_seed(0)
    new, old, ref = -torch.rand(3, 4, 5, dtype=torch.float64, generator=generator)
    return new.requires_grad_(), old, ref


def trl_loss(
    log_probs,
    beta,
    corrected,
    level="token",
    kind="grpo",
    clip=(0.2, 0.2),
    advantages=ADVANTAGES,
):
    """TRL's loss of the batch, by its trainer's own method."""
    new, old, ref = log_probs
    trainer = MagicMock(
        args=SimpleNamespace(
            use_bias_correction_kl=corrected, delta=None, steps_per_generation=1
        ),
        beta=beta,
        loss_type=kind,
        importance_sampling_level=level,
        epsilon_low=clip[0],
        epsilon_high=clip[1],
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=7,
    )
    entropies = torch.zeros_like(old)
    trainer._get_per_token_logps_and_entropies.return_value = new, entropies, None
    trainer.model.training = True
    trainer.accelerator.num_processes = 1
    trainer.accelerator.gather = lambda x: x
    trainer.accelerator.reduce = lambda x, reduction: x  # noqa: ARG005
    empty = torch.zeros(4, 0, dtype=torch.long)
    inputs = {
        "prompt_ids": empty,
        "prompt_mask": empty,
        "completion_ids": MASK.long(),
        "completion_mask": MASK.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": MASK.sum(),
    }
    return GRPOTrainer._compute_loss(trainer, MagicMock(training=True), inputs)


def assert_same(found, expected, new):
    """The same value, and the same gradient."""
    assert_close(found, expected)
    slopes = [
        torch.autograd.grad(x, new, retain_graph=True)[0] for x in (found, expected)
    ]
    assert_close(*slopes)
    assert slopes[0].abs().max() > 0.01


def ours(log_probs, *policies):
    """The log-probabilities of some of the policies by name, and the mask."""
    named = dict(zip(("new", "old", "ref"), log_probs, strict=True))
    return {f"{x}_log_probs": named[x] for x in policies} | {"mask": MASK}


def surrogate(log_probs, low=0.2, high=0.2, losses=clipped_losses):
    tokens = ours(log_probs, "new", "old")
    return losses(**tokens, advantages=ADVANTAGES, clip_low=low, clip_high=high)


def test_grpo_is_the_clipped_loss_and_k3(log_probs):
    kl = grpo_kl(**ours(log_probs, "new", "ref"))
    expected = seq_mean_token_mean(surrogate(log_probs) + 0.04 * kl, MASK)
    assert_same(trl_loss(log_probs, 0.04, corrected=False), expected, log_probs[0])


def test_deepseek_is_the_clipped_loss_and_the_weighted_k3(log_probs):
    kl = unbiased_kl(**ours(log_probs, "new", "old", "ref"))
    expected = seq_mean_token_mean(surrogate(log_probs) + 0.04 * kl, MASK)
    assert_same(trl_loss(log_probs, 0.04, corrected=True), expected, log_probs[0])


def test_dapo_is_the_clipped_loss_over_all_tokens(log_probs):
    expected = token_mean(surrogate(log_probs, 0.2, 0.28), MASK)
    found = trl_loss(log_probs, 0.0, corrected=True, kind="dapo", clip=(0.2, 0.28))
    assert_same(found, expected, log_probs[0])


def test_dr_grpo_is_the_clipped_loss_over_a_constant(log_probs):
    expected = seq_mean_token_sum(surrogate(log_probs), MASK) / 7  # the longest allowed
    found = trl_loss(log_probs, 0.0, corrected=True, kind="dr_grpo")
    assert_same(found, expected, log_probs[0])


def test_gspo_clips_the_ratio_of_the_completion(log_probs):
    expected = surrogate(log_probs, 0.2, 0.3, sequence_clipped_losses).mean()
    found = trl_loss(log_probs, 0.0, corrected=True, level="sequence", clip=(0.2, 0.3))
    assert_same(found, expected, log_probs[0])


def test_with_ratios_of_completions_the_kl_has_that_weight(log_probs):
    ratio = mean_log_ratio(**ours(log_probs, "new", "old")).exp()
    kl = ratio[:, None] * grpo_kl(**ours(log_probs, "new", "ref"))
    expected = 0.5 * seq_mean_token_mean(kl, MASK)
    expected = expected + surrogate(log_probs, 0.2, 0.3, sequence_clipped_losses).mean()
    found = trl_loss(log_probs, 0.5, corrected=True, level="sequence", clip=(0.2, 0.3))
    assert_same(found, expected, log_probs[0])


def test_the_form_of_k3_loses_its_digits_near_zero():
    x = torch.linspace(-1e-4, 1e-4, MASK.numel()).reshape(MASK.shape)  # float32
    new = torch.zeros(MASK.shape, requires_grad=True)
    tokens = new, new.detach(), x
    found = trl_loss(tokens, 1.0, True, kind="dapo", advantages=torch.zeros(4))
    named = dict(zip(("new", "old", "ref"), tokens, strict=True))
    named = {f"{name}_log_probs": x for name, x in named.items()}
    exact = token_mean(weighted_k3_loss(**named), MASK)
    assert (found - exact).abs() > 0.05 * exact


def test_the_standard_deviation_is_that_of_a_sample_and_a_constant_is_added():
    source = inspect.getsource(GRPOTrainer)
    assert "advantages = advantages / (std_rewards + 1e-4)" in source
    found = centred_advantages(REWARDS[None])[0] / (nanstd(REWARDS) + 1e-4)
    assert_close(found, ADVANTAGES, rtol=2e-4, atol=0)  # 1e-4 over a half


def test_what_the_pages_say_of_the_defaults():
    defaults = {field.name: field.default for field in fields(GRPOConfig)}
    assert defaults["beta"] == 0.0
    assert defaults["use_bias_correction_kl"] is True
    assert defaults["loss_type"] == "dapo"
    assert defaults["num_generations"] == 8
    assert defaults["scale_rewards"] == "group"
    assert defaults["importance_sampling_level"] == "token"
    assert defaults["epsilon"] == 0.2
    assert defaults["epsilon_high"] is None


@pytest.mark.parametrize(
    ("name", "corrected", "level"),
    [
        ("trl-grpo", True, "token"),
        ("trl-grpo-plain", False, "token"),
        ("trl-grpo-sequence", True, "sequence"),
    ],
)
def test_value_and_gradient_are_those_of_the_record(name, corrected, level):
    def call(new, old, ref):
        tokens, still = (new, old, ref), torch.zeros(4)
        return trl_loss(tokens, 1.0, corrected, level, "dapo", advantages=still)

    assert_estimate(name, call)


@pytest.mark.parametrize("name", options_of("TRL"))
def test_the_defaults_are_those_of_the_record(name):
    assert_default(name)
