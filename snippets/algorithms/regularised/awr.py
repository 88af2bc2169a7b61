"""AWR and AWAC: the optimal policy for a KL to the data, then fitted to samples of it.

Source: Peng et al., Advantage-Weighted Regression, arXiv:1910.00177; Nair et al., AWAC,
arXiv:2006.09359, which takes the advantage from a learned Q.
"""

import math

import torch
from torch import Tensor

from snippets.algorithms.regularised.optimal_policy import optimal_policy
from snippets.foundations.contract import (
    check_floating,
    check_mask,
    check_positive,
    check_tensors,
    widen,
)


def clipped_weights(*, advantages: Tensor, beta: float, limit: float) -> Tensor:
    """exp(advantage / beta), at most `limit`, without unit: AWR's weights.

    Never overflows. Where nothing is clipped, their mean over the behaviour's actions
    is Z. Half precision is computed in float32 and rounded once.

    Args:
        advantages: Advantage of each sampled action, `(*batch)`.
        beta: The temperature: the KL coefficient, in units of reward.
        limit: The largest weight.

    Returns:
        One weight per sample, `(*batch)`; a constant, without gradient.

    Raises:
        ValueError: If beta or the limit is not positive, or the advantages are
            integers.
    """
    check_floating(advantages=advantages)
    check_positive(beta=beta, limit=limit)
    dtype, (advantages,) = widen(advantages.detach())
    # --8<-- [start:clipped]
    weights = (advantages / beta).clamp(max=math.log(limit)).exp()  # (*batch)
    # --8<-- [end:clipped]
    return weights.to(dtype)


def batch_weights(*, advantages: Tensor, mask: Tensor, beta: float) -> Tensor:
    """softmax(advantage / beta) over a batch, times its size, without unit: AWAC's.

    Their mean over the samples present is 1, and each is at most their number. What
    stands under the mask is not read; a row without samples is `nan`. Half precision
    is computed in float32 and rounded once.

    Args:
        advantages: Advantage of each sampled action, `(*batch, samples)`, over many
            states.
        mask: True where a sample is present, `(*batch, samples)`.
        beta: The temperature: the KL coefficient, in units of reward.

    Returns:
        One weight per sample, `(*batch, samples)`, 0 where absent; a constant,
        without gradient.

    Raises:
        ValueError: If beta is not positive, the mask is not boolean, or the shapes
            differ.
    """
    check_mask(mask, advantages=advantages)
    dtype, (advantages,) = widen(advantages.detach())
    # --8<-- [start:batch]
    present = torch.zeros_like(advantages).masked_fill(~mask, -math.inf)
    shares = optimal_policy(ref_logits=present, rewards=advantages, beta=beta).exp()
    weights = shares * mask.sum(-1, keepdim=True)  # (*batch, samples)
    # --8<-- [end:batch]
    return weights.to(dtype)


def regression_loss(*, weights: Tensor, new_log_probs: Tensor) -> Tensor:
    """Weight times negative log-likelihood, in nats, per sample.

    A sample of weight 0 is not read, and has no gradient.

    Args:
        weights: Weight of each sampled action, a constant, `(*batch)`.
        new_log_probs: Log-probability of the same actions under the policy that
            learns, `(*batch)`.

    Returns:
        One loss per sample, `(*batch)`, to be minimised.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(weights=weights, new_log_probs=new_log_probs)
    # --8<-- [start:regression]
    weights = weights.detach()
    return -weights * new_log_probs.where(weights > 0, 0.0)  # (*batch)
    # --8<-- [end:regression]
