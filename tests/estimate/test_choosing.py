"""Every row of the table, by enumeration: its mean or its gradient is the KL's."""

import pytest
import torch
from torch.testing import assert_close

from snippets.estimate.choosing import ROWS, choose
from snippets.lab.enumeration import every_sequence, prefixes, token_log_probs

CLOSE = {"rtol": 0, "atol": 1e-10}  # float64 sums over 64 sequences
BETA = 0.3


class Case:
    """Three policies, and what a training loop would have of them."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        draw = torch.randn(3, 21, 4, dtype=torch.float64, generator=generator)
        self.policy, sequences = draw[0].requires_grad_(), every_sequence(4, 3)
        rows = prefixes(sequences, 4)
        self.mask = torch.ones_like(sequences, dtype=torch.bool)
        self.logits = {"new": self.policy[rows], "ref": draw[2][rows]}
        policies = {"new": self.policy, "old": draw[0] + 0.3 * draw[1], "ref": draw[2]}
        self.tokens = {
            name: token_log_probs(
                logits.detach() if name == "old" else logits, sequences
            )
            for name, logits in policies.items()
        }
        self.whole = {name: x.sum(-1) for name, x in self.tokens.items()}
        self.rewards = torch.randn(64, dtype=torch.float64, generator=generator)

    def kl(self, direction):
        p, q = (self.whole[name] for name in direction.split(" || "))
        return p.exp() @ (p - q)

    def slope(self, mean):
        return torch.autograd.grad(mean, self.policy, retain_graph=True)[0]

    def call(self, row):
        """The row's function with its arguments, one result per sequence."""
        new, old, ref = (self.whole[name] for name in ("new", "old", "ref"))
        by_name = {
            ("k3", "samples"): lambda: row.function(
                *(self.whole[x] for x in row.kl.split(" || "))
            ),
            ("other_k3", "samples"): lambda: row.function(new, ref),
            ("rao_blackwell_kl", "logits"): lambda: row.function(
                *self.logits.values(), self.mask
            ),
            ("weighted_k3_loss", "samples"): lambda: row.function(new, old, ref),
            ("score_loss", "samples"): lambda: row.function(new, ref),
            ("full_gradient_loss", "tokens"): lambda: row.function(
                self.tokens["new"], self.tokens["ref"], self.mask
            ),
            ("rao_blackwell_loss", "logits"): lambda: row.function(
                *self.logits.values(), self.tokens["new"], self.mask
            ),
            ("penalised_reward", "samples"): lambda: row.function(
                self.rewards, new.detach(), ref, BETA
            ),
            ("penalised_loss", "samples"): lambda: row.function(
                new, old, ref, self.rewards, BETA
            ),
        }
        return by_name[row.function.__name__, row.given]()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row[:4]))
def test_the_row_is_right(row):
    case = Case()
    sampler = case.whole[row.sampler].detach().exp()
    found, kl = case.call(row), case.kl(row.kl)
    new = case.whole["new"]
    objective = new.exp() @ case.rewards - BETA * case.kl("new || ref")
    match row.purpose:
        case "measure":
            assert_close(sampler @ found, kl, **CLOSE)
        case "loss":
            assert_close(case.slope(sampler @ found), case.slope(kl), **CLOSE)
        case "reward":
            assert_close(sampler @ found, objective, **CLOSE)
            gradient = case.slope(sampler @ (found * new))
            assert_close(gradient, case.slope(objective), **CLOSE)
        case "policy loss":
            assert_close(case.slope(sampler @ found), -case.slope(objective), **CLOSE)
        case _:
            raise AssertionError(row.purpose)


def test_no_question_has_two_answers():
    assert len({row[:4] for row in ROWS}) == len(ROWS)


def test_choose_finds_every_row():
    for row in ROWS:
        assert choose(*row[:4]) is row.function


@pytest.mark.parametrize(
    "question",
    [
        ("measure", "new || ref", "ref", "samples"),
        ("reward", "new || ref", "old", "samples"),
        ("loss", "ref || new", "new", "samples"),
        ("measure", "new||ref", "new", "samples"),
    ],
)
def test_a_question_without_an_answer_is_refused(question):
    with pytest.raises(ValueError, match="no function is known for"):
        choose(*question)
