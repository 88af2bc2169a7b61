"""ACKTR: a trust region on the quadratic model of the KL, never on the KL itself.

Source: Wu et al., Scalable trust-region method for deep reinforcement learning using
Kronecker-factored approximation, arXiv:1708.05144. The Fisher matrix of a layer is
replaced by a product of two small ones.
"""

import torch
from torch import Tensor


def kronecker_factors(inputs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors of a linear layer's Fisher matrix, E[xxᵀ] and E[ggᵀ].

    Exact where inputs and scores are independent; otherwise a mean of products is
    replaced by a product of means.

    Args:
        inputs: What the layer reads, x, `(samples, dims)`.
        scores: Gradient g of log π(a given s) with respect to what the layer puts
            out, for actions of the policy itself, `(samples, actions)`.

    Returns:
        Factors of the inputs, `(dims, dims)`, and scores, `(actions, actions)`.

    Raises:
        ValueError: If the numbers of samples differ.
    """
    if len(inputs) != len(scores):
        raise ValueError(f"{len(inputs)} inputs, {len(scores)} scores")
    return inputs.mT @ inputs / len(inputs), scores.mT @ scores / len(scores)


def kronecker_step(
    gradient: Tensor, input_factor: Tensor, score_factor: Tensor, damping: float
) -> Tensor:
    """The natural direction of a layer: gradient, whitened on both sides.

    Args:
        gradient: Gradient with respect to the weight, `(actions, dims)`.
        input_factor: E[xxᵀ], `(dims, dims)`.
        score_factor: E[ggᵀ], `(actions, actions)`.
        damping: Multiple of the identity added to both factors.

    Returns:
        The direction, `(actions, dims)`.
    """
    rows = score_factor + damping * torch.eye(len(score_factor)).to(score_factor)
    columns = input_factor + damping * torch.eye(len(input_factor)).to(input_factor)
    whitened: Tensor = torch.linalg.solve(rows, gradient)
    solved: Tensor = torch.linalg.solve(columns, whitened.mT)
    return solved.mT


def quadratic_divergence(
    step: Tensor, input_factor: Tensor, score_factor: Tensor
) -> Tensor:
    """½ stepᵀ (E[xxᵀ] ⊗ E[ggᵀ]) step: what ACKTR takes for the KL, in nats."""
    return 0.5 * (step * (score_factor @ step @ input_factor)).sum()


def trust_region_rate(quadratic: Tensor, delta: float, largest: float) -> Tensor:
    """The learning rate min(largest, √(delta / quadratic)), one number.

    Args:
        quadratic: Quadratic KL of the direction at rate 1, in nats.
        delta: What the quadratic KL of the step may be, in nats.
        largest: The rate that is never exceeded.

    Raises:
        ValueError: If `delta` or `largest` is not positive.
    """
    if delta <= 0 or largest <= 0:
        raise ValueError(f"delta is {delta}, largest is {largest}: both positive")
    ceiling = torch.full_like(quadratic, largest)
    return torch.minimum((delta / quadratic).sqrt(), ceiling)
