"""V-MPO: the better half of a batch, weighted, inside a trust region.

Source: Song et al., V-MPO: On-Policy Maximum a Posteriori Policy Optimization for
Discrete and Continuous Control, arXiv:1909.12238.
"""

import math

import torch
from torch import Tensor


def top_half(advantages: Tensor, mask: Tensor) -> Tensor:
    """Which samples have the higher advantages: half of those present, rounded up.

    Of equal advantages, the earlier sample counts as higher.

    Args:
        advantages: One per state and action, `(*batch, samples)`; finite.
        mask: True where a sample is present, likewise.

    Returns:
        True for the samples to keep, `(*batch, samples)`.

    Raises:
        ValueError: If the mask leaves a row without samples.
    """
    present = mask.sum(-1, keepdim=True)  # (*batch, 1)
    if (present == 0).any():
        raise ValueError("mask leaves a row without samples")
    ordered = advantages.masked_fill(~mask, -math.inf)
    order = ordered.argsort(stable=True, dim=-1, descending=True)
    rank: Tensor = order.argsort(-1)
    return rank < (present + 1) // 2


def sample_weights(advantages: Tensor, kept: Tensor, eta: Tensor) -> Tensor:
    """Weights of the samples, softmax(A / eta) over those kept; they sum to 1.

    Args:
        advantages: One per state and action, `(*batch, samples)`.
        kept: What `top_half` gives.
        eta: The temperature, a positive scalar.

    Returns:
        Weights, `(*batch, samples)`, zero where not kept; without gradient.
    """
    scores = (advantages / eta).masked_fill(~kept, -math.inf)
    return scores.softmax(-1).detach()


def weight_divergence(weights: Tensor, kept: Tensor) -> Tensor:
    """KL(weights || uniform over the kept samples) in nats, per row.

    An estimate from samples of the KL between the improved and the old distribution
    of states and actions, and what epsilon bounds.

    Args:
        weights: What `sample_weights` gives, `(*batch, samples)`.
        kept: What `top_half` gives.

    Returns:
        One divergence per row, `(*batch)`.
    """
    count = kept.sum(-1, keepdim=True).to(weights.dtype)
    log_ratio = (weights * count).masked_fill(weights == 0, 1.0).log()
    return (weights * log_ratio).sum(-1)


def temperature_loss(
    advantages: Tensor, kept: Tensor, eta: Tensor, epsilon: float
) -> Tensor:
    """The dual, eta · (epsilon + log-mean of exp(A / eta) over the kept), per row.

    Its minimum is where `weight_divergence` is epsilon.

    Args:
        advantages: One per state and action, `(*batch, samples)`.
        kept: What `top_half` gives.
        eta: The temperature, a positive scalar; the gradient is for it.
        epsilon: Limit on the KL of the weights, in nats.

    Returns:
        One loss per row, `(*batch)`.
    """
    scores = (advantages.detach() / eta).masked_fill(~kept, -math.inf)
    log_mean = scores.logsumexp(-1) - kept.sum(-1).to(scores.dtype).log()
    return eta * (epsilon + log_mean)


def policy_loss(weights: Tensor, new_log_probs: Tensor) -> Tensor:
    """Weighted negative log-likelihood in nats, per row of samples.

    Args:
        weights: What `sample_weights` gives, `(*batch, samples)`.
        new_log_probs: Of the sampled actions under the new policy, likewise.

    Returns:
        One loss per row, `(*batch)`.
    """
    return -torch.where(weights > 0, weights * new_log_probs, 0.0).sum(-1)


def step_divergence(old_logits: Tensor, new_logits: Tensor) -> Tensor:
    """KL(old || new) in nats, per state, exact over the actions.

    Args:
        old_logits: Logits of the policy that sampled, `(*batch, actions)`.
        new_logits: Logits of the policy that learns, likewise.

    Returns:
        One divergence per state, `(*batch)`: over every state of the batch, also
        those whose sample was not kept.
    """
    old, new = old_logits.log_softmax(-1), new_logits.log_softmax(-1)
    log_ratio = (old - new).masked_fill(old.isneginf(), 0.0)
    return (old.exp() * log_ratio).sum(-1)
