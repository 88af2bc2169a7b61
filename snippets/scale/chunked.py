"""The exact KL of two language models without their logits in memory, in chunks.

Source: the chain rule of the KL (Cover and Thomas, 2nd ed., theorem 2.5.3), with the
chunk of a token as the first choice, and the token in its chunk as the second.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.checkpoint import checkpoint

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import check_floating, check_positive, widen

ROWS, WORDS = 256, 1024  # of a tile of logits, which stays near the processor
FAR = 40.0  # in nats: exp(-FAR) is rounded away beside 1, in float64 too


def chunked_kl(
    hidden_p: Tensor,
    weight_p: Tensor,
    hidden_q: Tensor,
    weight_q: Tensor,
    *,
    chunk: int = 1024,
) -> Tensor:
    """KL(P || Q) in nats per token, from hidden states and output weights.

    The logits are `hidden @ weight.T`; only a chunk of the vocabulary exists at a time,
    also in the backward pass, which computes them again. Never negative, and 0 for
    equal arguments. Half precision is computed in float32 and rounded once. There is
    no second derivative.

    Args:
        hidden_p: Last hidden states of P, `(*batch, dims)`.
        weight_p: Output weights of P, `(vocab, dims)`.
        hidden_q: Last hidden states of Q, `(*batch, features)`.
        weight_q: Output weights of Q, `(vocab, features)`.
        chunk: How many words of the vocabulary are at hand at a time.

    Returns:
        One KL per token, `(*batch)`. Gradients flow to all four.

    Raises:
        ValueError: If shapes do not fit, or a tensor is not floating point.
    """
    kl, *_ = part_of_kl(hidden_p, weight_p, hidden_q, weight_q, chunk=chunk)
    dtype, _ = widen(hidden_p, weight_p[:0], hidden_q, weight_q[:0])
    return kl.to(dtype)


def part_of_kl(
    hidden_p: Tensor,
    weight_p: Tensor,
    hidden_q: Tensor,
    weight_q: Tensor,
    *,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a part of the vocabulary tells of the KL, in nats: three numbers per token.

    They are KL(P || Q) among the words of the part, and the log-sum-exp of their logits
    under P and under Q. With the numbers of all parts, these are logits of the parts:
    see `vocab_parallel_chunked_kl`. There is no second derivative.

    Args:
        hidden_p: Last hidden states of P, `(*batch, dims)`.
        weight_p: Output weights of P for the words of the part, `(vocab, dims)`.
        hidden_q: Last hidden states of Q, `(*batch, features)`.
        weight_q: Output weights of Q for the same words, `(vocab, features)`.
        chunk: How many words are at hand at a time.

    Returns:
        The KL and both log-sum-exps, `(*batch)` each, in float32 or wider. Gradients
        flow to all four.

    Raises:
        ValueError: If shapes do not fit, or a tensor is not floating point.
    """
    _check_heads(hidden_p, weight_p, hidden_q, weight_q)
    check_positive(chunk=chunk)
    _, given = _flat(hidden_p, weight_p, hidden_q, weight_q)
    kl, of_p, of_q = (x.reshape(hidden_p.shape[:-1]) for x in _apply(*given, chunk))
    return kl, of_p, of_q


def chunked_kl_sum(
    hidden_p: Tensor,
    weight_p: Tensor,
    hidden_q: Tensor,
    weight_q: Tensor,
    token_weights: Tensor,
    *,
    chunk: int = 128,
) -> Tensor:
    """The weighted sum over tokens of what `chunked_kl` returns, as a loss needs it.

    The weights are known before the gradient, so that it is made in the forward pass,
    and nothing is computed twice. A mean has weights of one over the number of tokens.
    At hand are all logits of some tokens; slopes are added up in float32 or wider. In
    nats. There is no second derivative.

    Args:
        hidden_p: Last hidden states of P, `(*batch, dims)`.
        weight_p: Output weights of P, `(vocab, dims)`.
        hidden_q: Last hidden states of Q, `(*batch, features)`.
        weight_q: Output weights of Q, `(vocab, features)`.
        token_weights: What each token counts for, `(*batch)`.
        chunk: How many tokens are at hand at a time.

    Returns:
        One number, `()`. Gradients flow to all five.

    Raises:
        ValueError: If shapes do not fit, or a tensor is not floating point.
    """
    _check_heads(hidden_p, weight_p, hidden_q, weight_q)
    check_positive(chunk=chunk)
    check_floating(token_weights=token_weights)
    if token_weights.shape != hidden_p.shape[:-1]:
        shapes = f"token_weights is {[*token_weights.shape]}"
        raise ValueError(f"{shapes}, hidden_p is {[*hidden_p.shape]}")
    dtype, given = _flat(hidden_p, weight_p, hidden_q, weight_q)
    wanted = tuple(torch.is_grad_enabled() and x.requires_grad for x in given)
    weights = token_weights.reshape(-1).to(given[0].dtype)
    total, *_ = _apply_sum(*given, weights, chunk, wanted)
    return total.to(dtype)


def log_prob_and_kl(
    hidden_p: Tensor,
    weight_p: Tensor,
    hidden_q: Tensor,
    weight_q: Tensor,
    tokens: Tensor,
    *,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each sampled token under P, and the exact KL, in one pass.

    What a policy gradient with a penalty needs of the vocabulary. The KL is that of
    `chunked_kl`: KL(P || Q) in nats per token.

    Args:
        hidden_p: Last hidden states of P, `(*batch, dims)`.
        weight_p: Output weights of P, `(vocab, dims)`.
        hidden_q: Last hidden states of Q, `(*batch, features)`.
        weight_q: Output weights of Q, `(vocab, features)`.
        tokens: The sampled token of each position, int64, `(*batch)`.
        chunk: How many words of the vocabulary are at hand at a time.

    Returns:
        Log-probabilities and KLs, `(*batch)` both. Gradients flow to all four.

    Raises:
        ValueError: If shapes do not fit, or a tensor is not floating point.
    """
    kl, total, _ = part_of_kl(hidden_p, weight_p, hidden_q, weight_q, chunk=chunk)
    if tokens.shape != hidden_p.shape[:-1]:
        raise ValueError(f"tokens is {[*tokens.shape]}, hidden_p {[*hidden_p.shape]}")
    dtype, _ = widen(hidden_p, weight_p[:0], hidden_q, weight_q[:0])
    chosen = (hidden_p.to(kl.dtype) * weight_p[tokens].to(kl.dtype)).sum(-1)
    return (chosen - total).to(dtype), kl.to(dtype)


def kl_in_rows(logits_p: Tensor, logits_q: Tensor, *, chunk: int = 256) -> Tensor:
    """KL(P || Q) in nats per token, from logits that are at hand, a few rows at a time.

    The same numbers as `kl_divergence_logits`, whose temporary tensors are as large as
    the logits, several times; here they are as large as the rows of a chunk.

    Args:
        logits_p: Logits of P, `(*batch, vocab)`.
        logits_q: Logits of Q, `(*batch, vocab)`.
        chunk: How many rows are computed at a time.

    Returns:
        One KL per row, `(*batch)`. Gradients flow to both.

    Raises:
        ValueError: If the shapes differ, or logits are integers.
    """
    check_floating(logits_p=logits_p, logits_q=logits_q)
    check_positive(chunk=chunk)
    if logits_p.shape != logits_q.shape or not logits_p.ndim:
        shapes = f"logits_p is {[*logits_p.shape]}, logits_q is {[*logits_q.shape]}"
        raise ValueError(f"{shapes}, and they need the same, with an axis of words")
    flat = [x[None].flatten(end_dim=-2) for x in (logits_p, logits_q)]
    # --8<-- [start:rows]
    kl = [
        checkpoint(
            kl_divergence_logits, p, q, use_reentrant=False, preserve_rng_state=False
        )
        for p, q in zip(*(torch.split(x, chunk) for x in flat), strict=True)
    ]
    # --8<-- [end:rows]
    return torch.cat(kl).reshape(logits_p.shape[:-1])


def _check_heads(
    hidden_p: Tensor, weight_p: Tensor, hidden_q: Tensor, weight_q: Tensor
) -> None:
    """Refuse hidden states and output weights that do not fit each other."""
    check_floating(
        hidden_p=hidden_p, weight_p=weight_p, hidden_q=hidden_q, weight_q=weight_q
    )
    for side, hidden, weight in (("p", hidden_p, weight_p), ("q", hidden_q, weight_q)):
        if weight.ndim != 2 or not hidden.ndim or hidden.shape[-1] != weight.shape[-1]:
            shapes = f"hidden_{side} is {[*hidden.shape]}"
            raise ValueError(f"{shapes}, weight_{side} is {[*weight.shape]}")
    if hidden_p.shape[:-1] != hidden_q.shape[:-1]:
        shapes = f"hidden_p is {[*hidden_p.shape]}, hidden_q is {[*hidden_q.shape]}"
        raise ValueError(f"{shapes}: their batches differ")
    if weight_p.shape[0] != weight_q.shape[0]:
        words = f"weight_p has {weight_p.shape[0]} words, weight_q {weight_q.shape[0]}"
        raise ValueError(words)


def _flat(
    hidden_p: Tensor, weight_p: Tensor, hidden_q: Tensor, weight_q: Tensor
) -> tuple[torch.dtype, list[Tensor]]:
    """The dtype of the result, and the four: hidden states wide, in one batch."""
    dtype, wide = widen(hidden_p, weight_p[:0], hidden_q, weight_q[:0])
    hidden_p, hidden_q = (x.reshape(-1, x.shape[-1]) for x in (wide[0], wide[2]))
    return dtype, [hidden_p, weight_p, hidden_q, weight_q]


def _stretches(x: Tensor, size: int) -> list[slice]:
    """The rows of a tensor, so many at a time."""
    return [slice(first, first + size) for first in range(0, len(x), size)]


def _wide(given: Sequence[Tensor], words: slice) -> list[Tensor]:
    """The output weights of some words, of P and of Q, like the hidden states."""
    return [weight[words].to(given[0].dtype) for weight in (given[1], given[3])]


def _logits(
    given: Sequence[Tensor], rows: slice, here: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """A tile of logits of P and of Q: some tokens, some words."""
    return given[0][rows] @ here[0].T, given[2][rows] @ here[1].T


def _within(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """Log-sum-exp of P and of Q over a tile of finite logits, and the KL within it."""
    # --8<-- [start:within]
    tops = [z.amax(-1, keepdim=True) for z in (logits_p, logits_q)]
    p, q = (logits_p - tops[0]).exp_(), (logits_q - tops[1]).exp_()
    sums = [e.sum(-1, keepdim=True) for e in (p, q)]
    of_p, of_q = (top + e.log() for top, e in zip(tops, sums, strict=True))
    x = (logits_q - logits_p).add_(of_p - of_q)  # log r within the tile
    near = x.clamp(max=FAR)  # farther away exp(x) would overflow: see `rest`
    gap = near.expm1().sub_(x)  # times p: r - 1 - log r, never negative
    rest = near.sub_(x).expm1_()  # times -q: what exp(near) lacks, 0 if x <= FAR
    kl = gap.mul_(p).sum(-1) / sums[0][..., 0] - rest.mul_(q).sum(-1) / sums[1][..., 0]
    # --8<-- [end:within]
    return torch.stack([of_p[..., 0], of_q[..., 0], kl])


def _joined(parts: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The KL per token, and both log-sum-exps, from those of all chunks of words."""
    # --8<-- [start:core]
    of_p, of_q, kls = torch.stack(parts, -1)  # (tokens, chunks) each
    kl = kl_divergence_logits(of_p, of_q) + (of_p.softmax(-1) * kls).sum(-1)
    # --8<-- [end:core]
    return kl, of_p.logsumexp(-1), of_q.logsumexp(-1)


def _in_logits(
    p: Tensor, q: Tensor, numbers: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The slopes in a tile of logits of P and of Q."""
    kl, total_p, total_q, of_kl, of_total_p, of_total_q = numbers
    slope_p = slope_q = None
    # --8<-- [start:slopes]
    if any(wanted[:2]):
        constant = of_total_p - of_kl * (total_p - total_q + kl)
        slope_p = (p - q) * of_kl + constant
    chance = (p - total_p).exp_()
    if slope_p is not None:
        slope_p = slope_p.mul_(chance)
    if any(wanted[2:4]):
        slope_q = (q - total_q).exp_() * (of_kl + of_total_q) - chance * of_kl
    # --8<-- [end:slopes]
    return [slope_p, slope_q]


class _Slopes:
    """The slopes in the two hidden states and the two output weights, added up."""

    def __init__(self, given: Sequence[Tensor], wanted: Sequence[bool]) -> None:
        self.given, self.wanted = given, wanted
        self.found: list[Tensor | None] = [None] * 4

    def add(self, k: int, where: slice, part: Tensor) -> None:
        """Add to a stretch of one of the four, which begins with zeros like this."""
        total = self.found[k]
        if total is None:
            total = self.found[k] = part.new_zeros(self.given[k].shape)
        total[where].add_(part)

    def through(
        self, pair: list[Tensor | None], rows: slice, words: slice, here: list[Tensor]
    ) -> None:
        """Take the slopes in a tile of logits back through both heads."""
        for k, slope in enumerate(pair):
            if slope is not None and self.wanted[2 * k]:
                self.add(2 * k, rows, slope @ here[k])
            if slope is not None and self.wanted[2 * k + 1]:
                self.add(2 * k + 1, words, slope.T @ self.given[2 * k][rows])

    def rounded(self) -> list[Tensor | None]:
        """The four, each in its own type."""
        pairs = zip(self.found, self.given, strict=True)
        return [None if x is None else x.to(given.dtype) for x, given in pairs]


class _Chunks(torch.autograd.Function):
    """The KL, and the log-sum-exp of P and of Q, with a chunk of words at a time."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        hidden_p: Tensor,
        weight_p: Tensor,
        hidden_q: Tensor,
        weight_q: Tensor,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Three numbers per token from each chunk, joined at the end."""
        given, parts = (hidden_p, weight_p, hidden_q, weight_q), []
        # --8<-- [start:walk]
        for words in _stretches(weight_p, chunk):
            here = _wide(given, words)
            rows = _stretches(hidden_p, ROWS)
            parts.append(
                torch.cat([_within(*_logits(given, r, here)) for r in rows], -1)
            )
        # --8<-- [end:walk]
        return _joined(parts)

    @staticmethod
    def setup_context(
        ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
    ) -> None:
        """Keep what was given and three numbers per token."""
        ctx.chunk = inputs[-1]  # type: ignore[attr-defined]
        ctx.save_for_backward(*inputs[:-1], *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_three: Tensor) -> tuple[Tensor | None, ...]:
        """The slopes in the logits of a chunk, computed again, through the heads."""
        given, three = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        numbers = torch.stack([*three, *of_three]).unsqueeze(-1)
        slopes = _Slopes(given, ctx.needs_input_grad)
        for words in _stretches(given[1], ctx.chunk):
            here = _wide(given, words)
            for rows in _stretches(given[0], ROWS):
                p, q = _logits(given, rows, here)
                pair = _in_logits(p, q, numbers[:, rows], slopes.wanted)
                slopes.through(pair, rows, words, here)
        return *slopes.rounded(), None


class _Sum(torch.autograd.Function):
    """The weighted sum of the KLs, the KLs, and the slopes of the sum in the four."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        hidden_p: Tensor,
        weight_p: Tensor,
        hidden_q: Tensor,
        weight_q: Tensor,
        token_weights: Tensor,
        chunk: int,
        wanted: tuple[bool, ...],
    ) -> tuple[Tensor, ...]:
        """All logits of some tokens, used up before those of the next ones."""
        given, kls = (hidden_p, weight_p, hidden_q, weight_q), []
        slopes, none = _Slopes(given, wanted), torch.zeros_like(token_weights)
        for rows in _stretches(hidden_p, chunk):
            words = _stretches(weight_p, WORDS)
            tiles = [_logits(given, rows, _wide(given, some)) for some in words]
            three = _joined([_within(*tile) for tile in tiles])
            of_three = token_weights[rows], none[rows], none[rows]
            numbers = torch.stack([*three, *of_three]).unsqueeze(-1)
            for some in words:
                p, q = tiles.pop(0)
                pair = _in_logits(p, q, numbers, wanted)
                slopes.through(pair, rows, some, _wide(given, some))
            kls.append(three[0])
        kl = torch.cat(kls)
        found = [kl.new_zeros(0) if x is None else x for x in slopes.rounded()]
        return (token_weights * kl).sum(), kl, *found

    @staticmethod
    def setup_context(
        ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
    ) -> None:
        """Keep the slopes, and the KLs, which are those in the weights."""
        ctx.wanted = inputs[-1]  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)  # zeros as large as the slopes are not needed
        ctx.save_for_backward(*output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_sum: Tensor | None, *_: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """The slopes of the sum times the slope in the sum."""
        kl, *found = ctx.saved_tensors
        if of_sum is None:
            return (None,) * 7
        pairs = zip(found, ctx.wanted, strict=True)
        slopes = [of_sum * x if wanted else None for x, wanted in pairs]
        return *slopes, of_sum * kl, None, None


_apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Chunks.apply
_apply_sum: Callable[..., tuple[Tensor, ...]] = _Sum.apply
