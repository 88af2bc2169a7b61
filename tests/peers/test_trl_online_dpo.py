"""What TRL's online DPO logs as `objective/kl`, at the pinned version."""

import warnings
from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from tests.peers.records import OPTIONS, estimate

pytest.importorskip("trl", minversion="1.16")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it says that the place may move
    from trl.experimental.online_dpo import OnlineDPOTrainer

MASK = torch.arange(6) < torch.tensor([[6], [2], [3], [4]])  # two for each prompt
REWARDS = torch.tensor([1.0, 1.0, 0.0, 0.0])  # the first of each pair is better
BETA = 0.5


def step(padding):
    """Loss and log of one step; what stands under the mask differs by `padding`."""
    generator = torch.Generator().manual_seed(0)
    new, ref = -torch.rand(2, 4, 6, generator=generator)
    new = torch.where(MASK, new, ref + padding).requires_grad_()
    ids = torch.zeros(4, 6, dtype=torch.long)
    trainer = MagicMock(beta=BETA, eos_token_ids=[0], stats=defaultdict(list))
    trainer.args = SimpleNamespace(
        use_vllm=False, missing_eos_penalty=None, loss_type="sigmoid", n_gpu=1,
        torch_empty_cache_steps=None, optim="adamw", gradient_accumulation_steps=1,
    )  # fmt: skip
    trainer.accelerator.gather_for_metrics = lambda x: x
    trainer._generate.return_value = ids[:, :1], ids[:, :1], ids, MASK.long(), None
    trainer._forward.side_effect = new, ref
    trainer._calculate_rewards_from_functions.return_value = REWARDS
    loss = OnlineDPOTrainer.training_step(trainer, MagicMock(), {"prompt": ["a", "b"]})
    policies = {"new": new.detach(), "old": new.detach(), "ref": ref}
    kl = estimate("trl-online-dpo", **policies, mask=MASK)
    return loss, trainer.stats, kl


def test_the_logged_kl_counts_the_padding_and_the_loss_does_not():
    loss, stats, kl = step(padding=1.0)
    name = OPTIONS["trl-online-dpo"]["log"]
    right = (kl * MASK).sum(-1).mean()
    padded = (~MASK).sum(-1).float().mean()  # each such token adds a log-ratio of 1
    (logged,) = stats[name]
    assert logged == pytest.approx((right + padded).item(), rel=1e-5)
    # The loss is that of DPO over the tokens that count.
    chosen, rejected = (kl * MASK).sum(-1).chunk(2)
    assert_close(loss, -logsigmoid(BETA * (chosen - rejected)).mean())


def test_without_a_difference_under_the_mask_the_log_is_right():
    _, stats, kl = step(padding=0.0)
    right = (kl * MASK).sum(-1).mean()
    assert stats["objective/kl"] == [pytest.approx(right.item(), rel=1e-5)]
