"""The KL of world models: between what was seen and what was expected.

Source: Kingma and Welling, arXiv:1312.6114 (VAE); Hafner et al., Dreamer
arXiv:1912.01603, DreamerV2 arXiv:2010.02193, DreamerV3 arXiv:2301.04104.
"""

import torch
from torch import Tensor

from snippets.estimate.placement import kl_penalty
from snippets.estimate.sequences import token_mean
from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import (
    check_floating,
    check_mask,
    check_tensors,
    widen,
)


def latent_kl(
    *, posterior_logits: Tensor, prior_logits: Tensor, mask: Tensor | None = None
) -> Tensor:
    """KL(posterior || prior) in nats, per step: the sum over independent latents.

    Never negative, and exactly 0 for equal logits. A class that the posterior masks
    adds nothing; one that only the prior masks makes the step `inf`. A step under the
    mask is 0, and its logits are not read. Half precision is computed in float32 and
    rounded once, after the sum.

    Args:
        posterior_logits: After the observation, `(*batch, latents, classes)`.
        prior_logits: Before it, `(*batch, latents, classes)`.
        mask: True where a step counts, `(*batch)`; all of them without it.

    Returns:
        One KL per step, `(*batch)`. Gradients flow to both.

    Raises:
        ValueError: If the shapes differ, the mask is not boolean, or logits are
            integers.
    """
    check_tensors(2, posterior_logits=posterior_logits, prior_logits=prior_logits)
    dtype, (posterior, prior) = widen(posterior_logits, prior_logits)
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != posterior.shape[:-2]:
            raise ValueError(f"mask is {mask.dtype} {[*mask.shape]}, not one per step")
        posterior = posterior.where(mask[..., None, None], 0.0)
        prior = prior.where(mask[..., None, None], 0.0)
    return kl_divergence_logits(posterior, prior).sum(-1).to(dtype)


def dynamics_kl(
    *, posterior_logits: Tensor, prior_logits: Tensor, mask: Tensor | None = None
) -> Tensor:
    """KL(posterior || prior) in nats, per step, that trains the prior alone.

    A step under the mask is 0, and its logits are not read.

    Args:
        posterior_logits: After the observation, `(*batch, latents, classes)`.
        prior_logits: Before it, `(*batch, latents, classes)`; gets the gradient.
        mask: True where a step counts, `(*batch)`; all of them without it.

    Returns:
        One KL per step, `(*batch)`.

    Raises:
        ValueError: If the shapes differ, or logits are integers.
    """
    return latent_kl(
        posterior_logits=posterior_logits.detach(),
        prior_logits=prior_logits,
        mask=mask,
    )


def representation_kl(
    *, posterior_logits: Tensor, prior_logits: Tensor, mask: Tensor | None = None
) -> Tensor:
    """KL(posterior || prior) in nats, per step, that trains the posterior alone.

    A step under the mask is 0, and its logits are not read.

    Args:
        posterior_logits: After the observation, `(*batch, latents, classes)`; gets the
            gradient.
        prior_logits: Before it, `(*batch, latents, classes)`.
        mask: True where a step counts, `(*batch)`; all of them without it.

    Returns:
        One KL per step, `(*batch)`.

    Raises:
        ValueError: If the shapes differ, or logits are integers.
    """
    return latent_kl(
        posterior_logits=posterior_logits,
        prior_logits=prior_logits.detach(),
        mask=mask,
    )


def balanced_kl(
    *,
    posterior_logits: Tensor,
    prior_logits: Tensor,
    balance: float,
    mask: Tensor | None = None,
) -> Tensor:
    """KL(posterior || prior) in nats, with `balance` of its gradient for the prior.

    The posterior gets the rest. The value does not depend on the balance. A step under
    the mask is 0, and its logits are not read. Half precision is computed in float32
    and rounded once.

    Args:
        posterior_logits: After the observation, `(*batch, latents, classes)`.
        prior_logits: Before it, `(*batch, latents, classes)`.
        balance: Share of the prior, from 0 to 1.
        mask: True where a step counts, `(*batch)`; all of them without it.

    Returns:
        One KL per step, `(*batch)`.

    Raises:
        ValueError: If the balance is outside 0 to 1, the shapes differ, or logits are
            integers.
    """
    if not 0 <= balance <= 1:
        raise ValueError(f"balance is {balance}, and must be between 0 and 1")
    check_tensors(2, posterior_logits=posterior_logits, prior_logits=prior_logits)
    dtype, (posterior, prior) = widen(posterior_logits, prior_logits)
    # --8<-- [start:balance]
    for_prior = dynamics_kl(posterior_logits=posterior, prior_logits=prior, mask=mask)
    for_posterior = representation_kl(
        posterior_logits=posterior, prior_logits=prior, mask=mask
    )
    kl = kl_penalty(for_prior, balance) + kl_penalty(for_posterior, 1 - balance)
    # --8<-- [end:balance]
    return kl.to(dtype)


def free_bits_each(kl: Tensor, free: float) -> Tensor:
    """max(KL, free) in nats, per step: average it afterwards, as DreamerV3 does.

    A step below `free` has no gradient, whatever the others do.

    Args:
        kl: KL of each step, in nats, `(*batch)`.
        free: Nats per step without penalty, at least 0.

    Returns:
        One number per step, `(*batch)`.

    Raises:
        ValueError: If `free` is negative, or the KL is an integer tensor.
    """
    check_floating(kl=kl)
    if not free >= 0:
        raise ValueError(f"free is {free}, and must be at least 0")
    return kl.clamp(min=free)


def free_bits_of_mean(*, kl: Tensor, mask: Tensor, free: float) -> Tensor:
    """max(mean KL, free) in nats, of all steps together, as Dreamer and DreamerV2 do.

    Either every step has a gradient, or none has. What stands under the mask is not
    read; without any step the result is `nan`.

    Args:
        kl: KL of each step, in nats, `(*batch)`.
        mask: True where a step counts, `(*batch)`.
        free: Nats per step without penalty, at least 0.

    Returns:
        A scalar, `()`.

    Raises:
        ValueError: If `free` is negative, the mask is not boolean, or the shapes
            differ.
    """
    check_mask(mask, kl=kl)
    return free_bits_each(token_mean(kl, mask), free)
