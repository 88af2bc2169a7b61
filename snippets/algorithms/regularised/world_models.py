"""The KL of world models: between what was seen and what was expected.

Source: Kingma and Welling, arXiv:1312.6114 (VAE); Hafner et al., Dreamer
arXiv:1912.01603, DreamerV2 arXiv:2010.02193, DreamerV3 arXiv:2301.04104.
"""

import torch
from torch import Tensor


# --8<-- [start:divergences]
def categorical_divergence(posterior_logits: Tensor, prior_logits: Tensor) -> Tensor:
    """KL(posterior || prior) in nats, per step, summed over the latents.

    A class with a logit of `-inf` in the posterior adds nothing.

    Args:
        posterior_logits: After the observation, `(*batch, dims, vocab)`: as many
            latents as dims, each over a vocab of classes.
        prior_logits: Before it, likewise.

    Returns:
        One divergence per step, `(*batch)`.
    """
    posterior = posterior_logits.log_softmax(-1)
    prior = prior_logits.log_softmax(-1)
    log_ratio = (posterior - prior).masked_fill(posterior.isneginf(), 0.0)
    return (posterior.exp() * log_ratio).sum((-2, -1))


def gaussian_divergence(
    posterior_mean: Tensor,
    posterior_log_std: Tensor,
    prior_mean: Tensor,
    prior_log_std: Tensor,
) -> Tensor:
    """KL(posterior || prior) in nats, per step, of diagonal Gaussians.

    Args:
        posterior_mean: After the observation, `(*batch, dims)`.
        posterior_log_std: Log standard deviation, likewise.
        prior_mean: Before it, likewise; zero in a VAE.
        prior_log_std: Likewise; zero in a VAE.

    Returns:
        One divergence per step, `(*batch)`, summed over the latents.
    """
    gap = posterior_log_std - prior_log_std
    moved = (posterior_mean - prior_mean) * (-prior_log_std).exp()
    return 0.5 * (torch.expm1(2 * gap) - 2 * gap + moved.square()).sum(-1)


# --8<-- [end:divergences]


# --8<-- [start:losses]
def balanced_divergence(
    posterior_logits: Tensor, prior_logits: Tensor, balance: float
) -> Tensor:
    """The KL, with `balance` of its gradient for the prior and the rest for the other.

    The value does not depend on the balance.

    Args:
        posterior_logits: After the observation, `(*batch, dims, vocab)`.
        prior_logits: Before it, likewise.
        balance: Share of the prior, from 0 to 1.

    Returns:
        One divergence per step, `(*batch)`, in nats.
    """
    train_prior = categorical_divergence(posterior_logits.detach(), prior_logits)
    train_posterior = categorical_divergence(posterior_logits, prior_logits.detach())
    return balance * train_prior + (1 - balance) * train_posterior


def free_each(divergence: Tensor, free: float) -> Tensor:
    """max(KL, free) in nats, per step: average it afterwards, as DreamerV3 does.

    A step below `free` has no gradient, whatever the others do.

    Args:
        divergence: One per step, any shape.
        free: Nats per step that cost nothing more.

    Returns:
        The shape of the divergence.
    """
    return torch.maximum(divergence, torch.full_like(divergence, free))


def free_mean(divergence: Tensor, mask: Tensor, free: float) -> Tensor:
    """max(mean KL, free) in nats, as in Dreamer and DreamerV2.

    Either every step has a gradient, or none has.

    Args:
        divergence: One per step, any shape; finite where the mask is True.
        mask: True where a step counts, likewise.
        free: Nats per step that cost nothing more.

    Returns:
        A scalar.
    """
    kept = torch.where(mask, divergence, 0.0).sum() / mask.sum()
    return torch.maximum(kept, torch.full_like(kept, free))


def dynamics_divergence(posterior_logits: Tensor, prior_logits: Tensor) -> Tensor:
    """KL(posterior || prior) in nats, per step, that trains the prior alone.

    Args:
        posterior_logits: After the observation, `(*batch, dims, vocab)`.
        prior_logits: Before it, likewise.

    Returns:
        One divergence per step, `(*batch)`.
    """
    return categorical_divergence(posterior_logits.detach(), prior_logits)


def representation_divergence(posterior_logits: Tensor, prior_logits: Tensor) -> Tensor:
    """KL(posterior || prior) in nats, per step, that trains the posterior alone.

    Args:
        posterior_logits: After the observation, `(*batch, dims, vocab)`.
        prior_logits: Before it, likewise.

    Returns:
        One divergence per step, `(*batch)`.
    """
    return categorical_divergence(posterior_logits, prior_logits.detach())


# --8<-- [end:losses]
