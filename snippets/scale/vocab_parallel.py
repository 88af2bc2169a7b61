"""The exact KL of logits whose vocabulary is spread over processes.

Source: Shoeybi et al., Megatron-LM, arXiv:1909.08053, for the spread vocabulary. The
sum is the chain rule of `scale/chunked`, with the process of a word as its chunk; the
slope of the hidden states is summed as in Megatron-LM's `f`, section 3.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import check_tensors, widen
from snippets.scale.chunked import part_of_kl


def vocab_parallel_kl(
    shard_p: Tensor, shard_q: Tensor, *, group: dist.ProcessGroup | None = None
) -> Tensor:
    """KL(P || Q) in nats, from each process's part of the vocabulary.

    Every process gets the whole KL, and its backward pass gives it the slope in its
    own logits: each process must then go on with the same loss. Parts may differ in
    size. A part whose words are masked in P and in Q adds nothing. Half precision is
    computed in float32 and rounded once.

    Args:
        shard_p: Logits of P for the words of this process, `(*batch, vocab)`.
        shard_q: Logits of Q for the same words, `(*batch, vocab)`.
        group: The processes that share the vocabulary; all, if none is given.

    Returns:
        One KL per row, `(*batch)`, equal on all processes. Gradients flow to both.

    Raises:
        ValueError: If the shapes differ, or logits are integers.
    """
    check_tensors(1, shard_p=shard_p, shard_q=shard_q)
    dtype, (p, q) = widen(shard_p, shard_q)
    none_p, none_q = ((x == -torch.inf).all(-1) for x in (p, q))
    none = (none_p | none_q).unsqueeze(-1)  # no KL within such a part
    # --8<-- [start:core]
    within = kl_divergence_logits(p.masked_fill(none, 0.0), q.masked_fill(none, 0.0))
    kl = _joined_over(within, _log_mass(p, none_p), _log_mass(q, none_q), group)
    # --8<-- [end:core]
    return kl.to(dtype)


def vocab_parallel_chunked_kl(
    hidden_p: Tensor,
    shard_p: Tensor,
    hidden_q: Tensor,
    shard_q: Tensor,
    *,
    chunk: int = 1024,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """KL(P || Q) in nats, from each process's output weights, without their logits.

    Hidden states are equal on all processes, and so is what they get: the whole KL, and
    the whole slope in the hidden states, which is added up over the processes. Each has
    the slope in its own weights. Half precision is computed in float32 and rounded
    once. There is no second derivative.

    Args:
        hidden_p: Last hidden states of P, `(*batch, dims)`.
        shard_p: Output weights of P for the words of this process, `(vocab, dims)`.
        hidden_q: Last hidden states of Q, `(*batch, features)`.
        shard_q: Output weights of Q for the same words, `(vocab, features)`.
        chunk: How many words are at hand at a time.
        group: The processes that share the vocabulary; all, if none is given.

    Returns:
        One KL per token, `(*batch)`, equal on all processes. Gradients flow to all
        four.

    Raises:
        ValueError: If shapes do not fit, or a tensor is not floating point.
    """
    dtype, _ = widen(hidden_p, shard_p[:0], hidden_q, shard_q[:0])
    # --8<-- [start:chunks]
    hidden_p, hidden_q = _alike(hidden_p, group), _alike(hidden_q, group)
    three = part_of_kl(hidden_p, shard_p, hidden_q, shard_q, chunk=chunk)
    kl = _joined_over(*three, group)
    # --8<-- [end:chunks]
    return kl.to(dtype)


def _joined_over(
    within: Tensor, of_p: Tensor, of_q: Tensor, group: dist.ProcessGroup | None
) -> Tensor:
    """The KL, from three numbers per token of each process."""
    # --8<-- [start:joined]
    three = all_gather(torch.stack([within, of_p, of_q]), group)
    kls, of_p, of_q = three.unbind()  # (*batch, processes) each
    return kl_divergence_logits(of_p, of_q) + (of_p.softmax(-1) * kls).sum(-1)
    # --8<-- [end:joined]


def all_gather(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The numbers of all processes along a new last axis; the slope is this one's.

    Right if every process computes the same loss from the result: each then has the
    whole slope, and takes its own part of it. A gather that adds the slopes of all
    processes would be as many times too large as there are processes.

    Args:
        x: Numbers of this process, of the same shape on all, `(*batch)`.
        group: The processes; all, if none is given.

    Returns:
        `(*batch, processes)`.
    """
    gathered: Tensor = _Gather.apply(x, group)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        """Ask all processes."""
        ctx.rank = dist.get_rank(group)
        all_of_them = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(all_of_them, x.contiguous(), group)
        return torch.stack(all_of_them, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        """What belongs to this process."""
        return slope[..., ctx.rank].contiguous(), None


class _Everywhere(torch.autograd.Function):
    """What all processes have alike, whose slope is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        """Pass it on."""
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        """Ask all processes, in float32 or wider."""
        dtype, (wide,) = widen(slope)
        total = wide.clone()
        dist.all_reduce(total, group=ctx.group)
        return total.to(dtype), None


_alike: Callable[..., Tensor] = _Everywhere.apply


def _log_mass(logits: Tensor, none: Tensor) -> Tensor:
    """The log-sum-exp of a part, `-inf` and without a slope where it has no words."""
    there = logits.masked_fill(none.unsqueeze(-1), 0.0)
    return there.logsumexp(-1).masked_fill(none, -torch.inf)
