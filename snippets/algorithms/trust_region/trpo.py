"""TRPO: the largest step whose mean KL(old || new) stays below a limit.

Source: Schulman et al., Trust Region Policy Optimization, arXiv:1502.05477. The
search direction comes from conjugate gradients on Fisher-vector products, its
length from the quadratic model, and a line search on the exact KL has the last word.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Scalar = Callable[[Tensor], Tensor]  # of the flat parameters


# --8<-- [start:divergences]
def categorical_divergence(old_logits: Tensor, new_logits: Tensor) -> Tensor:
    """KL(old || new) in nats, per state, exact over the actions.

    An action with a logit of `-inf` in the old policy adds nothing.

    Args:
        old_logits: Logits of the policy that sampled, `(*batch, actions)`.
        new_logits: Logits of the candidate, likewise.

    Returns:
        One divergence per state, `(*batch)`: average it over the old states.
    """
    old, new = old_logits.log_softmax(-1), new_logits.log_softmax(-1)
    log_ratio = (old - new).masked_fill(old.isneginf(), 0.0)
    return (old.exp() * log_ratio).sum(-1)


def gaussian_divergence(
    old_mean: Tensor, old_log_std: Tensor, new_mean: Tensor, new_log_std: Tensor
) -> Tensor:
    """KL(old || new) in nats, per state, of Gaussians with diagonal covariance.

    Summed over the dimensions of the action: a mean over them is the joint KL
    divided by their number.

    Args:
        old_mean: Mean of the policy that sampled, `(*batch, dims)`.
        old_log_std: Its log standard deviation, likewise or `(dims)`.
        new_mean: Mean of the candidate, likewise.
        new_log_std: Its log standard deviation, likewise.

    Returns:
        One divergence per state, `(*batch)`.
    """
    gap = old_log_std - new_log_std
    moved = (old_mean - new_mean) * (-new_log_std).exp()
    return 0.5 * (torch.expm1(2 * gap) - 2 * gap + moved.square()).sum(-1)


# --8<-- [end:divergences]


# --8<-- [start:step]
def fisher_product(
    divergence: Scalar, parameters: Tensor, vector: Tensor, damping: float
) -> Tensor:
    """F·vector, where F is the Hessian of a mean KL at the old parameters.

    At the old parameters the KL is 0 and so is its gradient; the curvature is not.

    Args:
        divergence: Mean KL(old || new) as a function of the new parameters.
        parameters: The old parameters, `(dims)`.
        vector: What to multiply, `(dims)`.
        damping: Multiple of the identity to add to F.

    Returns:
        The product, `(dims)`.
    """
    at = parameters.detach().requires_grad_()
    (slope,) = torch.autograd.grad(divergence(at), at, create_graph=True)
    (product,) = torch.autograd.grad(slope @ vector.detach(), at)
    return product + damping * vector


def conjugate_gradient(product: Scalar, vector: Tensor, iterations: int) -> Tensor:
    """Solve `product(x) = vector` for a positive semi-definite product.

    Ends early where a direction has no curvature left: without damping, a softmax
    has such directions.

    Args:
        product: Multiplies by the matrix.
        vector: The right side, `(dims)`; it must lie in the range of the matrix.
        iterations: How many steps; as many as dimensions give the exact answer.

    Returns:
        The solution, `(dims)`.
    """
    solution = torch.zeros_like(vector)
    residual = direction = vector
    norm = vector @ vector
    floor = norm * torch.finfo(vector.dtype).eps ** 2
    for _ in range(iterations):
        if norm <= floor:
            break
        curved = product(direction)
        length = norm / (direction @ curved)
        solution = solution + length * direction
        residual = residual - length * curved
        norm, previous = residual @ residual, norm
        direction = residual + norm / previous * direction
    return solution


def full_step(
    gradient: Tensor, product: Scalar, delta: float, iterations: int
) -> Tensor:
    """The natural step whose quadratic KL is `delta`, from Fisher products.

    Args:
        gradient: Gradient of the surrogate, `(dims)`, not zero.
        product: Multiplies by the Fisher matrix.
        delta: Limit on the mean KL, in nats.
        iterations: Of conjugate gradients.

    Returns:
        The step to try first, `(dims)`.
    """
    direction = conjugate_gradient(product, gradient, iterations)
    return (2 * delta / (direction @ product(direction))).sqrt() * direction


def line_search(
    surrogate: Scalar,
    divergence: Scalar,
    parameters: Tensor,
    step: Tensor,
    delta: float,
    tries: int,
) -> Tensor:
    """The first of step, step/2, step/4, … that improves within the limit.

    Args:
        surrogate: Mean of ratio times advantage, of the parameters.
        divergence: Mean KL(old || new), of the parameters, exact.
        parameters: The old parameters, `(dims)`.
        step: What to add to them, `(dims)`.
        delta: Limit on the mean KL, in nats.
        tries: How many lengths to try.

    Returns:
        New parameters, or the old ones if no length passes.
    """
    with torch.no_grad():
        before = surrogate(parameters)
        for halvings in range(tries):
            candidate = parameters + step * 0.5**halvings
            within = divergence(candidate) <= delta
            if within and surrogate(candidate) > before:
                return candidate
    return parameters


# --8<-- [end:step]
