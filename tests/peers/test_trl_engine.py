"""TRL's correction for an engine that samples, against `scale/engine_mismatch`."""

import inspect
import math
import re
from dataclasses import fields
from textwrap import dedent
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch.testing import assert_close

from snippets.algorithms.language_models.grpo import unbiased_kl
from snippets.estimate.sequences import token_mean
from snippets.scale.engine_mismatch import engine_weight, processed_log_probs

pytest.importorskip("trl", minversion="1.16")
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from trl import GRPOConfig, GRPOTrainer
from trl.generation import vllm_generation
from trl.trainer.grpo_trainer import add_fused_lm_head

MASK = torch.arange(5) < torch.tensor([[2], [5], [3], [4]])
MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


@pytest.fixture
def log_probs():
    """The trainer's and the engine's, with weights that leave [0.5, 2]."""
    noise = torch.Generator().manual_seed(0)
    old = -2 * torch.rand(4, 5, dtype=torch.float64, generator=noise)
    return old, old + 0.5 * torch.randn(4, 5, dtype=torch.float64, generator=noise)


def trl_weight(old, engine, mode, low=None, high=3.0):
    """The ratio by the lines of TRL's own method, which ends far away from them."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    first = source.index("per_token_logps_diff = (old_per_token_logps")
    last = source.index("# Compute the per-token log probabilities for the reference")
    lines = dedent(source[source.rindex("\n", 0, first) + 1 : last].rstrip())
    trainer = SimpleNamespace(
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=low,
        vllm_importance_sampling_clip_max=high,
    )
    names = {
        "self": trainer,
        "torch": torch,
        "math": math,
        "mask": MASK.long(),
        "old_per_token_logps": old,
        "sampling_per_token_logps": engine,
    }
    exec(lines, names)
    return names["vllm_importance_sampling_ratio"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("low", "high"), [(None, 3.0), (0.5, 2.0)])
def test_our_weights_are_those_of_trl(log_probs, mode, low, high):
    old, engine = log_probs
    ours = engine_weight(
        trainer_log_probs=old,
        sampler_log_probs=engine,
        mask=MASK,
        mode=mode,
        floor=low or 0.0,
        ceiling=high,
    )
    theirs = trl_weight(old, engine, mode, low, high).expand_as(ours)
    assert_close(ours, theirs * MASK)
    assert ours[MASK].unique().numel() > 2


def trl_loss(new, old, ref, ratio, beta, advantages):
    """TRL's loss of a batch from an engine, by its trainer's own method."""
    trainer = MagicMock(
        args=SimpleNamespace(
            use_bias_correction_kl=True, delta=None, steps_per_generation=1
        ),
        beta=beta,
        loss_type="dapo",
        importance_sampling_level="token",
        epsilon_low=0.2,
        epsilon_high=0.2,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
    )
    rest = torch.zeros_like(old), None
    trainer._get_per_token_logps_and_entropies.return_value = new, *rest
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
        "importance_sampling_ratio": ratio,
        "num_items_in_batch": MASK.sum(),
    }
    return GRPOTrainer._compute_loss(trainer, MagicMock(training=True), inputs)


def test_the_weight_is_on_the_surrogate_and_not_on_the_kl(log_probs):
    old, _ = log_probs
    ref = old + 0.3
    nothing, ones = torch.zeros_like(old), torch.ones(4)
    only_kl = trl_loss(old, old, ref, nothing, 0.5, ones)
    policies = {"new_log_probs": old, "old_log_probs": old, "ref_log_probs": ref}
    kl = unbiased_kl(**policies, mask=MASK)
    assert_close(only_kl, 0.5 * token_mean(kl, MASK))
    assert only_kl > 0


def test_a_masked_token_stays_in_the_number_that_divides(log_probs):
    old, _ = log_probs
    half = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)[:, None]
    found = trl_loss(old, old, old, half.expand(4, 5), 0.0, torch.ones(4))
    assert_close(found, -(half * MASK).sum() / MASK.sum())


def test_what_the_page_says_of_the_defaults():
    defaults = {field.name: field.default for field in fields(GRPOConfig)}
    assert defaults["vllm_importance_sampling_correction"] is True
    assert defaults["vllm_importance_sampling_mode"] == "sequence_mask"
    assert defaults["vllm_importance_sampling_clip_max"] == 3.0
    assert defaults["vllm_importance_sampling_clip_min"] is None
    source = inspect.getsource(vllm_generation)
    assert 'logprobs_mode="processed_logprobs"' in source


def test_the_logged_ratio_is_that_after_the_mask():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    masked = source.index("vllm_importance_sampling_ratio.masked_fill")
    assert masked < source.index("flat_is_ratio = vllm_importance_sampling_ratio")
    names = set(re.findall(r'"(sampling/[\w/]+)"', source))
    assert names == {
        "sampling/sampling_logp_difference/mean",
        "sampling/sampling_logp_difference/max",
        "sampling/importance_sampling_ratio/min",
        "sampling/importance_sampling_ratio/mean",
        "sampling/importance_sampling_ratio/max",
    }


def test_the_trainer_divides_by_the_temperature_and_cuts_nothing():
    source = inspect.getsource(GRPOTrainer.__init__)
    assert "temperature=self.temperature" in source
    settings = set(inspect.signature(add_fused_lm_head).parameters)
    assert "temperature" in settings
    assert not settings & {"top_p", "top_k", "min_p"}
    recomputed = inspect.getsource(GRPOTrainer._get_per_token_logps_and_entropies)
    assert not re.search(r"top_p|top_k|min_p", recomputed)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"top_k": 3}, [TopKLogitsWarper(3)]),
        ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
        ({"min_p": 0.2}, [MinPLogitsWarper(0.2)]),
        (
            {"top_k": 4, "top_p": 0.7, "min_p": 0.1},
            [MinPLogitsWarper(0.1), TopKLogitsWarper(4), TopPLogitsWarper(0.7)],
        ),
    ],
    ids=["top-k", "top-p", "min-p", "all three"],
)
def test_the_words_that_are_kept_are_those_of_transformers(ours, theirs):
    torch.manual_seed(0)
    logits = warped = torch.randn(50, 9)
    for warper in theirs:
        warped = warper(None, warped)
    assert_close(processed_log_probs(logits, **ours), warped.log_softmax(-1))
