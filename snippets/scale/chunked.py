"""The exact KL of two language models without their logits in memory, in chunks.

Source: the chain rule of the KL (Cover and Thomas, 2nd ed., theorem 2.5.3), with the
chunk of a token as the first choice, and the token in its chunk as the second.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.checkpoint import checkpoint

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import check_floating, check_positive, widen


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
    kl, _, _ = _apply(hidden_p, weight_p, hidden_q, weight_q, chunk)
    return kl.to(dtype)


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
    kl, total, _ = _apply(hidden_p, weight_p, hidden_q, weight_q, chunk)
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
        parts = []
        words = zip(*(torch.split(x, chunk) for x in (weight_p, weight_q)), strict=True)
        for words_p, words_q in words:
            # --8<-- [start:core]
            p, q = _logits(hidden_p, words_p), _logits(hidden_q, words_q)
            parts.append([kl_divergence_logits(p, q), p.logsumexp(-1), q.logsumexp(-1)])
        kls, of_p, of_q = (torch.stack(part, -1) for part in zip(*parts, strict=True))
        kl = kl_divergence_logits(of_p, of_q) + (of_p.softmax(-1) * kls).sum(-1)
        # --8<-- [end:core]
        return kl, of_p.logsumexp(-1), of_q.logsumexp(-1)

    @staticmethod
    def setup_context(
        ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
    ) -> None:
        """Keep what was given and one number per token."""
        kl, total_p, total_q = output
        ctx.chunk = inputs[-1]  # type: ignore[attr-defined]
        ctx.save_for_backward(*inputs[:-1], kl, total_p, total_q)
        ctx.mark_non_differentiable(total_q)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_kl: Tensor, of_total: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The slope in the logits of a chunk, computed again, and through the heads."""
        *given, kl, total_p, total_q = ctx.saved_tensors
        hidden_p, weight_p, hidden_q, weight_q = given
        wanted = ctx.needs_input_grad
        grads = [
            torch.zeros_like(x, dtype=kl.dtype if k % 2 == 0 else None)
            if need
            else None
            for k, (x, need) in enumerate(zip(given, wanted, strict=False))
        ]
        of_kl, of_total, kl = of_kl[..., None], of_total[..., None], kl[..., None]
        for first in range(0, weight_p.shape[0], ctx.chunk):
            words = slice(first, first + ctx.chunk)
            log_p = _logits(hidden_p, weight_p[words]) - total_p[..., None]
            log_q = _logits(hidden_q, weight_q[words]) - total_q[..., None]
            p = log_p.exp()
            if any(wanted[:2]):
                slope = p * (of_kl * (log_p - log_q - kl) + of_total)
                _through_head(slope, hidden_p, weight_p, words, *grads[:2])
            if any(wanted[2:4]):
                slope = of_kl * (log_q.exp() - p)
                _through_head(slope, hidden_q, weight_q, words, *grads[2:])
        return (
            *(
                None if g is None else g.to(x.dtype)
                for g, x in zip(grads, given, strict=True)
            ),
            None,
        )


_apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Chunks.apply


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """The logits of some words, in float32 or wider."""
    _, (hidden, weight) = widen(hidden, weight)
    return hidden @ weight.T


def _through_head(
    slope: Tensor,
    hidden: Tensor,
    weight: Tensor,
    words: slice,
    of_hidden: Tensor | None,
    of_weight: Tensor | None,
) -> None:
    """Add the slope of some logits to what is known of that of a head."""
    if of_hidden is not None:
        of_hidden += slope @ weight[words].to(slope.dtype)
    if of_weight is not None:
        rows = hidden.reshape(-1, hidden.shape[-1]).to(slope.dtype)
        of_weight[words] = slope.reshape(-1, slope.shape[-1]).T @ rows
