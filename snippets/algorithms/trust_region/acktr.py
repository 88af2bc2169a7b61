"""ACKTR: a trust region on the quadratic model of the KL, never on the KL itself.

Source: Wu et al., Scalable trust-region method for deep reinforcement learning using
Kronecker-factored approximation, arXiv:1708.05144. The Fisher matrix of a layer is
replaced by a product of two small ones.
"""

import torch
from torch import Tensor

from snippets.foundations.contract import check_positive, check_tensors, widen


def kronecker_factors(inputs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of a layer's Fisher matrix, E[xxᵀ] and E[ggᵀ], the latter in nats.

    Their Kronecker product is exact where inputs and scores are independent; otherwise
    a mean of products is replaced by a product of means. Half precision is computed in
    float32 and rounded once.

    Args:
        inputs: What the layer reads, x, `(samples, dims)`.
        scores: Gradient g of log π(a given s) with respect to what the layer puts
            out, for actions of the policy itself, `(samples, actions)`.

    Returns:
        Factors of the inputs, `(dims, dims)`, and scores, `(actions, actions)`.

    Raises:
        ValueError: If the numbers of samples differ, or one is an integer tensor.
    """
    check_tensors(2, inputs=inputs)
    check_tensors(2, scores=scores)
    if len(inputs) != len(scores):
        raise ValueError(f"inputs has {len(inputs)} rows, scores has {len(scores)}")
    dtype, (inputs, scores) = widen(inputs, scores)
    of_inputs, of_scores = inputs.mT @ inputs, scores.mT @ scores
    return (of_inputs / len(inputs)).to(dtype), (of_scores / len(scores)).to(dtype)


def kronecker_step(
    gradient: Tensor, input_factor: Tensor, score_factor: Tensor, damping: float
) -> Tensor:
    """The natural direction of a layer, per nat: its gradient, whitened on both sides.

    A factor that is singular, damping included, gives `nan` or `inf`. Half precision is
    computed in float32 and rounded once.

    Args:
        gradient: Gradient with respect to the weight, `(actions, dims)`.
        input_factor: E[xxᵀ], `(dims, dims)`.
        score_factor: E[ggᵀ], `(actions, actions)`.
        damping: Multiple of the identity added to both factors, at least 0.

    Returns:
        The direction, `(actions, dims)`.

    Raises:
        ValueError: If the damping is negative, the shapes do not fit, or one is an
            integer tensor.
    """
    if not damping >= 0:
        raise ValueError(f"damping is {damping}, and must not be negative")
    _check_factors(input_factor, score_factor, gradient=gradient)
    tensors = (gradient, input_factor, score_factor)
    dtype, (gradient, of_inputs, of_scores) = widen(*tensors)
    # --8<-- [start:core]
    rows = of_scores + damping * torch.ones_like(of_scores[0]).diag()
    columns = of_inputs + damping * torch.ones_like(of_inputs[0]).diag()
    whitened = torch.linalg.solve_ex(rows, gradient)[0]
    direction: Tensor = torch.linalg.solve_ex(columns, whitened.mT)[0].mT
    # --8<-- [end:core]
    return direction.to(dtype)


def kronecker_kl(step: Tensor, input_factor: Tensor, score_factor: Tensor) -> Tensor:
    """What ACKTR takes for the KL of a step, in nats: ½ stepᵀ (E[xxᵀ] ⊗ E[ggᵀ]) step.

    Half precision is computed in float32 and rounded once.

    Args:
        step: Change of the layer's weight, `(actions, dims)`.
        input_factor: E[xxᵀ], `(dims, dims)`.
        score_factor: E[ggᵀ], `(actions, actions)`.

    Returns:
        One number, `()`.

    Raises:
        ValueError: If the shapes do not fit, or one is an integer tensor.
    """
    _check_factors(input_factor, score_factor, step=step)
    dtype, (step, of_inputs, of_scores) = widen(step, input_factor, score_factor)
    return (0.5 * (step * (of_scores @ step @ of_inputs)).sum()).to(dtype)


def trust_region_rate(quadratic: Tensor, delta: float, largest: float) -> Tensor:
    """The learning rate whose quadratic KL is delta nats, or the largest allowed.

    A direction without length gets the largest rate, and a negative quadratic, which
    no Fisher matrix gives, `nan`. Half precision is computed in float32 and rounded
    once.

    Args:
        quadratic: Quadratic KL of the direction at rate 1, in nats, `()`.
        delta: Limit on the quadratic KL of the step, in nats.
        largest: The rate that is never exceeded.

    Returns:
        One number, `()`: the smaller of `largest` and √(delta / quadratic).

    Raises:
        ValueError: If `delta` or `largest` is not positive, or the quadratic is an
            integer tensor.
    """
    check_positive(delta=delta, largest=largest)
    check_tensors(quadratic=quadratic)
    dtype, (wide,) = widen(quadratic)
    return (delta / wide).sqrt().clamp(max=largest).to(dtype)


def _check_factors(
    input_factor: Tensor, score_factor: Tensor, **weights: Tensor
) -> None:
    """Raise unless both factors are square and fit the weight."""
    check_tensors(2, **weights)
    for name, weight in weights.items():
        actions, dims = weight.shape
        if input_factor.shape != (dims, dims):
            raise ValueError(f"input_factor is {[*input_factor.shape]}, {name} {dims}")
        if score_factor.shape != (actions, actions):
            shape = [*score_factor.shape]
            raise ValueError(f"score_factor is {shape}, {name} {actions}")
    check_tensors(2, input_factor=input_factor)
    check_tensors(2, score_factor=score_factor)
