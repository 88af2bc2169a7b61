"""The KL between policies over several independent choices at once, exact.

Source: the chain rule, Cover and Thomas, Elements of Information Theory, 2nd ed.,
theorem 2.5.3: what is independent adds up.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import check_floating, widen


def kl_multidiscrete(
    logits_p: Tensor, logits_q: Tensor, choices: Sequence[int]
) -> Tensor:
    """KL(P || Q) in nats, from the logits of all choices side by side.

    Never negative, and exactly 0 for equal logits. Masks and underflow are as in
    `kl_divergence_logits`; half precision is summed in float32 and rounded once.

    Args:
        logits_p: Logits of P, `(*batch, actions)`: first those of the first choice.
        logits_q: Logits of Q, `(*batch, actions)`. Batches broadcast.
        choices: How many actions each choice has. They sum to `actions`.

    Returns:
        One KL per joint action, `(*batch)`. Gradients flow to both arguments.

    Raises:
        ValueError: If the choices do not sum to the number of logits, one of them is
            not positive, or logits are integers.
    """
    check_floating(logits_p=logits_p, logits_q=logits_q)
    if not choices or min(choices) < 1:
        raise ValueError(f"choices is {[*choices]}, and needs positive numbers")
    for name, logits in {"logits_p": logits_p, "logits_q": logits_q}.items():
        if logits.shape[-1:] != (sum(choices),):
            shape = [*logits.shape[-1:]]
            raise ValueError(f"{name} has {shape} logits for choices {[*choices]}")
    dtype, rows = widen(logits_p, logits_q)
    # --8<-- [start:core]
    each_p, each_q = (torch.split(x, list(choices), -1) for x in rows)  # one per choice
    kls = [kl_divergence_logits(p, q) for p, q in zip(each_p, each_q, strict=True)]
    kl = torch.stack(kls).sum(0)  # (*batch)
    # --8<-- [end:core]
    return kl.to(dtype)
