"""How far an estimate can be from the KL, measured on the batch that gave it.

Source: Owen, Monte Carlo theory, methods and examples, chapters 2 (standard errors),
8 (control variates) and 9 (effective sample size), artowen.su.domains/mc.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from snippets.estimate.estimators import k1, k3
from snippets.foundations.contract import check_tensors, widen


class Estimate(NamedTuple):
    """A mean with its standard error, both in the unit of the values."""

    mean: Tensor
    error: Tensor


def mean_and_error(values: Tensor) -> Estimate:
    """The mean of independent samples and its standard error, in their unit.

    The samples must be independent: sequences, not the tokens of one sequence. If
    the values have infinite variance, so has the mean, and the error means nothing.
    Half precision is computed in float32 and rounded once.

    Args:
        values: One estimate per sample, `(*batch, samples)`.

    Returns:
        Mean and standard error, `(*batch)` each.

    Raises:
        ValueError: If there are fewer than two samples, or values are integers.
    """
    check_tensors(1, values=values)
    samples = values.shape[-1]
    if samples < 2:
        raise ValueError(f"values has {samples} samples, an error needs two")
    dtype, (values,) = widen(values)
    # --8<-- [start:error]
    mean, error = values.mean(-1), values.std(-1) / samples**0.5
    # --8<-- [end:error]
    return Estimate(mean.to(dtype), error.to(dtype))


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """How many equally weighted samples a weighted batch is worth.

    Between 1 and the number of samples, and the latter exactly if all weights are
    equal. Weights need no common scale. If every weight is 0, or one is infinite, it is
    `nan`. Half precision is computed in float32 and rounded once.

    Args:
        log_weights: Log of the importance weights, `(*batch, samples)`.

    Returns:
        `(*batch)`: the square of the weights' sum over the sum of their squares.

    Raises:
        ValueError: If there is no sample, or log_weights are integers.
    """
    check_tensors(1, log_weights=log_weights)
    if not log_weights.shape[-1]:
        raise ValueError("log_weights has no sample")
    dtype, (log_weights,) = widen(log_weights)
    # --8<-- [start:size]
    largest = log_weights.amax(-1, keepdim=True)
    weights = (log_weights - largest).exp()  # (*batch, samples)
    size = weights.sum(-1).square() / weights.square().sum(-1)
    # --8<-- [end:size]
    return size.to(dtype)


def control_variate(
    log_p: Tensor, log_q: Tensor, coefficient: float | Tensor
) -> Tensor:
    """KL(P || Q) in nats per sample of P: k1 plus a multiple of a term of mean zero.

    The term is Q / P - 1. Unbiased for every fixed coefficient: 0 is k1, 1 is k3.
    Above 0 and below 1 it may be negative. A sample that Q cannot give is `inf`. Half
    precision is computed in float32 and rounded once.

    Args:
        log_p: Log-probability of each sample under P, which drew it,
            `(*batch, samples)`.
        log_q: Log-probability of the same sample under Q, `(*batch, samples)`.
        coefficient: How much of the term: a number, or one per row, `(*batch)`.

    Returns:
        One estimate per sample, `(*batch, samples)`.

    Raises:
        ValueError: If the shapes disagree, or a tensor is an integer one.
    """
    check_tensors(1, log_p=log_p, log_q=log_q)
    dtype, (log_p, log_q) = widen(log_p, log_q)
    if isinstance(coefficient, Tensor):
        check_tensors(log_p=log_p[..., 0], coefficient=coefficient)
        coefficient = coefficient.unsqueeze(-1)
    # --8<-- [start:mixed]
    sampled = k1(log_p, log_q)
    mixed = (1 - coefficient) * sampled + coefficient * k3(log_p, log_q)
    # --8<-- [end:mixed]
    return torch.where(sampled.isinf(), sampled, mixed).to(dtype)


def best_coefficient(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The coefficient that gives `control_variate` the least variance on a batch.

    Zero where all ratios are equal, since every coefficient is then as good; `nan`
    where a ratio is 0. Fitted and used on the same batch it biases the
    mean by the order of 1 / samples: fit it on one batch, use it on the next. Half
    precision is computed in float32 and rounded once.

    Args:
        log_p: Log-probability of each sample under P, which drew it,
            `(*batch, samples)`.
        log_q: Log-probability of the same sample under Q, `(*batch, samples)`.

    Returns:
        One coefficient per row, `(*batch)`, without gradient.

    Raises:
        ValueError: If the shapes differ, there is no sample, or a tensor is an integer
            one.
    """
    check_tensors(1, log_p=log_p, log_q=log_q)
    if not log_p.shape[-1]:
        raise ValueError("log_p has no sample")
    dtype, (log_p, log_q) = widen(log_p.detach(), log_q.detach())
    # --8<-- [start:best]
    log_u = log_q - log_p
    largest = log_u.amax(-1, keepdim=True)
    scaled = (log_u - largest).expm1()  # u / max(u) - 1
    of_log_u, of_u = (x - x.mean(-1, keepdim=True) for x in (log_u, scaled))
    best = (of_log_u * of_u).sum(-1) / of_u.square().sum(-1)  # (*batch)
    best = best / largest.squeeze(-1).exp()
    # --8<-- [end:best]
    equal = log_u.amin(-1) == largest.squeeze(-1)
    return torch.where(equal, torch.zeros_like(best), best).to(dtype)


def k3_variance_is_finite(std_p: Tensor, std_q: Tensor) -> Tensor:
    """Whether k3 has a finite variance between two diagonal Gaussian policies.

    It has if each standard deviation of Q is less than the square root of 2 times that
    of P; the means do not matter. k1 always has. False where a standard deviation is
    not positive.

    Args:
        std_p: Standard deviations of P, which draws the samples, `(*batch, dims)`.
        std_q: Standard deviations of Q, `(*batch, dims)`.

    Returns:
        A boolean per row, `(*batch)`.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(1, std_p=std_p, std_q=std_q)
    _, (std_p, std_q) = widen(std_p, std_q)
    return ((std_q > 0) & (std_q < 2**0.5 * std_p)).all(-1)
