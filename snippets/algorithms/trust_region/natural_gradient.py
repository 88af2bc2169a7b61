"""The natural policy gradient: a step measured by the KL that it causes.

Source: Amari, Natural gradient works efficiently in learning, 1998; Kakade, A
natural policy gradient, NeurIPS 2001. The metric is the Hessian of the KL.
"""

import torch
from torch import Tensor


def softmax_scores(logits: Tensor) -> Tensor:
    """The gradient of log π(a) with respect to the logits, for every action a.

    Args:
        logits: Logits of a policy, `(*batch, actions)`.

    Returns:
        Score of each action (second to last axis), `(*batch, actions, actions)`.
    """
    identity = torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return identity - logits.softmax(-1)[..., None, :]


def fisher_matrix(scores: Tensor, weights: Tensor) -> Tensor:
    """The Fisher matrix: the weighted mean of score · scoreᵀ, `(dims, dims)`.

    The scores must be those of the policy's own actions: their mean is then 0, and
    the matrix is the Hessian of the KL at no step at all, in both directions.

    Args:
        scores: Gradients of log π(a given s), `(samples, dims)`.
        weights: Probability of each sample, `(samples)`; sums to 1.

    Raises:
        ValueError: If there is not one weight per score.
    """
    if scores.shape[:-1] != weights.shape:
        raise ValueError(f"scores {tuple(scores.shape)}, weights {len(weights)}")
    return torch.einsum("n,ni,nj->ij", weights, scores, scores)


def quadratic_divergence(fisher: Tensor, step: Tensor) -> Tensor:
    """½ stepᵀ F step: the KL of a small step in nats, from the Fisher matrix."""
    return 0.5 * step @ fisher @ step


def natural_step(gradient: Tensor, fisher: Tensor, delta: float) -> Tensor:
    """The step that gains most among those with a quadratic KL of `delta`.

    Directions that change no probability have no length: they are left alone, by
    the pseudo-inverse. A gradient of zero gives a step of zero.

    Args:
        gradient: Gradient of the objective to increase, `(dims)`.
        fisher: Fisher matrix of the policy, `(dims, dims)`.
        delta: The KL to spend, in nats.

    Returns:
        The step to add to the parameters, `(dims)`.

    Raises:
        ValueError: If `delta` is not positive.
    """
    if delta <= 0:
        raise ValueError(f"delta is {delta}, not positive")
    direction = torch.linalg.pinv(fisher, hermitian=True) @ gradient
    slope = gradient @ direction  # = directionᵀ F direction
    if slope == 0:
        return torch.zeros_like(gradient)
    step: Tensor = (2 * delta / slope).sqrt() * direction
    return step
