"""The exact KL of logits whose vocabulary is spread over processes.

Source: Shoeybi et al., Megatron-LM, arXiv:1909.08053, for the spread vocabulary. The
sum is the chain rule of `scale/chunked`, with the process of a word as its chunk.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import check_tensors, widen


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
    three = torch.stack([_log_mass(p, none_p), _log_mass(q, none_q), within])
    of_p, of_q, kls = all_gather(three, group).unbind()  # (*batch, processes) each
    kl = kl_divergence_logits(of_p, of_q) + (of_p.softmax(-1) * kls).sum(-1)
    # --8<-- [end:core]
    return kl.to(dtype)


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


def _log_mass(logits: Tensor, none: Tensor) -> Tensor:
    """The log-sum-exp of a part, `-inf` and without a slope where it has no words."""
    there = logits.masked_fill(none.unsqueeze(-1), 0.0)
    return there.logsumexp(-1).masked_fill(none, -torch.inf)
