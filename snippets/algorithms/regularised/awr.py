"""AWR and AWAC: a KL constraint solved in closed form, then fitted to data.

Source: Peng et al., Advantage-Weighted Regression, arXiv:1910.00177; Nair et al., AWAC,
arXiv:2006.09359, which takes the advantage from a learned Q.
"""

import math

import torch
from torch import Tensor


def improved_policy(
    behaviour_logits: Tensor, advantages: Tensor, beta: float
) -> Tensor:
    """Log-probabilities of behaviour · exp(A / beta) / Z, per state, in nats.

    The best policy at a price of beta per nat of KL(new || behaviour).

    Args:
        behaviour_logits: Logits of what collected the data, `(*batch, actions)`.
        advantages: Of each action, likewise; finite.
        beta: The temperature.

    Returns:
        Normalised log-probabilities, `(*batch, actions)`.
    """
    return (behaviour_logits.log_softmax(-1) + advantages / beta).log_softmax(-1)


def constraint_divergence(optimum_logits: Tensor, behaviour_logits: Tensor) -> Tensor:
    """KL(optimum || behaviour) in nats, per state: what the constraint bounds.

    Args:
        optimum_logits: What `improved_policy` gives, `(*batch, actions)`.
        behaviour_logits: Logits of what collected the data, likewise.

    Returns:
        One divergence per state, `(*batch)`.
    """
    optimum = optimum_logits.log_softmax(-1)
    behaviour = behaviour_logits.log_softmax(-1)
    log_ratio = (optimum - behaviour).masked_fill(optimum.isneginf(), 0.0)
    return (optimum.exp() * log_ratio).sum(-1)


def projection_divergence(optimum_logits: Tensor, new_logits: Tensor) -> Tensor:
    """KL(optimum || new) in nats, per state: what the regression minimises.

    Args:
        optimum_logits: What `improved_policy` gives, `(*batch, actions)`.
        new_logits: Logits of the policy that is fitted, likewise.

    Returns:
        One divergence per state, `(*batch)`.
    """
    optimum, new = optimum_logits.log_softmax(-1), new_logits.log_softmax(-1)
    log_ratio = (optimum - new).masked_fill(optimum.isneginf(), 0.0)
    return (optimum.exp() * log_ratio).sum(-1)


def clipped_weights(advantages: Tensor, beta: float, limit: float) -> Tensor:
    """exp(A / beta), at most `limit`, of sampled actions; AWR's weights.

    Never overflows. Where nothing is clipped their mean over the behaviour's
    actions is Z.

    Args:
        advantages: Of sampled actions, any shape.
        beta: The temperature.
        limit: The largest weight.

    Returns:
        Weights, the shape of the advantages; without gradient.

    Raises:
        ValueError: If the limit is not positive.
    """
    if not limit > 0:
        raise ValueError(f"limit is {limit}, not positive")
    exponent = advantages.detach() / beta
    ceiling = torch.full_like(exponent, math.log(limit))
    return torch.minimum(exponent, ceiling).exp()


def batch_weights(advantages: Tensor, mask: Tensor, beta: float) -> Tensor:
    """softmax(A / beta) over the batch, times its size; AWAC's weights in code.

    Their mean over the samples present is 1, and each is below their number.

    Args:
        advantages: Of sampled actions, `(samples)`, over many states.
        mask: True where a sample is present, likewise.
        beta: The temperature.

    Returns:
        Weights, `(samples)`, zero where absent; without gradient.
    """
    scores = (advantages.detach() / beta).masked_fill(~mask, -math.inf)
    return scores.softmax(-1) * mask.sum(-1, keepdim=True)


def regression_loss(weights: Tensor, new_log_probs: Tensor) -> Tensor:
    """Weighted negative log-likelihood in nats, per sample.

    Args:
        weights: Of sampled actions, any shape.
        new_log_probs: Of the same actions under the new policy, likewise.

    Returns:
        One loss per sample; zero where the weight is.
    """
    return -torch.where(weights > 0, weights * new_log_probs, 0.0)
