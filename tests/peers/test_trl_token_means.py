"""Whose mean over tokens is one of all ranks: TRL's losses, transformers' trainer."""

import inspect
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from snippets.estimate.sequences import token_mean
from snippets.scale.token_means import global_count, rank_token_mean

pytest.importorskip("trl", minversion="1.16")
from transformers import Trainer, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

MASKS = [torch.arange(5) < torch.tensor(x)[:, None] for x in ([2, 5], [1, 1])]
COUNT = global_count(MASKS)


def trl_mean(kind, losses, mask):
    """The mean of a rank's losses, by the lines of TRL's own method."""
    source = inspect.getsource(GRPOTrainer._compute_loss)
    first = source.index('if self.loss_type in ["grpo", "sapo"]:')
    last = source.index("# Entropy bonus:")
    lines = source[source.rindex("\n", 0, first) + 1 : last].rstrip()
    trainer = SimpleNamespace(
        loss_type=kind,
        current_gradient_accumulation_steps=1,
        args=SimpleNamespace(steps_per_generation=1),
        accelerator=SimpleNamespace(num_processes=2),
    )
    names = {
        "self": trainer,
        "mode": "train",
        "per_token_loss": losses,
        "mask": mask.long(),
        "inputs": {"num_items_in_batch": COUNT},
    }
    exec(inspect.cleandoc(lines), names)
    return names["loss"]


@pytest.mark.parametrize("rank", [0, 1])
def test_dapo_is_the_mean_over_all_ranks_and_bnpo_a_mean_of_means(rank):
    losses = torch.linspace(1, 9, 10).reshape(2, 5)
    ours = rank_token_mean(losses, MASKS[rank], count=COUNT, ranks=2)
    assert_close(trl_mean("dapo", losses, MASKS[rank]), ours)
    of_its_own = token_mean(losses, MASKS[rank])
    assert_close(trl_mean("bnpo", losses, MASKS[rank]), of_its_own)
    assert abs(ours - of_its_own) > 0.1


def test_trl_counts_the_tokens_of_all_ranks_and_logs_a_sum_and_a_count():
    source = inspect.getsource(GRPOTrainer)
    counted = "num_items_in_batch = self.accelerator.gather(loss_mask.sum()).sum()"
    assert counted in source
    assert '["kl"].append(global_masked_mean(per_token_kl))' in source
    assert 'torch.stack([local_sum, local_count]), reduction="sum"' in source


def test_transformers_counts_all_ranks_by_default_and_multiplies_by_them():
    defaults = {field.name: field.default for field in fields(TrainingArguments)}
    assert defaults["average_tokens_across_devices"] is True
    loss = inspect.getsource(Trainer.compute_loss)
    assert "loss *= loss_scale" in loss
    assert "loss_scale = self.accelerator.num_processes" in loss
    assert {field.name: field.default for field in fields(GRPOConfig)}[
        "loss_type"
    ] == "dapo"
