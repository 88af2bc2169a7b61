"""Sums and means over the sequences of a pack: all tokens of a batch in one row.

Source: the boundaries are the `cu_seqlens` of Dao, FlashAttention-2, arXiv:2307.08691
(unverified here: the name is that of its code).
"""

import torch
from torch import Tensor

from snippets.foundations.contract import check_floating, widen


def packed_sum(values: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The sum over the tokens of each sequence of a pack: nats per sequence.

    An empty sequence has the sum 0. What stands after the last boundary is padding and
    is not read. Added up in float64, since a long pack loses digits in float32, and
    rounded once.

    Args:
        values: One value per token, `(samples)`.
        cu_seqlens: Where each sequence begins, and where the last one ends: int64,
            `(boundaries)`, from 0, never falling.

    Returns:
        One sum per sequence, one fewer than boundaries.

    Raises:
        ValueError: If a shape or a type is another.
    """
    _check_pack(values, cu_seqlens)
    # --8<-- [start:core]
    where = _sequence_of(values, cu_seqlens)
    there = values.masked_fill(where == len(cu_seqlens) - 1, 0.0)
    sums = torch.zeros_like(cu_seqlens, dtype=torch.float64)  # the last for padding
    sums = sums.index_add(0, where, there.double())
    # --8<-- [end:core]
    return sums[:-1].to(values.dtype)


def packed_mean(values: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The mean over the tokens of each sequence of a pack: nats per token.

    An empty sequence has no mean: `nan`. What stands after the last boundary is
    padding and is not read. Half precision is computed in float32 and rounded once.

    Args:
        values: One value per token, `(samples)`.
        cu_seqlens: Where each sequence begins, and where the last one ends: int64,
            `(boundaries)`, from 0, never falling.

    Returns:
        One mean per sequence, one fewer than boundaries.

    Raises:
        ValueError: If a shape or a type is another.
    """
    _check_pack(values, cu_seqlens)
    dtype, (wide,) = widen(values)
    return (packed_sum(wide, cu_seqlens) / cu_seqlens.diff()).to(dtype)


def boundaries_of(segment_ids: Tensor, *, count: int) -> Tensor:
    """The boundaries of a pack whose tokens say which sequence they belong to.

    A sequence without a token is empty. Ids of `count` or more are padding, at the end.
    A pack whose ids begin at 1 has an empty sequence 0.

    Args:
        segment_ids: The sequence of each token, int64, `(samples)`, from 0, never
            falling.
        count: How many sequences there are.

    Returns:
        `cu_seqlens`, one number more than sequences.

    Raises:
        ValueError: If a shape or a type is another.
    """
    if segment_ids.ndim != 1 or segment_ids.is_floating_point():
        shape = f"{segment_ids.dtype} {[*segment_ids.shape]}"
        raise ValueError(f"segment_ids is {shape}, and a pack has one axis of integers")
    # --8<-- [start:ids]
    ids = torch.arange(count + 1, device=segment_ids.device)
    return torch.searchsorted(segment_ids.contiguous(), ids)
    # --8<-- [end:ids]


def has_next(tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Whether the token after each one is of the same sequence.

    The logits of such a token predict the next one. Those of the last token of a
    sequence predict what is not in the pack: the token after it begins another
    sequence.

    Args:
        tokens: The tokens of the pack, int64, `(samples)`.
        cu_seqlens: Where each sequence begins, and where the last one ends: int64,
            `(boundaries)`, from 0, never falling.

    Returns:
        Booleans, `(samples)`.

    Raises:
        ValueError: If a shape is another.
    """
    _check_pack(torch.empty_like(tokens, dtype=torch.float32), cu_seqlens)
    where = _sequence_of(tokens, cu_seqlens)
    # --8<-- [start:next]
    other = torch.full_like(where[:1], -1)  # after the last token
    same = where == torch.cat([where[1:], other])
    # --8<-- [end:next]
    return same & (where < len(cu_seqlens) - 1)


def _sequence_of(values: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The sequence of each token; that of padding is the number of sequences."""
    places = torch.arange(len(values), device=values.device)
    return torch.bucketize(places, cu_seqlens[1:], right=True)


def _check_pack(values: Tensor, cu_seqlens: Tensor) -> None:
    """Refuse what is no row of numbers, or no row of boundaries."""
    check_floating(values=values)
    if values.ndim != 1:
        raise ValueError(f"values is {[*values.shape]}, and a pack has one axis")
    if cu_seqlens.ndim != 1 or not len(cu_seqlens) or cu_seqlens.is_floating_point():
        raise ValueError(f"cu_seqlens is {cu_seqlens.dtype} {[*cu_seqlens.shape]}")
