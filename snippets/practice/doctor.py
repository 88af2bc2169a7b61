"""What is wrong with a batch of logged log-probabilities, said in sentences.

Source: the mean of a likelihood ratio is 1 (Ville, 1939, and Markov's inequality make
tests of it that need no assumption on tails); Owen, Monte Carlo theory, methods and
examples, chapters 2 and 9, for errors of clustered samples and effective sample sizes.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from snippets.estimate.estimators import k1, k3
from snippets.estimate.off_policy import importance_weight
from snippets.estimate.sequences import sequence_log_prob, token_mean
from snippets.estimate.variance import Estimate, effective_sample_size
from snippets.foundations.contract import check_mask, check_rows, widen

ERRORS = 4.0  # standard errors that are not noise
ALPHA = 1e-5  # how often a test without assumptions may be wrong
SHARES = (0.01, 0.05, 0.2, 0.5, 0.9)  # of the reference in a mixture
SAME = 0.01  # nats per token between two computations of one policy


class Finding(NamedTuple):
    """What is wrong: a name, and a sentence with the numbers."""

    name: str
    says: str


class Batch(NamedTuple):
    """Log-probabilities in float64, 0 under the mask; the sampler drew the tokens."""

    new: Tensor
    old: Tensor
    ref: Tensor
    sampler: Tensor
    entropies: Tensor | None
    mask: Tensor
    drawn: str  # what the sampler is called


def examine(
    *,
    new_log_probs: Tensor,
    old_log_probs: Tensor,
    ref_log_probs: Tensor,
    mask: Tensor,
    engine_log_probs: Tensor | None = None,
    entropies: Tensor | None = None,
    rewards: Tensor | None = None,
    lengths: Tensor | None = None,
    updates: int | None = None,
) -> list[Finding]:
    """What is wrong with a logged batch, in sentences with numbers in nats.

    Completions are the independent units of every standard error. It reads values on
    the host: call it now and then, not in every step. What stands under the mask is
    not read.

    Args:
        new_log_probs: Log-probability of each token under the policy that trains,
            `(samples, time)`.
        old_log_probs: The same under the policy before the update, `(samples, time)`.
        ref_log_probs: The same under the reference, `(samples, time)`.
        mask: True where a token was sampled, `(samples, time)`.
        engine_log_probs: What the inference engine returned, if it drew the tokens,
            `(samples, time)`. Without it old is taken for the sampler.
        entropies: Entropy in nats of old at each token, over the whole vocabulary,
            `(samples, time)`.
        rewards: One per completion, `(samples)`.
        lengths: How many tokens each completion has by another count, `(samples)`.
        updates: Optimiser steps from the copy that became the reference to the policy
            that sampled this batch; 0 expects no KL.

    Returns:
        The findings, none for a healthy batch.

    Raises:
        ValueError: If a tensor has another shape, is an integer one, or the mask is
            not boolean.
    """
    batch = _batch(new_log_probs, old_log_probs, ref_log_probs, mask, engine_log_probs)
    if entropies is not None:
        check_mask(mask, entropies=entropies)
        batch = batch._replace(entropies=entropies.double().masked_fill(~mask, 0.0))
    found = [*_counts(mask, lengths), *_rewards(mask, rewards), *_finite(batch)]
    if any(x.name == "not finite" for x in found):
        return found
    found += _start(batch, updates)
    if (batch.ref != batch.old).any():
        found += [*_pinned(batch)] or [*_equal(batch)]
        found += _shifted(batch)
    checks = (_sampler, _engine, _surprise, _step, _weights, _drift)
    return [*found, *(finding for check in checks for finding in check(batch))]


def mean_and_cluster_error(values: Tensor, mask: Tensor) -> Estimate:
    """The mean over tokens, and its standard error over completions, in their unit.

    The tokens of a completion depend on one another, so completions are what is
    counted. What stands under the mask is not read. The error of a single completion
    is `nan`. Half precision is computed in float32 and rounded once.

    Args:
        values: One value per token, `(samples, time)`.
        mask: True where a token counts, `(samples, time)`.

    Returns:
        Two scalars, `()` each.

    Raises:
        ValueError: If the mask is not boolean, or the shapes differ.
    """
    check_mask(mask, values=values)
    dtype, (values,) = widen(values)
    mean = token_mean(values, mask)
    # --8<-- [start:error]
    off = sequence_log_prob(values - mean, mask)  # a sum per completion, (samples)
    count = mask.any(-1).sum()  # completions
    square = off.square().sum() * count / (count - 1)
    error = square.sqrt() / mask.sum()
    # --8<-- [end:error]
    return Estimate(mean.to(dtype), error.to(dtype))


def mixture_evidence(
    *, sampler_log_probs: Tensor, other_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """How much better a mixture with the other policy explains the tokens, in nats.

    The log of a mean of likelihood ratios, for five shares of the other policy. If the
    tokens are the sampler's, it exceeds `log(1 / a)` in at most a share `a` of all
    batches, whatever the policies and however many tokens. What stands under the mask
    is not read. Half precision is computed in float32 and rounded once.

    Args:
        sampler_log_probs: Log-probability of each token under the policy that is said
            to have drawn it, `(samples, time)`.
        other_log_probs: The same under a policy that was fixed before, such as the
            reference, `(samples, time)`.
        mask: True where a token was sampled, `(samples, time)`.

    Returns:
        A scalar, `()`.

    Raises:
        ValueError: If the mask is not boolean, or the shapes differ.
    """
    check_mask(
        mask, sampler_log_probs=sampler_log_probs, other_log_probs=other_log_probs
    )
    dtype, given = widen(sampler_log_probs, other_log_probs)
    # --8<-- [start:evidence]
    sampler, other = (x.masked_fill(~mask, 0.0) for x in given)
    log_u = other - sampler  # u = other / sampler, of mean 1
    shares = [math.log(share / (1 - share)) for share in SHARES]
    logs = [
        (torch.logaddexp(log_u + odds, 0 * log_u) - math.log1p(math.exp(odds))).sum()
        for odds in shares  # log of (1 - share) + share * u
    ]
    # --8<-- [end:evidence]
    return (torch.stack(logs).logsumexp(0) - math.log(len(SHARES))).to(dtype)


def _batch(
    new: Tensor, old: Tensor, ref: Tensor, mask: Tensor, engine: Tensor | None
) -> Batch:
    names = {"new_log_probs": new, "old_log_probs": old, "ref_log_probs": ref}
    names |= {} if engine is None else {"engine_log_probs": engine}
    check_mask(mask, **names)
    if mask.ndim != 2 or not mask.any():
        raise ValueError(
            f"mask is {[*mask.shape]}, and needs (samples, time) and a True"
        )
    policies = [new, old, ref, old if engine is None else engine]
    each = [x.detach().double().masked_fill(~mask, 0.0) for x in policies]
    drawn = "old" if engine is None else "the engine"
    return Batch(each[0], each[1], each[2], each[3], None, mask, drawn)


def _counts(mask: Tensor, lengths: Tensor | None) -> Iterator[Finding]:
    if lengths is None:
        return
    if lengths.shape != mask.shape[:-1]:
        raise ValueError(f"lengths is {[*lengths.shape]}, mask is {[*mask.shape]}")
    counted, real = mask.sum().item(), lengths.sum().item()
    if (mask.sum(-1) != lengths).any():
        says = f"The mask counts {counted} tokens, the lengths say {real:.0f}: a mean "
        yield Finding(
            "padded", says + f"over tokens is {real / counted:.2f} of itself."
        )


def _rewards(mask: Tensor, rewards: Tensor | None) -> Iterator[Finding]:
    if rewards is None:
        return
    check_rows(mask, rewards=rewards)
    if len(rewards) >= 32 and (rewards == rewards[:1]).all():
        says = f"All {len(rewards)} rewards are {rewards[0].item():g}: no advantage is "
        yield Finding("flat reward", says + "left, and only a KL term trains.")


def _finite(batch: Batch) -> Iterator[Finding]:
    arrays = {"new": batch.new, "old": batch.old, "ref": batch.ref}
    for name, x in (arrays | {batch.drawn: batch.sampler}).items():
        broken = (~x.isfinite()).sum().item()
        if broken:
            says = f"{name} is not finite at {broken} of {batch.mask.sum()} tokens: a "
            says += "token that it cannot give was filtered (top-k, top-p), or nan."
            yield Finding("not finite", says)


def _start(batch: Batch, updates: int | None) -> Iterator[Finding]:
    gap = batch.ref - batch.old
    if (gap == 0).all():
        if updates != 0:
            says = (
                "ref equals old to the last digit at every token: the KL is exactly 0,"
            )
            says += (
                " right before the first update and a shared or live reference after."
            )
            yield Finding("constant", says)
    elif updates == 0:
        mean, error = mean_and_cluster_error(k3(batch.old, batch.ref), batch.mask)
        if mean > SAME:
            says = (
                f"Before the first update the KL is {mean:.3f} ± {error:.3f} nats per "
            )
            says += f"token, and above {SAME}: ref is another policy. {_slope(batch)}"
            yield Finding("not zero at the start", says)


def _slope(batch: Batch) -> str:
    """Whether the gap looks like a temperature: it then grows with the log-prob."""
    old, gap = batch.old[batch.mask], (batch.ref - batch.old)[batch.mask]
    old, gap = old - old.mean(), gap - gap.mean()
    slope = (old @ gap / old.square().sum()).item()
    share = (old @ gap).square() / (old.square().sum() * gap.square().sum())
    if share < 0.5 or slope <= -1:
        return "The gap does not follow the log-probability."
    near = 1 / (1 + slope)
    return f"The gap follows the log-probability: a temperature near {near:.2f}."


def _equal(batch: Batch) -> Iterator[Finding]:
    """Tokens at which no policy had a choice, as padding and templates have."""
    same = batch.mask & (batch.new == batch.old) & (batch.old == batch.ref)
    share = same.sum().item() / batch.mask.sum().item()
    if share < 0.02:
        return
    after = (same | ~batch.mask).flip(-1).cummin(-1).values.flip(-1)
    tail = (after & same).sum() > 0.5 * same.sum()
    name, what = (
        ("padded", "at the ends of rows, padding")
        if tail
        else ("template", "within rows, a prompt or template that nobody chose")
    )
    says = (
        f"{share:.0%} of the counted tokens have equal log-probabilities everywhere, "
    )
    yield Finding(
        name, says + f"{what}: means over tokens are {1 - share:.2f} of theirs."
    )


def _pinned(batch: Batch) -> Iterator[Finding]:
    """One extreme value, far too often, where the other policy varies: a clamp."""
    old, ref = batch.old[batch.mask], batch.ref[batch.mask]
    three = {"old": (old, ref), "ref": (ref, old), "ref / old": (ref - old, old)}
    for name, (x, other) in three.items():
        usual = torch.unique(x, return_counts=True)[1].median()
        for word, limit in (("at least", x.min()), ("at most", x.max())):
            at = x == limit
            often = at.sum() >= max(5, 0.005 * len(x)) and at.sum() >= 5 * usual
            if often and limit != 0 and len(torch.unique(other[at])) >= 3:
                says = f"log({name}) is exactly {limit:.4g} at {at.sum()} tokens where "
                says += f"the other policy varies: it is clamped to be {word} that."
                yield Finding("clamped", says)


def _shifted(batch: Batch) -> Iterator[Finding]:
    """Log-probabilities that fit better one place to the left or to the right."""
    both = batch.mask[:, 1:] & batch.mask[:, :-1]
    for name, x in (("ref", batch.ref), ("new", batch.new)):
        gap = (x - batch.old)[:, 1:][both].abs().mean()
        left = (x[:, :-1] - batch.old[:, 1:])[both].abs().mean()
        right = (x[:, 1:] - batch.old[:, :-1])[both].abs().mean()
        best = torch.minimum(left, right)
        if gap > 0.1 and best < 0.5 * gap:
            says = f"{name} and old are {gap:.2f} nats apart token by token, and "
            says += f"{best:.2f} if one is moved by a place: they are off by one."
            yield Finding("off by one", says)


def _sampler(batch: Batch) -> Iterator[Finding]:
    """The tokens against the policy that is said to have drawn them."""
    others = {"ref": batch.ref} | ({} if batch.drawn == "old" else {"old": batch.old})
    for name, other in others.items():
        evidence = mixture_evidence(
            sampler_log_probs=batch.sampler, other_log_probs=other, mask=batch.mask
        ).item()
        if evidence > math.log(1 / ALPHA):
            ratio = (other - batch.sampler).exp()
            u, of_u = mean_and_cluster_error(ratio, batch.mask)
            kl, of_kl = mean_and_cluster_error(k1(batch.sampler, other), batch.mask)
            says = f"{batch.drawn} did not draw these tokens: the mean of {name} / "
            says += f"{batch.drawn} is {u:.3f} ± {of_u:.3f}, not 1, and k1 is {kl:.3f} "
            says += (
                f"± {of_kl:.3f}. A mixture explains them e^{evidence:.0f} times better."
            )
            negative = kl < -ERRORS * of_kl
            yield Finding("negative" if negative else "wrong sampler", says)


def _surprise(batch: Batch) -> Iterator[Finding]:
    """Minus the log-probability has the entropy as its mean, if old drew the tokens."""
    unsure = batch.mask & (batch.old < math.log(0.5))
    if batch.entropies is None or unsure.sum() < 50:  # too few for an error to be true
        return
    mean, error = mean_and_cluster_error(-batch.old - batch.entropies, batch.mask)
    if abs(mean) > ERRORS * error:
        how = "sharper (top-p, top-k, a low temperature)" if mean < 0 else "flatter"
        says = (
            f"−log(old) is {mean:+.3f} ± {error:.3f} nats from old's entropy, and not "
        )
        yield Finding("surprise", says + f"0: what drew the tokens is {how}.")


def _engine(batch: Batch) -> Iterator[Finding]:
    if batch.drawn == "old":
        return
    mean, error = mean_and_cluster_error(k3(batch.sampler, batch.old), batch.mask)
    if mean > SAME:
        worst = (batch.sampler - batch.old).abs().max()
        says = f"Trainer and engine differ by {mean:.3f} ± {error:.3f} nats per token, "
        says += f"at one by {worst:.2f}: weight with old / engine."
        yield Finding("engine", says)


def _step(batch: Batch) -> Iterator[Finding]:
    ratio = importance_weight(new_log_probs=batch.new, old_log_probs=batch.old)
    outside = ((ratio - 1).abs() > 0.2) & batch.mask
    share = outside.sum().item() / batch.mask.sum().item()
    if share > 0.3:
        mean, error = mean_and_cluster_error(k3(batch.old, batch.new), batch.mask)
        says = (
            f"{share:.0%} of the ratios new / old are outside 1 ± 0.2, at a step KL of "
        )
        yield Finding(
            "clipped", says + f"{mean:.3f} ± {error:.3f} nats: the step is too long."
        )


def _drift(batch: Batch) -> Iterator[Finding]:
    """k3 against the reference, where it is about to overflow or is one token."""
    log_u = batch.ref - batch.new
    values = k3(batch.new, batch.ref)[batch.mask]
    highest, share = log_u.max().item(), (values.max() / values.sum()).item()
    if highest > 10 or (share > 0.5 and len(values) >= 100):
        says = f"The largest log(ref / new) is {highest:.1f}, and one token is "
        says += f"{share:.0%} of the mean of k3. exp overflows at 88.7 in float32, "
        says += "at 11.1 in float16."
        yield Finding("overflow", says)


def _weights(batch: Batch) -> Iterator[Finding]:
    pairs = {"new / old": batch.new - batch.old}
    if batch.drawn != "old":
        pairs["old / engine"] = batch.old - batch.sampler
    for name, log_ratio in pairs.items():
        size = effective_sample_size(sequence_log_prob(log_ratio, batch.mask)).item()
        if size < 0.3 * len(batch.mask):
            says = f"Weighted with {name}, {len(batch.mask)} completions are worth "
            yield Finding("few samples", says + f"{size:.1f}.")
