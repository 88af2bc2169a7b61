"""Every row of the table, by enumeration: its mean or its gradient is the KL's."""

import inspect

import pytest
import torch
from torch.testing import assert_close

from snippets.estimate.choosing import (
    COMPLETE,
    FIRST_STEP,
    OLD_PREFIXES,
    OWN_TOKEN,
    ROWS,
    choose,
)
from snippets.estimate.estimators import other_k3
from snippets.estimate.placement import penalised_reward
from snippets.estimate.sequences import reward_to_go, sequence_k3, weighted_token_loss
from snippets.lab.enumeration import every_sequence, prefixes, token_log_probs

CLOSE = {"rtol": 0, "atol": 1e-10}  # float64 sums over 64 sequences
BETA = 0.3


class Case:
    """Three policies, and what a training loop would have of them."""

    def __init__(self, moved=0.3):
        generator = torch.Generator().manual_seed(0)
        draw = torch.randn(3, 21, 4, dtype=torch.float64, generator=generator)
        self.policy, sequences = draw[0].requires_grad_(), every_sequence(4, 3)
        rows = prefixes(sequences, 4)
        self.mask = torch.ones_like(sequences, dtype=torch.bool)
        self.logits = {
            "new_logits": self.policy[rows],
            "ref_logits": draw[2][rows],
        }
        policies = {
            "new": self.policy,
            "old": draw[0] + moved * draw[1],
            "ref": draw[2],
        }
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

    def kl_at_old_prefixes(self):
        """The mean of the next-token KLs over prefixes of old."""
        new, old, ref = (self.tokens[name] for name in ("new", "old", "ref"))
        return sum(
            (old[:, :t].sum(-1).exp() * new[:, t:].sum(-1).exp()) @ (new - ref)[:, t]
            for t in range(3)
        )

    def slope(self, mean):
        return torch.autograd.grad(mean, self.policy, retain_graph=True)[0]

    def call(self, row):
        """The row's function with its arguments, one result per sequence."""
        given = self.tokens if row.given == "tokens" else self.whole
        named = {f"{name}_log_probs": given[name] for name in ("new", "old", "ref")}
        wanted = inspect.signature(row.function).parameters
        mask = {"mask": self.mask} if "mask" in wanted else {}
        if "log_p" in wanted:
            p, q = (given[name] for name in row.kl.split(" || "))
            both = (q, p) if row.function is other_k3 else (p, q)
            return row.function(*both, **mask)
        if row.function is penalised_reward:
            rewards = self.rewards
            if row.given == "tokens":  # at the last token, as a score of the response
                rewards = torch.zeros_like(given["new"])
                rewards[:, -1] = self.rewards
            old = given[row.sampler].detach()
            return row.function(
                rewards=rewards,
                old_log_probs=old,
                ref_log_probs=given["ref"],
                beta=BETA,
            )
        more = {"advantages": self.rewards, "beta": BETA, **self.logits, **mask}
        if row.given == "logits":
            named["new_log_probs"] = self.tokens["new"]
        return row.function(**{k: v for k, v in (more | named).items() if k in wanted})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row[:4]))
def test_the_row_is_right(row):
    case = Case(moved=0.0 if row.gives == FIRST_STEP else 0.3)
    sampler = case.whole[row.sampler].detach().exp()
    found, kl = case.call(row), case.kl(row.kl)
    if row.gives in {OLD_PREFIXES, OWN_TOKEN}:
        kl = case.kl_at_old_prefixes()
    new = case.whole["new"]
    objective = new.exp() @ case.rewards - BETA * case.kl("new || ref")
    match row.purpose:
        case "measure":
            assert_close(sampler @ found, kl, **CLOSE)
        case "loss":
            assert_close(case.slope(sampler @ found), case.slope(kl), **CLOSE)
        case "reward":
            score = new
            if row.given == "tokens":
                found = reward_to_go(found, case.mask)
                assert_close(sampler @ found[:, 0], objective, **CLOSE)
                found, score = (found * case.tokens["new"]).sum(-1), 1.0
            else:
                assert_close(sampler @ found, objective, **CLOSE)
            gradient = case.slope(sampler @ (found * score))
            assert_close(gradient, case.slope(objective), **CLOSE)
        case "policy loss":
            assert_close(case.slope(sampler @ found), -case.slope(objective), **CLOSE)
        case _:
            raise AssertionError(row.purpose)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row[:4]))
def test_what_is_not_complete_is_another_number(row):
    """The column says no less than it must: off-policy, the answer is not the KL's."""
    if row.gives == COMPLETE:
        return
    case = Case()
    sampler = case.whole[row.sampler].detach().exp()
    found = case.call(row)
    if row.purpose == "measure":
        assert abs(sampler @ found - case.kl(row.kl)) > 0.01
    elif row.purpose == "loss":
        right = case.slope(case.kl(row.kl))
        assert (case.slope(sampler @ found) - right).norm() > 0.1 * right.norm()
    else:
        weight = (case.whole["new"] - case.whole["old"]).exp()
        if row.given == "tokens":
            found = reward_to_go(found, case.mask)[:, 0]
        gradient = case.slope(sampler @ (weight * found.detach()))
        new = case.whole["new"]
        right = case.slope(new.exp() @ case.rewards - BETA * case.kl("new || ref"))
        old_pull = case.slope(case.kl("new || old"))
        assert_close(gradient, right + BETA * old_pull, **CLOSE)


def test_no_question_has_two_answers():
    assert len({row[:4] for row in ROWS}) == len(ROWS)


def test_choose_finds_every_row():
    for row in ROWS:
        assert choose(*row[:4]) is row.function


@pytest.mark.parametrize(
    "question",
    [
        ("measure", "ref || new", "new", "tokens"),
        ("reward", "new || ref", "ref", "samples"),
        ("loss", "ref || new", "new", "samples"),
        ("measure", "new||ref", "new", "samples"),
    ],
)
def test_a_question_without_an_answer_is_refused(question):
    with pytest.raises(ValueError, match="no function is known for"):
        choose(*question)


def test_the_defaults_of_trl_have_a_row():
    """GRPO 1.16: k3 times a weight per token in the loss, logged with it; RLOO: k1."""
    assert choose("loss", "new || ref", "old", "tokens") is weighted_token_loss
    assert choose("measure", "new || ref", "old", "tokens") is weighted_token_loss
    assert choose("measure", "new || ref", "new", "tokens") is sequence_k3
    assert choose("reward", "new || ref", "old", "samples") is penalised_reward


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row[:4]))
def test_a_question_and_its_mirror_image_are_treated_alike(row):
    """Measured from samples of P or of Q: new and ref may change places."""
    swap = {"new": "ref", "ref": "new"}
    if row.purpose != "measure" or "old" in row.kl or row.sampler == "old":
        return
    p, q = row.kl.split(" || ")
    mirror = ("measure", f"{swap[p]} || {swap[q]}", swap[row.sampler], row.given)
    if row.given != "logits":  # whose loss is about the policy that trains
        assert choose(*mirror) is row.function
