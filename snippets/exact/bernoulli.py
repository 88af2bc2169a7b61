"""The KL between policies over binary actions, exact, from logits.

Source: Cover and Thomas, Elements of Information Theory, 2nd ed., eq. 2.26, for two
outcomes.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import check_tensors, widen


def kl_bernoulli(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL(P || Q) in nats of one switch each, from the logits of "on".

    Never negative, and exactly 0 for equal logits. A logit of `inf` or `-inf` is a
    switch that is always on, or always off: an outcome that P never has adds nothing,
    and one that only P has makes the KL `inf`, and then P has no finite gradient. An
    outcome whose probability underflows in P counts as one that P never has. Half
    precision is computed in float32 and rounded once.

    Args:
        logits_p: Log-odds of P, `(*batch)`.
        logits_q: Log-odds of Q, `(*batch)`.

    Returns:
        One KL per switch, `(*batch)`. Gradients flow to both arguments.

    Raises:
        ValueError: If the shapes differ, or logits are integers.
    """
    check_tensors(logits_p=logits_p, logits_q=logits_q)
    dtype, rows = widen(logits_p, logits_q)
    # --8<-- [start:core]
    # A categorical over "on" and "off": log p = logsigmoid(x), log(1 - p) likewise.
    p, q = (logsigmoid(torch.stack([x, -x], -1)) for x in rows)  # (*batch, 2)
    kl = kl_divergence_logits(p, q)  # (*batch)
    # --8<-- [end:core]
    return kl.to(dtype)


def kl_multibinary(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL(P || Q) in nats of several independent switches that make up one action.

    Edges are those of `kl_bernoulli`, whose sum over the switches it is. Half
    precision is summed in float32 and rounded once.

    Args:
        logits_p: Log-odds of P, `(*batch, dims)`.
        logits_q: Log-odds of Q, `(*batch, dims)`.

    Returns:
        One KL per action, `(*batch)`. Gradients flow to both arguments.

    Raises:
        ValueError: If there is no axis of switches, the shapes differ, or logits are
            integers.
    """
    check_tensors(1, logits_p=logits_p, logits_q=logits_q)
    dtype, (p, q) = widen(logits_p, logits_q)
    return kl_bernoulli(p, q).sum(-1).to(dtype)
