"""What TRL's RLOO does with its KL, at the pinned version."""

from dataclasses import fields

import pytest
import torch
from torch.testing import assert_close

from snippets.algorithms.language_models.rloo import leave_one_out, penalised_scores
from snippets.estimate.sequences import token_mean

pytest.importorskip("trl", minversion="1.16")
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import RLOOConfig, RLOOTrainer

BETA = 0.3
PROMPTS = ["a b", "c d e"]
SAMPLES = 4  # completions of each prompt


def test_the_coefficient_and_the_number_of_completions():
    defaults = {field.name: field.default for field in fields(RLOOConfig)}
    assert defaults["beta"] == 0.05
    assert defaults["num_generations"] == 2
    assert defaults["normalize_advantages"] is False


def length(completions, **_):
    """A score for each completion: how many characters it has."""
    return [float(len(text)) for text in completions]


@pytest.fixture
def trainer(tmp_path):
    """TRL's trainer of a model of eight words, with another such model as reference."""
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *"abcdef"])}
    split = Tokenizer(WordLevel(words, unk_token="a"))
    split.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=split, pad_token="<pad>", eos_token="<eos>"
    )
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=8, n_positions=16, n_embd=8, n_layer=1, n_head=1,
        bos_token_id=1, eos_token_id=1, pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    settings = RLOOConfig(
        output_dir=str(tmp_path), beta=BETA, num_generations=SAMPLES,
        per_device_train_batch_size=len(PROMPTS) * SAMPLES, max_completion_length=5,
        use_cpu=True, bf16=False, gradient_checkpointing=None, report_to="none",
    )  # fmt: skip
    data = Dataset.from_dict({"prompt": PROMPTS})
    trainer = RLOOTrainer(str(tmp_path), length, settings, data)
    with torch.no_grad():
        for weight in trainer.ref_model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    trainer.model.train()
    return trainer


# TRL 1.16.0 uses names of transformers that version 5 deprecates.
@pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")
def test_the_summed_k1_is_subtracted_before_the_baseline(trainer, monkeypatch):
    seen, log_probs = [], trainer._get_per_token_logps_and_entropies

    def remember(*arguments, **options):
        seen.append(log_probs(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", remember)
    found = trainer._generate_and_score_completions(
        [{"prompt": text} for text in PROMPTS for _ in range(SAMPLES)]
    )
    (old, *_), (ref, *_) = seen  # the policy that sampled is asked first
    mask = found["completion_mask"].bool()
    assert not mask.all(), "no completion is shorter than another"
    scores = torch.tensor(trainer._logs["rewards"]["length"])
    rewards = penalised_scores(
        scores=scores, old_log_probs=old, ref_log_probs=ref, mask=mask, beta=BETA
    )
    advantages = leave_one_out(rewards.reshape(len(PROMPTS), SAMPLES)).flatten()
    assert_close(found["advantages"], advantages)
    assert not found["advantages"].requires_grad
    # What it logs as "kl" has another unit than what it subtracts: nats per token.
    (logged,) = trainer._metrics["train"]["kl"]
    assert_close(torch.tensor(logged), token_mean(old - ref, mask))
    assert_close((scores - rewards).mean(), BETA * logged * mask.sum(-1).float().mean())
