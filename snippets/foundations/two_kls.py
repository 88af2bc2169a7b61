"""The two KLs of a training run: to the policy before the step, and to the reference.

Source: Schulman et al., arXiv:1707.06347, for the step; Ziegler et al.,
arXiv:1909.08593, for the anchor.
"""

from torch import Tensor

from snippets.exact.categorical import kl_divergence_logits


def step_kl(old_logits: Tensor, new_logits: Tensor) -> Tensor:
    """KL(old || new) in nats: how far one update moved. It starts at 0 every time.

    Args:
        old_logits: Logits of the policy that sampled the batch, `(*batch, actions)`.
        new_logits: Logits of the policy after the update, likewise.

    Returns:
        One divergence per state, `(*batch)`.
    """
    return kl_divergence_logits(old_logits, new_logits)


def anchor_kl(new_logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(new || ref) in nats: how far training has moved in all.

    Args:
        new_logits: Logits of the policy, `(*batch, actions)`.
        ref_logits: Logits of the frozen reference, likewise.

    Returns:
        One divergence per state, `(*batch)`.
    """
    return kl_divergence_logits(new_logits, ref_logits)
