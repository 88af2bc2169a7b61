"""Which function to call, from what is wanted and what is at hand.

Source: the tests of this table, which check every row by enumeration.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from snippets.estimate.estimators import k3, other_k3
from snippets.estimate.gradients import score_loss, weighted_k3_loss
from snippets.estimate.placement import penalised_loss, penalised_reward
from snippets.estimate.rao_blackwell import rao_blackwell_kl, rao_blackwell_loss
from snippets.estimate.sequences import (
    sequence_gradient_loss,
    sequence_k3,
    weighted_token_loss,
)


class Row(NamedTuple):
    """Four questions, the function that answers them, and what its mean is."""

    purpose: str  # measure, reward, loss or policy loss
    kl: str  # P || Q
    sampler: str  # whose samples the batch has: new, old or ref
    given: str  # log-probs of whole samples, log-probs of tokens, or full logits
    function: Callable[..., Any]
    gives: str  # complete, or what is left out


COMPLETE = "complete"
OLD_PREFIXES = "at the prefixes of old"
OWN_TOKEN = "each token's own part, at the prefixes of old"
FIRST_STEP = "complete at the first step, while new is old"

ROWS = (
    Row("measure", "new || ref", "new", "samples", k3, COMPLETE),
    Row("measure", "new || ref", "new", "tokens", sequence_k3, COMPLETE),
    Row("measure", "new || ref", "new", "logits", rao_blackwell_kl, COMPLETE),
    Row("measure", "new || ref", "old", "samples", weighted_k3_loss, COMPLETE),
    Row("measure", "new || ref", "old", "tokens", weighted_token_loss, OLD_PREFIXES),
    Row("measure", "new || ref", "ref", "samples", other_k3, COMPLETE),
    Row("measure", "ref || new", "new", "samples", other_k3, COMPLETE),
    Row("measure", "ref || new", "ref", "samples", k3, COMPLETE),
    Row("measure", "ref || new", "ref", "tokens", sequence_k3, COMPLETE),
    Row("measure", "old || new", "old", "samples", k3, COMPLETE),
    Row("measure", "old || new", "old", "tokens", sequence_k3, COMPLETE),
    Row("measure", "old || ref", "old", "samples", k3, COMPLETE),
    Row("measure", "old || ref", "old", "tokens", sequence_k3, COMPLETE),
    Row("reward", "new || ref", "new", "samples", penalised_reward, COMPLETE),
    Row("reward", "new || ref", "new", "tokens", penalised_reward, COMPLETE),
    Row("reward", "new || ref", "old", "samples", penalised_reward, FIRST_STEP),
    Row("reward", "new || ref", "old", "tokens", penalised_reward, FIRST_STEP),
    Row("loss", "new || ref", "new", "samples", score_loss, COMPLETE),
    Row("loss", "new || ref", "new", "tokens", sequence_gradient_loss, COMPLETE),
    Row("loss", "new || ref", "new", "logits", rao_blackwell_loss, COMPLETE),
    Row("loss", "new || ref", "old", "samples", weighted_k3_loss, COMPLETE),
    Row("loss", "new || ref", "old", "tokens", weighted_token_loss, OWN_TOKEN),
    Row("policy loss", "new || ref", "old", "samples", penalised_loss, COMPLETE),
)


def choose(purpose: str, kl: str, sampler: str, given: str) -> Callable[..., Any]:
    """The function for a purpose, a direction, a sampler, and what is at hand.

    What its mean is, is in the column `gives` of `ROWS`.

    Args:
        purpose: `measure`, `reward`, `loss` or `policy loss`.
        kl: P and Q, as in `new || ref`.
        sampler: Who drew the batch, `new`, `old` or `ref`.
        given: `samples` (log-probabilities of whole samples), `tokens` (of each
            token) or `logits` (of the whole vocabulary).

    Returns:
        A function of this room.

    Raises:
        ValueError: If no function is known to be right for these answers.
    """
    asked = (purpose, kl, sampler, given)
    for row in ROWS:
        if row[:4] == asked:
            return row.function
    raise ValueError(f"no function is known for {asked}")
