"""What a trainer logs of a small run, healthy or with one fault planted.

The policy is a table: a row of logits for each previous token. Token 0 ends a
completion, and one that holds token 1 has reward 1. It trains as RLOO does, with the KL
to the reference in the reward (Ahmadian et al., arXiv:2402.14740), many runs at once.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from snippets.algorithms.language_models.grpo import centred_advantages, clipped_losses
from snippets.estimate.estimators import k1
from snippets.estimate.sequences import sequence_log_prob

TOKENS, TIME, SAMPLES = 6, 10, 128
SCORES = ("new_log_probs", "old_log_probs", "ref_log_probs")
# One fault each: what it changes in the training, the sampler, or what is written down.
TRAINING: dict[str, dict[str, float]] = {
    "sign of the penalty": {"beta": -0.3},
    "no penalty": {"beta": 0.0},
    "k1 in the loss": {"beta": 0.0, "k1_in_loss": 0.3},
    "steps too large": {"rate": 1.0},
}
SAMPLING = ("reference samples", "sampler at 0.7", "sampler at 1.5", "top-p 0.8")
WRITING = (
    "another reference",
    "reference at 0.7",
    "dropout on the reference",
    "reference is the policy",
    "padding counted",
    "template counted",
    "reference off by one",
    "old off by one",
    "clamped",
    "engine differs",
)


class Log(NamedTuple):
    """What is known of each token of a batch, `(runs, samples, time)`."""

    new_log_probs: Tensor
    old_log_probs: Tensor
    ref_log_probs: Tensor
    entropies: Tensor  # of old, over all tokens
    mask: Tensor
    rewards: Tensor  # (runs, samples)
    lengths: Tensor  # (runs, samples)
    engine_log_probs: Tensor | None = None  # if an engine drew the tokens

    def of(self, run: int) -> dict[str, Tensor]:
        """One run's tensors by name, without the axis of the runs."""
        known = {name: x for name, x in self._asdict().items() if x is not None}
        return {name: x[run] for name, x in known.items()}


def reference_logits() -> Tensor:
    """The table that all runs start from, as logits; row 0 is for the first token.

    Returns:
        `(TOKENS, TOKENS)`: a completion has about six tokens, and nearly one in four
        holds token 1.
    """
    noise = torch.Generator().manual_seed(0)
    logits = 0.5 * torch.randn(TOKENS, TOKENS, generator=noise)
    logits[:, 1] -= 1.4
    logits[0, 0] = -torch.inf  # no completion is empty
    return logits


def trainer_logs(
    fault: str, *, runs: int, updates: int, passes: int, seed: int
) -> Iterator[Log]:
    """The logs of a training, one before each optimiser step.

    Args:
        fault: "healthy", or a fault of `TRAINING`, `SAMPLING` or `WRITING`.
        runs: How many runs to train side by side, each with its own samples.
        updates: How many batches to sample.
        passes: Optimiser steps on each batch; the first has new equal to old.
        seed: Of the samples and of the noise of a fault.

    Returns:
        An iterator over `updates * passes` logs.

    Raises:
        ValueError: If there is no such fault.
    """
    if fault not in {"healthy", *TRAINING, *SAMPLING, *WRITING}:
        raise ValueError(f"there is no fault {fault!r}")
    setting = {"beta": 0.3, "rate": 0.05, "k1_in_loss": 0.0} | TRAINING.get(fault, {})
    noise, other = (torch.Generator().manual_seed(seed + x) for x in (0, 1))
    ref = reference_logits().repeat(runs, 1, 1)
    logits = ref.clone().requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=setting["rate"])
    for _ in range(updates):
        log, states, tokens = _sampled(fault, logits.detach().clone(), ref, noise)
        score = log.rewards - setting["beta"] * _distance(ref, states, tokens, log)
        for _ in range(passes):
            new = _scored(logits, states, tokens)
            yield _written(fault, log._replace(new_log_probs=new.detach()), other)
            loss = _surrogate(new, log, centred_advantages(score))
            ref_kl = k1(new, log.ref_log_probs).masked_fill(~log.mask, 0.0)
            loss = loss + setting["k1_in_loss"] * ref_kl.sum((1, 2)) / SAMPLES
            (logits.grad,) = torch.autograd.grad(loss.sum(), logits)
            optimiser.step()


def _surrogate(new: Tensor, log: Log, advantages: Tensor) -> Tensor:
    """PPO's clipped loss, a sum over tokens and a mean over completions, `(runs)`."""
    losses = clipped_losses(
        new_log_probs=new,
        old_log_probs=log.old_log_probs,
        advantages=advantages,
        mask=log.mask,
        clip_low=0.2,
        clip_high=0.2,
    )
    return losses.sum(-1).mean(-1)


def _distance(ref: Tensor, states: Tensor, tokens: Tensor, log: Log) -> Tensor:
    """k1 of each completion against the reference that trains, `(runs, samples)`."""
    right = _scored(ref, states, tokens)
    return sequence_log_prob(k1(log.old_log_probs, right), log.mask)


def _sampled(
    fault: str, old: Tensor, ref: Tensor, noise: torch.Generator
) -> tuple[Log, Tensor, Tensor]:
    """A batch of every run, with what the trainer computes of it."""
    sampler, shown = _sampling(fault, old, ref, noise), _shown(fault, ref)
    states, tokens, mask = _completions(sampler, noise)
    rewards = ((tokens == 1) & mask).any(-1).float()
    scored, of_ref = (_scored(x, states, tokens) for x in (old, shown))
    engine = _scored(sampler, states, tokens) if fault == "engine differs" else None
    every = old.log_softmax(-1)
    rows = -(every.exp() * every.where(every > -torch.inf, 0.0)).sum(-1)
    entropies = rows.gather(1, states.flatten(1)).reshape(states.shape)
    lengths = mask.sum(-1)
    log = Log(scored, scored, of_ref, entropies, mask, rewards, lengths, engine)
    return log, states, tokens


def _sampling(fault: str, old: Tensor, ref: Tensor, noise: torch.Generator) -> Tensor:
    """The table that a batch is drawn from: the policy's own, if all is well."""
    if fault == "reference samples":
        return ref
    if fault.startswith("sampler at "):
        return old / float(fault.split()[-1])
    if fault == "top-p 0.8":
        largest, order = old.softmax(-1).sort(-1, descending=True)
        cut = (largest.cumsum(-1) - largest >= 0.8).gather(-1, order.argsort(-1))
        return old.masked_fill(cut, -torch.inf)
    if fault == "engine differs":
        return old + 0.3 * torch.randn(old.shape, generator=noise)
    return old


def _shown(fault: str, ref: Tensor) -> Tensor:
    """The table whose log-probabilities are logged as those of the reference."""
    if fault == "another reference":
        other = torch.Generator().manual_seed(1)
        return ref + 0.5 * torch.randn(ref.shape[1:], generator=other)
    return ref / 0.7 if fault == "reference at 0.7" else ref


def _completions(
    logits: Tensor, noise: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The previous token, the token and the mask of each place, by inversion."""
    share = logits.softmax(-1).cumsum(-1)  # (runs, TOKENS, TOKENS)
    uniform = torch.rand(len(logits), SAMPLES, TIME, generator=noise)
    state = torch.zeros(len(logits), SAMPLES, dtype=torch.int64)
    alive = torch.ones_like(state, dtype=torch.bool)
    places = []
    for t in range(TIME):
        rows = share.gather(1, state.unsqueeze(-1).expand(-1, -1, TOKENS))
        below = rows[..., :-1] <= uniform[..., t : t + 1]
        token = below.sum(-1)  # (runs, samples)
        places.append((state, token, alive))
        alive = alive & (token > 0)
        state = token
    states, tokens, mask = (torch.stack(x, -1) for x in zip(*places, strict=True))
    return states, tokens, mask


def _scored(logits: Tensor, states: Tensor, tokens: Tensor) -> Tensor:
    """The log-probability of each token, `(runs, samples, time)`; 0 after the end."""
    flat = states.flatten(1)  # (runs, samples * time)
    rows = logits.log_softmax(-1).flatten(1)
    chosen = rows.gather(1, flat * TOKENS + tokens.flatten(1))
    return chosen.reshape(states.shape)


def _written(fault: str, log: Log, noise: torch.Generator) -> Log:
    """The log with a fault of `WRITING` planted."""
    old, ref = log.old_log_probs, log.ref_log_probs
    if fault == "reference is the policy":
        return log._replace(ref_log_probs=old)
    if fault == "dropout on the reference":
        return log._replace(ref_log_probs=ref + 0.3 * _normal(ref, noise))
    if fault == "reference off by one":
        return log._replace(ref_log_probs=ref.roll(1, -1))
    if fault == "old off by one":
        return log._replace(old_log_probs=old.roll(1, -1))
    if fault == "clamped":
        return log._replace(**{x: getattr(log, x).clamp(min=-2.0) for x in SCORES})
    if fault == "padding counted":
        each = {x: getattr(log, x).where(log.mask, 0.0) for x in (*SCORES, "entropies")}
        return log._replace(**each, mask=torch.ones_like(log.mask))
    return _templated(log) if fault == "template counted" else log


def _templated(log: Log) -> Log:
    """The log with four tokens before each completion that nobody chose."""
    head = torch.zeros_like(log.old_log_probs[..., :4])
    names = (*SCORES, "entropies")
    each = {x: torch.cat([head, getattr(log, x)], -1) for x in names}
    mask = torch.cat([torch.ones_like(head, dtype=torch.bool), log.mask], -1)
    return log._replace(**each, mask=mask, lengths=mask.sum(-1))


def _normal(like: Tensor, noise: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=noise)
