"""The natural policy gradient: a step measured by the KL that it causes.

Source: Amari, Natural gradient works efficiently in learning, 1998; Kakade, A
natural policy gradient, NeurIPS 2001. The metric is the Hessian of the KL.
"""

import torch
from torch import Tensor

from snippets.foundations.contract import check_positive, check_tensors, widen


def softmax_scores(logits: Tensor) -> Tensor:
    """The gradient of log π(a) with respect to the logits, in nats, for every action.

    Half precision is computed in float32 and rounded once.

    Args:
        logits: Logits of a policy, `(*batch, actions)`.

    Returns:
        Score of each action (second to last axis), `(*batch, actions, actions)`.

    Raises:
        ValueError: If there is no axis of actions, or the logits are integers.
    """
    check_tensors(1, logits=logits)
    dtype, (wide,) = widen(logits)
    identity = torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device)
    return (identity - wide.softmax(-1).unsqueeze(-2)).to(dtype)


def fisher_matrix(scores: Tensor, weights: Tensor) -> Tensor:
    """The Fisher matrix, the weighted mean of score times scoreᵀ, in nats.

    The scores must be those of the policy's own actions: their mean is then 0, and
    the matrix is the Hessian of the KL at no step at all, in both directions. Half
    precision is computed in float32 and rounded once.

    Args:
        scores: Gradients of log π(a given s), `(samples, dims)`.
        weights: Probability of each sample, `(samples)`; sums to 1.

    Returns:
        One matrix, `(dims, dims)`.

    Raises:
        ValueError: If there is not one weight per score, or one is an integer tensor.
    """
    check_tensors(weights=weights, scores=scores.narrow(-1, 0, 1).squeeze(-1))
    dtype, (scores, weights) = widen(scores, weights)
    return torch.einsum("n,ni,nj->ij", weights, scores, scores).to(dtype)


def fisher_kl(fisher: Tensor, step: Tensor) -> Tensor:
    """The KL of a small step in nats, to second order: ½ stepᵀ F step.

    Half precision is computed in float32 and rounded once.

    Args:
        fisher: Fisher matrix of the policy, `(dims, dims)`.
        step: Change of the parameters, `(dims)`.

    Returns:
        One number, `()`.

    Raises:
        ValueError: If the shapes do not fit, or one is an integer tensor.
    """
    _check_matrix(fisher, step=step)
    dtype, (fisher, step) = widen(fisher, step)
    return (0.5 * step @ fisher @ step).to(dtype)


def natural_step(gradient: Tensor, fisher: Tensor, delta: float) -> Tensor:
    """The best step among those with a quadratic KL of delta, in units of parameters.

    Directions that change no probability have no curvature. Whatever the gradient has
    in them is rounding and is left out; a gradient that has nothing else gives a step
    of zero. Half precision is computed in float32 and rounded once.

    Args:
        gradient: Gradient of the objective to increase, `(dims)`.
        fisher: Fisher matrix of the policy, `(dims, dims)`.
        delta: Limit on the KL, in nats.

    Returns:
        The step to add to the parameters, `(dims)`.

    Raises:
        ValueError: If `delta` is not positive, the shapes do not fit, or one is an
            integer tensor.
    """
    check_positive(delta=delta)
    _check_matrix(fisher, gradient=gradient)
    dtype, (gradient, fisher) = widen(gradient, fisher)
    curvature, axes = torch.linalg.eigh(fisher)  # (dims), (dims, dims)
    rounding = 10 * len(gradient) * torch.finfo(fisher.dtype).eps
    curved = curvature > rounding * curvature.amax()
    slopes = axes.mT @ (gradient / gradient.abs().amax())  # (dims)
    slopes = slopes.where(curved & (slopes.abs().amax() > 0), 0.0)
    real = slopes.norm() > rounding
    # --8<-- [start:core]
    along = slopes / curvature.where(curved, 1.0)  # F⁻¹g, in the axes of F
    length = (2 * delta / (slopes @ along)).sqrt()
    step: Tensor = axes @ (length * along)
    # --8<-- [end:core]
    return step.where(real, 0.0).to(dtype)


def _check_matrix(fisher: Tensor, **vectors: Tensor) -> None:
    """Raise unless the matrix is square and fits the vector."""
    check_tensors(1, **vectors)
    for name, vector in vectors.items():
        if fisher.shape != (*vector.shape, *vector.shape):
            raise ValueError(f"fisher is {[*fisher.shape]}, {name} {[*vector.shape]}")
    check_tensors(2, fisher=fisher)
