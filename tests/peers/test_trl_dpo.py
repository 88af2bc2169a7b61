"""What TRL's DPO and KTO compute, and their defaults, at the pinned version."""

from collections import defaultdict
from dataclasses import fields
from functools import partial
from types import SimpleNamespace

import pytest
import torch
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

pytest.importorskip("trl", minversion="1.16")
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

BETA = 0.3
PROMPT = torch.ones(4, 1, dtype=torch.bool)  # one token, which is not counted
MASK = torch.arange(5) < torch.tensor([[5], [2], [1], [4]])
NEW, REF = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))


def outputs(log_probs):
    """What a fused head of a language model returns, 0 where no label is."""
    found = {"log_probs": log_probs.where(MASK, 0.0), "is_top1": MASK}
    found |= {"entropy": torch.zeros(4, 5), "mean_logits": torch.zeros(4, 5)}
    return lambda **_: SimpleNamespace(**found)


def trainer(**settings):
    """The parts of a trainer that the loss reads."""
    alone = {"gather": lambda x: x, "gather_for_metrics": lambda x: x}
    return SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu"), **alone),
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        beta=BETA,
        precompute_ref_logps=True,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        **settings,
    )


def batch(**more):
    whole = torch.cat([PROMPT, MASK], -1).long()
    ids = {"input_ids": whole, "attention_mask": whole}
    return ids | {"completion_mask": torch.cat([~PROMPT, MASK], -1).long()} | more


def dpo(loss_type, divergence, **more):
    chosen, rejected = REF.where(MASK, 0.0).sum(-1).chunk(2)
    settings = trainer(
        ld_alpha=None,
        f_divergence_type=divergence,
        loss_types=[loss_type],
        loss_weights=[1.0],
        use_weighting=False,
        **more,
    )
    refs = {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    return DPOTrainer._compute_loss(settings, outputs(NEW), batch(**refs), False)


RATIOS = completion_log_ratio(new_log_probs=NEW, ref_log_probs=REF, mask=MASK)
CHOSEN, REJECTED = RATIOS.chunk(2)
PAIR = {"chosen": CHOSEN, "rejected": REJECTED, "beta": BETA}


def test_its_dpo_takes_the_sum_over_tokens():
    assert_close(dpo("sigmoid", "reverse_kl"), dpo_loss(**PAIR).mean())


def test_its_ipo_takes_the_mean_over_tokens():
    lengths = MASK.sum(-1).chunk(2)
    means = {"chosen": CHOSEN / lengths[0], "rejected": REJECTED / lengths[1]}
    found = dpo("ipo", "reverse_kl")
    assert_close(found, ipo_loss(**means, beta=BETA).mean())
    assert abs(found - ipo_loss(**PAIR).mean()) > 1


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("forward_kl", partial(alpha_link, alpha=1.0)),
        ("js_divergence", jensen_shannon_link),
    ],
)
def test_its_other_divergences_have_the_same_links(name, link):
    expected = f_dpo_loss(**PAIR, link=link).mean()
    assert_close(dpo("sigmoid", name), expected)


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.8])
def test_its_coefficient_of_the_alpha_divergence_is_one_less_alpha(coefficient):
    found = dpo("sigmoid", "alpha_divergence", f_alpha_divergence_coef=coefficient)
    link = partial(alpha_link, alpha=1 - coefficient)
    assert_close(found, f_dpo_loss(**PAIR, link=link).mean())


@pytest.mark.parametrize("shift", [-2.0, 2.0])
def test_its_kto_measures_from_a_mean_of_at_least_zero(shift):
    mismatched = torch.tensor([0.5, -0.5, 1.0, -1.0]) + shift
    good = torch.tensor([1, 0, 1, 0]).bool()
    settings = trainer(
        calculate_KL=True,
        loss_type="kto",
        desirable_weight=1.0,
        undesirable_weight=1.0,
        _compute_kl_logps=lambda *_: mismatched,
    )
    refs = {"ref_logps": REF.where(MASK, 0.0).sum(-1), "ref_KL_logps": torch.zeros(4)}
    found = KTOTrainer._compute_loss(
        settings, outputs(NEW), batch(label=good, **refs), False
    )
    point = kto_reference_point(mismatched)
    assert point == max(shift, 0)
    ours = kto_loss(log_ratios=RATIOS, reference_point=point, desirable=good, beta=BETA)
    assert_close(found, ours.mean())
    assert settings._metrics["eval"]["kl"] == [point]  # what it logs as a KL


def test_the_defaults():
    dpo, kto = (
        {field.name: field.default for field in fields(config)}
        for config in (DPOConfig, KTOConfig)
    )
    assert dpo["beta"] == kto["beta"] == 0.1
    assert dpo["f_divergence_type"] == "reverse_kl"
    assert dpo["f_alpha_divergence_coef"] == 0.5
    (loss_type,) = (x for x in fields(DPOConfig) if x.name == "loss_type")
    assert loss_type.default_factory() == ["sigmoid"]
    assert kto["loss_type"] == "kto"
    assert kto["desirable_weight"] == kto["undesirable_weight"] == 1.0
