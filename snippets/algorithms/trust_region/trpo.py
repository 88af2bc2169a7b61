"""TRPO: the largest step whose mean KL(old || new) stays below a limit.

Source: Schulman et al., Trust Region Policy Optimization, arXiv:1502.05477, section 6
and appendix C. Fisher-vector products give the direction, the quadratic model its
length, and a line search on the exact KL has the last word.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from snippets.foundations.contract import check_positive, check_tensors

OfParameters = Callable[[Tensor], Tensor]


class Search(NamedTuple):
    """Where a line search ended."""

    parameters: Tensor  # (dims), the old ones if no step passed
    fraction: float  # of the step that was kept: 1, 0.5, 0.25, ..., or 0 for none


def fisher_product(
    mean_kl: OfParameters, parameters: Tensor, vector: Tensor, damping: float
) -> Tensor:
    """The Fisher matrix times a vector: curvature of a mean KL, in nats, at no step.

    At the old parameters the KL is 0 and so is its gradient; the curvature is not. The
    result is a constant.

    Args:
        mean_kl: Mean KL(old || new) as a function of the new parameters.
        parameters: The old parameters, `(dims)`.
        vector: What to multiply, `(dims)`.
        damping: Multiple of the identity to add to the matrix, at least 0.

    Returns:
        The product, `(dims)`.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(1, parameters=parameters, vector=vector)
    # --8<-- [start:product]
    at, constant = parameters.detach().requires_grad_(), vector.detach()
    (slope,) = torch.autograd.grad(mean_kl(at), at, create_graph=True)
    (product,) = torch.autograd.grad(slope @ constant, at)
    # --8<-- [end:product]
    return product + damping * constant


def conjugate_gradient(
    product: OfParameters, vector: Tensor, iterations: int
) -> Tensor:
    """Solve `product(x) = vector`, in units of vector over product, approximately.

    The product must be that of a positive semi-definite matrix. What the vector has in
    directions without curvature, of which a softmax has one per state, is left out.
    Scales of the vector and the matrix do not matter. It reads values on the host.

    Args:
        product: Multiplies by the matrix.
        vector: The right side, `(dims)`.
        iterations: How many steps; as many as dimensions are exact but for rounding.

    Returns:
        The solution, `(dims)`, and 0 for a vector of zeros.

    Raises:
        ValueError: If `iterations` is not positive, the vector has no axis, or is an
            integer tensor.
    """
    check_tensors(1, vector=vector)
    check_positive(iterations=iterations)
    scale = _largest(vector)
    solution = torch.zeros_like(vector)
    residual = direction = vector / scale
    norm, steepest = residual @ residual, torch.zeros_like(scale)
    flat = len(vector) * torch.finfo(vector.dtype).eps
    for _ in range(iterations):
        curved = product(direction)
        curvature = direction @ curved / (direction @ direction)
        steepest = torch.maximum(steepest, curvature)
        if not curvature > flat * steepest:
            break
        length = norm / (direction @ curved)
        solution = solution + length * direction
        residual = residual - length * curved
        norm, previous = residual @ residual, norm
        direction = residual + norm / previous * direction
    return solution * scale


def full_step(
    gradient: Tensor, product: OfParameters, delta: float, iterations: int
) -> Tensor:
    """The step along the natural gradient whose quadratic KL is delta, in nats.

    A gradient of zero gives a step of zero. It reads values on the host, for the
    conjugate gradients.

    Args:
        gradient: Gradient of the surrogate, `(dims)`.
        product: Multiplies by the Fisher matrix.
        delta: Limit on the mean KL, in nats.
        iterations: Of conjugate gradients.

    Returns:
        The step to try first, `(dims)`.

    Raises:
        ValueError: If `delta` or `iterations` is not positive, or the gradient has no
            axis or is an integer tensor.
    """
    check_positive(delta=delta)
    # --8<-- [start:core]
    direction = conjugate_gradient(product, gradient, iterations)
    direction = direction / _largest(direction)
    curvature = direction @ product(direction)
    step = (2 * delta / curvature).sqrt() * direction
    # --8<-- [end:core]
    return step.where(direction.any(), 0.0)


def line_search(
    surrogate: OfParameters,
    mean_kl: OfParameters,
    parameters: Tensor,
    step: Tensor,
    delta: float,
    tries: int,
) -> Search:
    """The first of step, step/2, step/4, ... that improves within the limit, no unit.

    A candidate whose surrogate or KL is `nan` does not pass. It reads values on the
    host.

    Args:
        surrogate: Mean of ratio times advantage, of the parameters.
        mean_kl: Mean KL(old || new), of the parameters, exact.
        parameters: The old parameters, `(dims)`.
        step: What to add to them, `(dims)`.
        delta: Limit on the mean KL, in nats.
        tries: How many lengths to try.

    Returns:
        The new parameters and the fraction of the step; the old ones and 0 if no
        length passes.

    Raises:
        ValueError: If `delta` or `tries` is not positive, the shapes differ, or one is
            an integer tensor.
    """
    check_tensors(1, parameters=parameters, step=step)
    check_positive(delta=delta, tries=tries)
    with torch.no_grad():
        before = surrogate(parameters)
        for fraction in (0.5**halvings for halvings in range(tries)):
            candidate = parameters + fraction * step
            within = mean_kl(candidate) <= delta
            if within and surrogate(candidate) > before:
                return Search(candidate, fraction)
    return Search(parameters, 0.0)


def _largest(vector: Tensor) -> Tensor:
    """The largest absolute entry, and 1 for a vector of zeros."""
    largest = vector.abs().amax()
    return largest.where(largest > 0, 1.0)
