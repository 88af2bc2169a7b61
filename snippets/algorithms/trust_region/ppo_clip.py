"""PPO with a clipped ratio: no KL in the loss, an estimate of it beside the loss.

Source: Schulman et al., Proximal Policy Optimization Algorithms, arXiv:1707.06347.
The estimators are k1 and k3 of joschu.net/blog/kl-approx.html, for samples of the
old policy.
"""

import torch
from torch import Tensor


def clipped_loss(
    old_log_probs: Tensor, new_log_probs: Tensor, advantages: Tensor, clip: float
) -> Tensor:
    """-min(ratio·A, clipped ratio·A), per sample, to be minimised.

    A sample whose ratio has left 1 ± clip on the side that its advantage asks for
    has no gradient. Nothing pulls it back.

    Args:
        old_log_probs: Log-probability under the policy that sampled, `(*batch)`.
        new_log_probs: Log-probability under the policy that learns, `(*batch)`.
        advantages: Advantages of the sampled actions, `(*batch)`.
        clip: Half width of the interval for the ratio, between 0 and 1.

    Returns:
        One loss per sample, `(*batch)`.

    Raises:
        ValueError: If `clip` is not between 0 and 1.
    """
    if not 0 < clip < 1:
        raise ValueError(f"clip is {clip}, not between 0 and 1")
    ratio = (new_log_probs - old_log_probs).exp()
    return -torch.minimum(
        ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    )


def step_divergence(old_log_probs: Tensor, new_log_probs: Tensor) -> Tensor:
    """Estimate of KL(old || new) in nats per sample: k3, never negative.

    Its mean is the KL if the old policy drew the samples. Computed as
    `expm1(x) - x`, which keeps the digits that `(exp(x) - 1) - x` loses.

    Args:
        old_log_probs: Log-probability under the policy that sampled, `(*batch)`.
        new_log_probs: Log-probability under the policy that learns, `(*batch)`.

    Returns:
        One number per sample, `(*batch)`: average it over the whole batch.
    """
    log_ratio = new_log_probs - old_log_probs
    return torch.expm1(log_ratio) - log_ratio


def signed_divergence(old_log_probs: Tensor, new_log_probs: Tensor) -> Tensor:
    """Estimate of KL(old || new) in nats per sample: k1, of either sign.

    Args:
        old_log_probs: Log-probability under the policy that sampled, `(*batch)`.
        new_log_probs: Log-probability under the policy that learns, `(*batch)`.

    Returns:
        One number per sample, `(*batch)`; its mean over a batch may be negative.
    """
    return old_log_probs - new_log_probs
