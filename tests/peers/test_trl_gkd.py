"""What TRL's GKD computes at both ends of beta, at the pinned version."""

import warnings
from dataclasses import fields
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch.testing import assert_close

from snippets.algorithms.language_models.distillation import (
    forward_kl,
    generalised_jensen_shannon,
)
from snippets.estimate.sequences import token_mean
from snippets.exact.categorical import kl_divergence_logits
from tests.peers.records import OPTIONS, sides

pytest.importorskip("trl", minversion="1.16")
from trl import DistillationConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it says that the place may move
    from trl.experimental.gkd import GKDConfig, GKDTrainer
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

TEACHER, STUDENT = torch.tensor([[[2.0, 0.0, -1.0]], [[-2.0, 1.0, 0.5]]]).double()
BATCH = torch.randn(
    2, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
)  # teacher and student, batch, time, vocab
LABELS = torch.tensor([[1, 2, 3, 0], [4, -100, -100, -100]])  # -100 is padding


def forward(teacher, student, temperature=1.0):
    both = {"teacher_logits": teacher, "student_logits": student}
    return forward_kl(**both, temperature=temperature)


def gkd(teacher, student, beta):
    both = {"teacher_logits": teacher, "student_logits": student}
    return generalised_jensen_shannon(**both, beta=beta)


def loss(beta):
    found = GKDTrainer.generalized_jsd_loss(
        STUDENT[None], TEACHER[None], beta=beta, reduction="none"
    )
    return found.sum(-1)[0]


@pytest.mark.parametrize("beta", [1e-4, 0.5, 0.9999])
def test_between_the_ends_it_is_the_divergence_to_the_mixture(beta):
    assert_close(loss(beta), gkd(TEACHER, STUDENT, beta))


def test_at_the_ends_it_is_a_divergence_of_another_size():
    assert_close(loss(0.0), forward(TEACHER, STUDENT))
    assert_close(loss(1.0), forward(STUDENT, TEACHER))
    for end, near in ((0.0, 1e-4), (1.0, 0.9999)):
        assert loss(end) > 1000 * loss(near)


def test_its_share_is_the_teachers():
    assert_close(loss(0.1), gkd(TEACHER, STUDENT, 0.1))
    assert not torch.isclose(loss(0.1), loss(0.9), rtol=0.05)


@pytest.mark.parametrize("beta", [1e-4, 0.5, 0.9999])
def test_its_gradient_is_ours(beta):
    teacher, student = BATCH[0], BATCH[1].requires_grad_()
    theirs = GKDTrainer.generalized_jsd_loss(
        student, teacher, beta=beta, reduction="sum"
    )
    ours = gkd(teacher, student, beta).sum()
    assert_close(*(torch.autograd.grad(x, student)[0] for x in (theirs, ours)))


def test_with_labels_a_batch_is_the_mean_over_tokens():
    teacher, student = BATCH
    found = GKDTrainer.generalized_jsd_loss(student, teacher, LABELS)
    each = gkd(teacher, student, 0.5)
    assert_close(found, token_mean(each, LABELS != -100))


def test_without_labels_it_is_too_large_by_the_length():
    teacher, student = BATCH
    found = GKDTrainer.generalized_jsd_loss(student, teacher)
    each = gkd(teacher, student, 0.5)
    assert_close(found, each.mean() * BATCH.shape[2])


def test_in_float32_it_has_fewer_digits_near_the_ends():
    generator = torch.Generator().manual_seed(0)
    pair = 0.3 * torch.randn(2, 1, 8, generator=generator)
    exact = gkd(*pair.double(), 1e-4)
    ours = gkd(*pair, 1e-4).double()
    theirs = GKDTrainer.generalized_jsd_loss(
        pair[1][None], pair[0][None], beta=1e-4, reduction="sum"
    ).double()
    assert_close(ours, exact, rtol=1e-5, atol=0.0)
    assert (theirs - exact).abs() > 100 * (ours - exact).abs()


def test_its_temperature_has_no_square():
    found = GKDTrainer.generalized_jsd_loss(
        STUDENT[None], TEACHER[None], beta=0.0, temperature=2.0, reduction="sum"
    )
    assert_close(4 * found, forward(TEACHER, STUDENT, 2.0)[0])


def test_its_trainer_uses_the_temperature_to_sample_only():
    teacher, student = BATCH
    trainer = SimpleNamespace(
        beta=0.5,
        temperature=0.9,
        teacher_model=MagicMock(return_value=SimpleNamespace(logits=teacher)),
        generalized_jsd_loss=GKDTrainer.generalized_jsd_loss,
    )
    model = MagicMock(return_value=SimpleNamespace(logits=student))
    inputs = {"input_ids": None, "attention_mask": None, "labels": LABELS}
    found = GKDTrainer.compute_loss(trainer, model, inputs)
    at_one, at_its_own = (
        token_mean(
            gkd(*BATCH[:, :, :-1] / t, 0.5),
            LABELS[:, 1:] != -100,
        )
        for t in (1.0, 0.9)
    )
    assert_close(found, at_one)
    assert not torch.isclose(found, at_its_own, rtol=0.01)


def test_the_defaults():
    found = {field.name: field.default for field in fields(GKDConfig)}
    assert [found[x] for x in ("beta", "lmbda", "temperature")] == [0.5, 0.5, 0.9]
    found = {field.name: field.default for field in fields(DistillationConfig)}
    assert [found[x] for x in ("beta", "temperature")] == [1.0, 1.0]


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_stable_trainer_softens_both_and_has_no_factor(beta):
    # Hidden states times the identity are the logits.
    teacher, student = BATCH
    head, mask = torch.eye(5, dtype=torch.float64), LABELS != -100
    found, _, _ = _chunked_divergence_loss(
        student, teacher, head, head, mask, beta, temperature=2.0
    )
    soft = BATCH / 2.0
    each = {
        0.0: lambda: forward(*soft),
        0.3: lambda: gkd(*soft, 0.3),
        1.0: lambda: forward(soft[1], soft[0]),
    }[beta]()
    # It works in float32.
    assert_close(found.double(), token_mean(each, mask), rtol=1e-5, atol=1e-7)


def test_the_stable_trainers_default_is_the_kl_of_the_record():
    head, option = torch.eye(5, dtype=torch.float64), OPTIONS["trl-distillation"]
    found, _, _ = _chunked_divergence_loss(
        BATCH[1], BATCH[0], head, head, LABELS != -100, option["default"]
    )
    p, q = sides(option, teacher=BATCH[0], student=BATCH[1])
    expected = token_mean(kl_divergence_logits(p, q), LABELS != -100)
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
