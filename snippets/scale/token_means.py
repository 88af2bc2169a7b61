"""The mean over all tokens of a step, when they are spread over ranks.

Source: the gradient that `DistributedDataParallel` averages over ranks; Shoeybi et al.,
Megatron-LM, arXiv:1909.08053, for parts of a computation with replicated parameters.
"""

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor

from snippets.estimate.sequences import sequence_log_prob, token_mean
from snippets.foundations.contract import check_mask, check_positive
from snippets.scale.vocab_parallel import all_gather


def global_count(
    masks: Iterable[Tensor], *, group: dist.ProcessGroup | None = None
) -> Tensor:
    """The number of tokens in all micro-batches of all ranks.

    Every rank must call it, before its first backward pass of the step, with the masks
    of all its micro-batches. Without processes it counts those of this one.

    Args:
        masks: True where a token counts, `(samples, time)` each; at least one.
        group: The ranks that share the step; all, if none is given.

    Returns:
        An int64 scalar, `()`, equal on all ranks.

    Raises:
        ValueError: If a mask is not boolean, or there is none.
    """
    masks = list(masks)
    if not masks:
        raise ValueError("masks is empty, and a rank without tokens has masks too")
    for mask in masks:
        check_mask(mask)
    # --8<-- [start:count]
    count = sum((mask.sum() for mask in masks[1:]), masks[0].sum())
    if dist.is_initialized():
        dist.all_reduce(count, group=group)  # of numbers without a gradient
    # --8<-- [end:count]
    return count


def rank_token_mean(
    values: Tensor, mask: Tensor, *, count: float | Tensor, ranks: int
) -> Tensor:
    """This micro-batch's part of the mean over all tokens of a step: nats per token.

    Summed over micro-batches and averaged over ranks, as DDP and FSDP average
    gradients, the parts are the mean over all tokens, and so are their gradients. A
    part without tokens is 0. What stands under the mask is not read. Half precision is
    computed in float32 and rounded once.

    Args:
        values: One value per token, `(samples, time)`.
        mask: True where the token counts, `(samples, time)`.
        count: Tokens of all micro-batches of all ranks, from `global_count`: a number,
            or a scalar tensor, `()`.
        ranks: How many ranks the gradients are averaged over; 1 if they are summed.

    Returns:
        A scalar, `()`.

    Raises:
        ValueError: If the mask is not boolean, the shapes differ, or count or ranks is
            a number that is not positive.
    """
    check_positive(count=count, ranks=ranks)
    # --8<-- [start:mean]
    return token_mean(values, mask, count=count / ranks)
    # --8<-- [end:mean]


def sequence_parallel_sum(
    values: Tensor, mask: Tensor, *, group: dist.ProcessGroup | None = None
) -> Tensor:
    """The sum over each sequence's tokens, of which every rank has some: nats.

    Every rank gets the whole sums, and its backward pass gives it the slope in its own
    values: each rank must go on with the same loss, and the gradients of the
    parameters must be summed over ranks. Where they are averaged, multiply the loss
    by their number. What stands under the mask is not read.

    Args:
        values: One value for each token of this rank, `(*batch, time)`.
        mask: True where the token counts, `(*batch, time)`.
        group: The ranks that share the sequences; all, if none is given.

    Returns:
        One sum per sequence, `(*batch)`, equal on all ranks.

    Raises:
        ValueError: If the mask is not boolean, or the shapes differ.
    """
    # --8<-- [start:sum]
    return all_gather(sequence_log_prob(values, mask), group).sum(-1)
    # --8<-- [end:sum]
