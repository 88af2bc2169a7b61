"""The KL of actions in parts, of which one depends on another, exact.

Source: the chain rule, Cover and Thomas, Elements of Information Theory, 2nd ed.,
theorem 2.5.3.
"""

import torch
from torch import Tensor

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import check_tensors, widen


def kl_hybrid(logits_p: Tensor, logits_q: Tensor, kl_given: Tensor) -> Tensor:
    """KL(P || Q) in nats of a discrete choice that comes with its own parameters.

    The KL of the parameters counts as often as P makes the choice. That of a choice
    which P never makes is not read, even if it is `inf` or `nan`. Never negative where
    the KLs given the choices are not; half precision is computed in float32 and
    rounded once.

    Args:
        logits_p: Logits of P's choice, `(*batch, actions)`.
        logits_q: Logits of Q's choice, `(*batch, actions)`.
        kl_given: KL(P || Q) of the parameters, given each choice, `(*batch, actions)`.

    Returns:
        One KL per action, `(*batch)`. Gradients flow to all arguments.

    Raises:
        ValueError: If the shapes differ, or an argument is an integer tensor.
    """
    check_tensors(1, logits_p=logits_p, logits_q=logits_q, kl_given=kl_given)
    dtype, (logits_p, logits_q, kl_given) = widen(logits_p, logits_q, kl_given)
    # --8<-- [start:core]
    p = logits_p.softmax(-1)  # (*batch, actions)
    counted = (p * kl_given.where(_taken(p), 0.0)).sum(-1)
    kl = kl_divergence_logits(logits_p, logits_q) + counted  # (*batch)
    # --8<-- [end:core]
    return kl.to(dtype)


def kl_autoregressive(
    logits_p: Tensor, logits_q: Tensor, later_p: Tensor, later_q: Tensor
) -> Tensor:
    """KL(P || Q) in nats of two choices, of which the second sees the first.

    Never negative, and exactly 0 for equal logits. What follows a first choice that P
    never makes is not read, `nan` and rows with every action masked included; its
    gradient is 0. Half precision is computed in float32 and rounded once.

    Args:
        logits_p: Logits of P's first choice, `(*batch, actions)`.
        logits_q: Logits of Q's first choice, `(*batch, actions)`.
        later_p: Logits of P's second choice after each first one,
            `(*batch, actions, vocab)`.
        later_q: Logits of Q's second choice after each first one,
            `(*batch, actions, vocab)`.

    Returns:
        One KL per pair of choices, `(*batch)`. Gradients flow to all arguments.

    Raises:
        ValueError: If the shapes differ, or logits are integers.
    """
    check_tensors(1, logits_p=logits_p, logits_q=logits_q)
    check_tensors(2, later_p=later_p, later_q=later_q)
    if later_p.shape[:-1] != logits_p.shape:
        raise ValueError(f"later_p is {[*later_p.shape]} after {[*logits_p.shape]}")
    dtype, rows = widen(logits_p, logits_q, later_p, later_q)
    logits_p, logits_q, later_p, later_q = rows
    # --8<-- [start:later]
    taken = _taken(logits_p.softmax(-1)).unsqueeze(-1)  # (*batch, actions, 1)
    later = kl_divergence_logits(later_p.where(taken, 0.0), later_q.where(taken, 0.0))
    kl = kl_hybrid(logits_p, logits_q, later)  # (*batch)
    # --8<-- [end:later]
    return kl.to(dtype)


def _taken(p: Tensor) -> Tensor:
    """Where a probability is not 0 and does not underflow: below, digits are lost."""
    return p >= torch.finfo(p.dtype).tiny
