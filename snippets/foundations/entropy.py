"""Entropy, cross-entropy and mutual information, and the KL in each of them.

Source: Cover and Thomas, Elements of Information Theory, 2nd ed., chapter 2.
"""

import torch
from torch import Tensor

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import check_tensors, nan_outside, widen


def entropy(logits: Tensor) -> Tensor:
    """H(P) in nats, from logits: the mean surprise of P by its own actions.

    A masked action adds nothing and gets a gradient of 0. A row with every action
    masked is `nan`. Half precision is computed in float32 and rounded once.

    Args:
        logits: Logits of P, `(*batch, actions)`, normalised or not.

    Returns:
        One entropy per row, `(*batch)`, between 0 and the log of the number of actions
        that are not masked.

    Raises:
        ValueError: If logits have no axis, or are integers.
    """
    check_tensors(1, logits=logits)
    dtype, (logits,) = widen(logits)
    # --8<-- [start:core]
    log_p = logits.log_softmax(-1)  # (*batch, actions)
    p = log_p.exp()
    return -(p * log_p.where(p > 0, 0.0)).sum(-1).to(dtype)
    # --8<-- [end:core]


def cross_entropy(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """H(P, Q) = -E_P[log Q] in nats, from logits: the loss of a model Q on data of P.

    An action that is masked or underflows in P adds nothing; masked in Q alone, it
    makes the result `inf`. It is the entropy of P plus KL(P || Q), so it is the entropy
    where Q equals P. Half precision is computed in float32 and rounded once.

    Args:
        logits_p: Logits of P, `(*batch, actions)`, normalised or not.
        logits_q: Logits of Q, `(*batch, actions)`.

    Returns:
        One cross-entropy per row, `(*batch)`, never negative.

    Raises:
        ValueError: If the shapes differ, or logits are integers.
    """
    check_tensors(1, logits_p=logits_p, logits_q=logits_q)
    dtype, (logits_p, logits_q) = widen(logits_p, logits_q)
    p, log_q = logits_p.softmax(-1), logits_q.log_softmax(-1)
    taken = p >= torch.finfo(p.dtype).tiny
    return -(p * log_q.where(taken, 0.0)).sum(-1).to(dtype)


def kl_to_uniform(logits: Tensor) -> Tensor:
    """KL(P || uniform) in nats: what an entropy bonus penalises.

    Uniform over the actions that are not masked by `-inf`. This and the entropy sum to
    the log of their number, so the gradients differ in sign alone. Never negative, and
    exactly 0 for equal logits. A row with every action masked is `nan`.

    Args:
        logits: Logits of P, `(*batch, actions)`, normalised or not.

    Returns:
        One KL per row, `(*batch)`, at most the log of the number of actions.

    Raises:
        ValueError: If logits have no axis, or are integers.
    """
    check_tensors(1, logits=logits)
    uniform = torch.zeros_like(logits).masked_fill(logits.isneginf(), -torch.inf)
    return kl_divergence_logits(logits, uniform)


def mutual_information(logits: Tensor, weights: Tensor) -> Tensor:
    """I(state; action) in nats: the mean KL of the policy from its own average.

    A sum of KLs, so it keeps its digits for a policy that hardly looks at the state.
    A state of weight 0 is not read. A row with a negative weight, or without any, is
    `nan`. Half precision is computed in float32 and rounded once.

    Args:
        logits: Logits of the policy in each state, `(*batch, states, actions)`.
        weights: How often each state is visited, `(*batch, states)`; only their
            proportions count.

    Returns:
        One number per row, `(*batch)`.

    Raises:
        ValueError: If the weights are not one for each state, or a tensor is an integer
            one.
    """
    check_tensors(2, logits=logits)
    check_tensors(1, weights=weights)
    if weights.shape != logits.shape[:-1]:
        raise ValueError(f"weights is {[*weights.shape]}, logits is {[*logits.shape]}")
    dtype, (logits, weights) = widen(logits, weights)
    share = (weights / weights.sum(-1, keepdim=True)).unsqueeze(-1)
    log_policy = logits.where(share > 0, 0.0).log_softmax(-1)
    average = (share * log_policy.exp()).sum(-2, keepdim=True)
    reached = average > 0
    average = average.where(reached, 1.0).log().where(reached, -torch.inf)
    policy = torch.where(share > 0, log_policy, average)  # (*batch, states, actions)
    kl = (share.squeeze(-1) * kl_divergence_logits(policy, average)).sum(-1)
    return nan_outside(kl, (weights >= 0).all(-1)).to(dtype)
