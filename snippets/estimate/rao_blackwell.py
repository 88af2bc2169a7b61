"""Sampled prefixes, exact next tokens: the sequence KL from full logits.

Source: Amini, Vieira and Cotterell, arXiv:2504.10637.
"""

from torch import Tensor
from torch.nn.functional import pad

from snippets.estimate.sequences import reward_to_go
from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import check_mask, check_tensors, widen


def rao_blackwell_kl(*, new_logits: Tensor, ref_logits: Tensor, mask: Tensor) -> Tensor:
    """KL(new || ref) in nats over sequences, from samples of new and full logits.

    Unbiased, never negative, and exactly 0 for equal logits. As a loss it has only the
    part of the gradient that sees the sampled prefixes as given. What stands under the
    mask is not read, in value and gradient. A token that ref excludes and new does not
    makes it `inf`. Half precision is computed in float32 and rounded once.

    Args:
        new_logits: Logits of the policy that sampled, `(*batch, time, vocab)`.
        ref_logits: Logits of the reference at the same prefixes,
            `(*batch, time, vocab)`.
        mask: True where a token was sampled, `(*batch, time)`.

    Returns:
        One estimate per sequence, `(*batch)`. Gradients flow to both policies.

    Raises:
        ValueError: If the mask is not boolean, the shapes do not fit, or logits are
            integers.
    """
    _check(new_logits, ref_logits, mask)
    dtype, (new, ref) = widen(new_logits, ref_logits)
    return _next_token_kls(new, ref, mask).sum(-1).to(dtype)


def rao_blackwell_loss(
    *, new_logits: Tensor, ref_logits: Tensor, new_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """KL(new || ref) in nats over sequences, value and gradient, from samples of new.

    The gradient of each sampled token also counts the exact KLs at the prefixes after
    it. What stands under the mask is not read, in value and gradient. A token that ref
    excludes and new does not makes it `inf` or `nan`. Half precision is computed in
    float32 and rounded once.

    Args:
        new_logits: Logits of the policy that trains, `(*batch, time, vocab)`.
        ref_logits: Logits of the reference at the same prefixes,
            `(*batch, time, vocab)`.
        new_log_probs: Log-probability of the sampled tokens under the policy that
            trains, `(*batch, time)`.
        mask: True where a token was sampled, `(*batch, time)`.

    Returns:
        One loss per sequence, `(*batch)`. Gradients flow to both policies.

    Raises:
        ValueError: If the mask is not boolean, the shapes do not fit, or a tensor is an
            integer one.
    """
    _check(new_logits, ref_logits, mask)
    check_mask(mask, new_log_probs=new_log_probs)
    dtype, (new, ref, log_probs) = widen(new_logits, ref_logits, new_log_probs)
    # --8<-- [start:core]
    exact = _next_token_kls(new, ref, mask)  # (*batch, time)
    to_go = pad(reward_to_go(exact.detach(), mask), (0, 1))  # (*batch, time + 1)
    later = to_go.narrow(-1, 1, mask.shape[-1])  # (*batch, time)
    chosen = log_probs.masked_fill(~mask, 0.0)
    score = chosen - chosen.detach()  # 0, with the gradient of the log-probability
    return (exact + later * score).sum(-1).to(dtype)
    # --8<-- [end:core]


def _check(new_logits: Tensor, ref_logits: Tensor, mask: Tensor) -> None:
    """Refuse logits that differ in shape, and a mask without one entry per token."""
    check_tensors(2, new_logits=new_logits, ref_logits=ref_logits)
    check_mask(mask)
    if mask.shape != new_logits.shape[:-1]:
        of_mask, of_logits = [*mask.shape], [*new_logits.shape]
        raise ValueError(f"mask is {of_mask}, new_logits is {of_logits}")


def _next_token_kls(new: Tensor, ref: Tensor, mask: Tensor) -> Tensor:
    """The exact KL at each prefix, 0 under the mask, `(*batch, time)`."""
    # --8<-- [start:exact]
    padding = ~mask.unsqueeze(-1)  # (*batch, time, 1): emptied first, never read
    filled = (x.masked_fill(padding, 0.0) for x in (new, ref))
    return kl_divergence_logits(*filled)
    # --8<-- [end:exact]
