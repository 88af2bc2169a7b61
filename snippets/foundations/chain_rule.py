"""From the KL of one step to the KL of a sequence, and back to a unit per token.

Source: Cover and Thomas, Elements of Information Theory, 2nd ed., theorem 2.5.3.
"""

import torch
from torch import Tensor

from snippets.foundations.contract import (
    check_floating,
    check_tensors,
    nan_outside,
    widen,
)


def sequence_kl(token_kl: Tensor, prefix_log_probs: Tensor) -> Tensor:
    """KL(P || Q) in nats of whole sequences, from the exact KL after each prefix.

    The KL after a prefix counts as often as P reaches the prefix. With one entry per
    prefix that P can reach, the sum is exact. A prefix of probability 0 is not read.
    Half precision is computed in float32 and rounded once.

    Args:
        token_kl: KL(P || Q) of the next token in nats, `(*batch, samples)`, one for
            each prefix.
        prefix_log_probs: Log-probability of each prefix under P, `(*batch, samples)`.

    Returns:
        One KL per row, `(*batch)`.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(1, token_kl=token_kl, prefix_log_probs=prefix_log_probs)
    dtype, (token_kl, prefix_log_probs) = widen(token_kl, prefix_log_probs)
    # --8<-- [start:core]
    reached = prefix_log_probs.exp()  # (*batch, samples)
    kl = (reached * token_kl.where(reached > 0, 0.0)).sum(-1)
    # --8<-- [end:core]
    return kl.to(dtype)


def per_token(sequence: Tensor, mean_length: Tensor) -> Tensor:
    """Nats per token: the KL of sequences divided by their mean length under P.

    A row whose length is not positive is `nan`.

    Args:
        sequence: KL(P || Q) of sequences in nats, `(*batch)`.
        mean_length: Mean number of tokens of P's sequences, `(*batch)`.

    Returns:
        One rate per row, `(*batch)`.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(sequence=sequence, mean_length=mean_length)
    return nan_outside(sequence / mean_length, mean_length > 0)


def marginal_log_prob(joint: Tensor, axis: int) -> Tensor:
    """Log-probabilities, in nats, after forgetting one axis of a joint table.

    What is impossible with all values of that axis is `-inf`, with a gradient of 0.
    Half precision is computed in float32 and rounded once.

    Args:
        joint: Log-probabilities of everything together, `(*batch)`.
        axis: The axis to forget.

    Returns:
        Log-probabilities without it, of one axis less.

    Raises:
        ValueError: If there is no such axis, or the table is an integer tensor.
    """
    check_floating(joint=joint)
    if not -joint.ndim <= axis < joint.ndim:
        raise ValueError(f"joint is {[*joint.shape]}, and has no axis {axis}")
    dtype, (joint,) = widen(joint)
    impossible = joint.isneginf().all(axis, keepdim=True)
    total = joint.masked_fill(impossible, 0.0).logsumexp(axis)
    return total.masked_fill(impossible.squeeze(axis), -torch.inf).to(dtype)
