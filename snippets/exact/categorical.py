"""The KL between two categorical policies, exact.

Source: Cover and Thomas, Elements of Information Theory, 2nd ed., eq. 2.26.
"""

import torch
from torch import Tensor

from snippets.foundations.contract import check_floating


def kl_divergence_logits(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL(P || Q) in nats, from logits: never negative, exactly 0 for equal logits.

    A logit of `-inf` masks its action. Masked in P, the action adds nothing; masked
    in Q alone, it makes the KL `inf`, and then P has no finite gradient. An action
    whose probability underflows in P counts as masked there. A row with every action
    masked is `nan`. Half precision is computed in float32 and rounded once.

    Args:
        logits_p: Logits of P, `(*batch, actions)`, normalised or not.
        logits_q: Logits of Q, `(*batch, actions)`. Batches broadcast, actions never.

    Returns:
        One KL per row, `(*batch)`. Gradients flow to both: detach the policy that
        must not move.

    Raises:
        ValueError: If the numbers of actions differ, or logits are integers.
    """
    of_p, of_q = [*logits_p.shape], [*logits_q.shape]
    if not (of_p and of_q):
        raise ValueError("logits_p and logits_q need an axis of actions")
    if of_p[-1] != of_q[-1]:
        actions = f"P has {of_p[-1]} actions, Q has {of_q[-1]}"
        raise ValueError(f"{actions}: logits_p is {of_p}, logits_q is {of_q}")
    check_floating(logits_p=logits_p, logits_q=logits_q)
    dtype = torch.promote_types(logits_p.dtype, logits_q.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    # --8<-- [start:core]
    log_p = logits_p.log_softmax(-1, wide)  # (*batch, actions)
    log_q = logits_q.log_softmax(-1, wide)
    p, tiny = log_p.exp(), torch.finfo(wide).tiny
    taken = p >= tiny
    x = (log_q - log_p).where(taken, 0.0)  # log r; 0 where P never goes
    usual = -(p * x).sum(-1)  # right gradient, but its value cancels
    # The value: each term is p (r - 1 - log r), and q where P never goes.
    p, x, q = p.detach(), x.detach(), log_q.detach().exp()
    q = q.where(q >= tiny, 0.0)  # as rare as what P never takes: equal inputs give 0
    kl = torch.where(taken, p * (x.expm1() - x), q).sum(-1)
    kl = torch.where(kl.isinf(), usual, kl + (usual - usual.detach()))  # (*batch)
    # --8<-- [end:core]
    return kl.to(dtype)
