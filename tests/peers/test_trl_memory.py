"""When TRL loads a reference, and where it holds logits."""

import inspect
from dataclasses import fields

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("trl", minversion="1.16")
from trl import DPOConfig, GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head, selective_log_softmax


def default(config, name):
    (found,) = [field.default for field in fields(config) if field.name == name]
    return found


def test_without_a_coefficient_and_with_adapters_no_reference_is_loaded():
    assert default(GRPOConfig, "beta") == 0.0
    lines = [x.strip() for x in inspect.getsource(GRPOTrainer.__init__).splitlines()]
    code = [x for x in lines if x and not x.startswith("#")]
    start = code.index("if self.beta == 0.0:")
    assert code[start + 1 : start + 4] == [
        "self.ref_model = None",
        "elif is_peft_model(model):",
        "self.ref_model = None",
    ]
    scored = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert 'adapter_name="ref" if "ref" in model.peft_config else None' in scored


def test_the_head_is_fused_in_grpo():
    assert "add_fused_lm_head(" in inspect.getsource(GRPOTrainer.__init__)
    said = " ".join(inspect.getdoc(add_fused_lm_head).split())
    assert "without materializing the `(batch, seq_len, vocab)` logits" in said


def test_dpo_can_compute_its_reference_before_training():
    assert default(DPOConfig, "precompute_ref_log_probs") is False


def test_the_log_probability_of_the_sampled_token_is_that_of_log_softmax():
    torch.manual_seed(0)
    logits, words = torch.randn(5, 9), torch.randint(9, (5,))
    expected = logits.log_softmax(-1).gather(-1, words[:, None]).squeeze(-1)
    assert_close(selective_log_softmax(logits, words), expected)
