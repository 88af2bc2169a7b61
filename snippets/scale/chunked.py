"""The exact KL of two language models without their logits in memory, in chunks.

Source: the chain rule of the KL (Cover and Thomas, 2nd ed., theorem 2.5.3), with the
chunk of a token as the first choice, and the token in its chunk as the second.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.checkpoint import checkpoint

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import check_floating, check_positive, widen

ROWS = 256  # tokens at a time: a chunk of their logits stays near the processor


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
    _check_heads(hidden_p, weight_p, hidden_q, weight_q)
    check_positive(chunk=chunk)
    dtype, _ = widen(hidden_p, weight_p, hidden_q, weight_q)
    tokens = [x.reshape(-1, x.shape[-1]) for x in (hidden_p, hidden_q)]
    kl, _, _ = _apply(tokens[0], weight_p, tokens[1], weight_q, chunk)
    return kl.reshape(hidden_p.shape[:-1]).to(dtype)


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
    _check_heads(hidden_p, weight_p, hidden_q, weight_q)
    check_positive(chunk=chunk)
    if tokens.shape != hidden_p.shape[:-1]:
        raise ValueError(f"tokens is {[*tokens.shape]}, hidden_p {[*hidden_p.shape]}")
    dtype, (hidden, rows) = widen(hidden_p, weight_p[tokens])
    rest = [x.reshape(-1, x.shape[-1]) for x in (hidden_p, hidden_q)]
    kl, total, _ = _apply(rest[0], weight_p, rest[1], weight_q, chunk)
    total, kl = (x.reshape(tokens.shape) for x in (total, kl))
    return ((hidden * rows).sum(-1) - total).to(dtype), kl.to(dtype)


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


class _Chunks(torch.autograd.Function):
    """The KL, and the log-sum-exp of P and of Q, with a chunk of logits at a time."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        hidden_p: Tensor,
        weight_p: Tensor,
        hidden_q: Tensor,
        weight_q: Tensor,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both steps of the chain rule: which chunk, and which token in it."""
        found = []
        for tokens_p, tokens_q in _together(hidden_p, hidden_q, ROWS):
            # --8<-- [start:core]
            parts = []
            for words_p, words_q in _together(weight_p, weight_q, chunk):
                p, q = _logits(tokens_p, words_p), _logits(tokens_q, words_q)
                of_p, of_q = p.logsumexp(-1), q.logsumexp(-1)
                parts.append(torch.stack([of_p, of_q, kl_divergence_logits(p, q)]))
            of_p, of_q, kls = torch.stack(parts, -1)  # (tokens, chunks) each
            kl = kl_divergence_logits(of_p, of_q) + (of_p.softmax(-1) * kls).sum(-1)
            # --8<-- [end:core]
            found.append(torch.stack([kl, of_p.logsumexp(-1), of_q.logsumexp(-1)]))
        kl, total_p, total_q = torch.cat(found, -1)
        return kl.clone(), total_p.clone(), total_q.clone()

    @staticmethod
    def setup_context(
        ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
    ) -> None:
        """Keep what was given and three numbers per token."""
        ctx.chunk = inputs[-1]  # type: ignore[attr-defined]
        ctx.save_for_backward(*inputs[:-1], *output)
        ctx.mark_non_differentiable(output[-1])

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_kl: Tensor, of_total: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The slope in the logits of a chunk, computed again, and through the heads."""
        *given, kl, total_p, total_q = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        heads = [
            _Head(given[0], given[1], wanted[:2]),
            _Head(given[2], given[3], wanted[2:4]),
        ]
        numbers = torch.stack([kl, total_p, total_q, of_kl, of_total]).unsqueeze(-1)
        for first in range(0, len(given[1]), ctx.chunk):
            for head in heads:
                head.at(slice(first, first + ctx.chunk))
            for row in range(0, len(given[0]), ROWS):
                rows = slice(row, row + ROWS)
                kl, total_p, total_q, of_kl, of_total = numbers[:, rows]
                log_p = heads[0].logits(rows) - total_p
                log_q = heads[1].logits(rows) - total_q
                p = log_p.exp()
                heads[1].add(of_kl * (log_q.exp() - p), rows)
                heads[0].add(p * (of_kl * (log_p - log_q - kl) + of_total), rows)
        return *heads[0].slopes(), *heads[1].slopes(), None


class _Head:
    """One model's hidden states and output weights, and their slopes so far."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, wanted: tuple[bool, ...]
    ) -> None:
        self.hidden, self.weight = hidden, weight
        _, (wide, _) = widen(hidden, weight)
        self.of_hidden = torch.zeros_like(wide) if wanted[0] else None
        self.of_weight = torch.zeros_like(weight) if wanted[1] else None

    def at(self, words: slice) -> None:
        """Turn to a chunk of words."""
        _, (self.here, _) = widen(self.weight[words], self.hidden[:0])
        self.words, self.sum = words, torch.zeros_like(self.here)

    def logits(self, rows: slice) -> Tensor:
        """The logits of some tokens for the words at hand."""
        return _logits(self.hidden[rows], self.here)

    def add(self, slope: Tensor, rows: slice) -> None:
        """Take the slope of these logits back through the head."""
        if self.of_hidden is not None:
            self.of_hidden[rows] += slope @ self.here
        if self.of_weight is not None:
            self.sum += slope.T @ self.hidden[rows].to(slope.dtype)
            self.of_weight[self.words] = self.sum.to(self.weight.dtype)

    def slopes(self) -> tuple[Tensor | None, Tensor | None]:
        """Of the hidden states and of the weights, where they are wanted."""
        of_hidden = self.of_hidden
        if of_hidden is not None:
            of_hidden = of_hidden.to(self.hidden.dtype)
        return of_hidden, self.of_weight


_apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Chunks.apply


def _together(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Equal stretches of two tensors."""
    for first in range(0, len(x), size):
        yield x[first : first + size], y[first : first + size]


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """The logits of some words, in float32 or wider."""
    _, (hidden, weight) = widen(hidden, weight)
    return hidden @ weight.T
