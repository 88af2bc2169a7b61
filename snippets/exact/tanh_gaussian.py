"""The density of tanh-squashed Gaussian actions, and the KL of clipped ones, exact.

The KL of squashed actions needs no code: a one-to-one map moves both distributions
alike, and their KL stays that of the Gaussians, `kl_gaussian`. A clipped action is not
one to one, and its two ends are atoms.
Source: the data processing inequality, Cover and Thomas, Elements of Information
Theory, 2nd ed., 2.8; the slope of tanh without a difference: Haarnoja et al., SAC.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.special import log_ndtr, ndtr

from snippets.exact.bregman import near_gap
from snippets.exact.gaussian import check_dims, kl_gaussian
from snippets.foundations.contract import widen


def tanh_log_density(*, mean: Tensor, std: Tensor, before: Tensor) -> Tensor:
    """Log-density in nats of the action `tanh(before)`, finite however far out.

    Never recover `before` from the action with `atanh`: the action has lost its
    digits. A row with a standard deviation that is not positive is `nan`. Half
    precision is computed in float32 and rounded once.

    Args:
        mean: Means before the squashing, `(*batch, dims)`.
        std: Standard deviations before it, `(*batch, dims)` or `(dims,)`.
        before: The samples before it, `(*batch, dims)`.

    Returns:
        One log-density per action, `(*batch)`.

    Raises:
        ValueError: If shapes differ in more than missing batch axes, or an argument
            is an integer tensor.
    """
    check_dims(mean=mean, std=std, before=before)
    dtype, (mean, std, before) = widen(mean, std, before)
    # --8<-- [start:density]
    gaussian = -((before - mean) / std).square() / 2 - std.log()
    gaussian = gaussian - math.log(2 * math.pi) / 2
    # log(1 - tanh(x)^2), without forming either.
    slope = 2 * (math.log(2) - before - softplus(-2 * before))
    log_density = (gaussian - slope).sum(-1)  # (*batch)
    # --8<-- [end:density]
    return log_density.to(dtype)


def kl_clipped_gaussian(
    mean_p: Tensor,
    std_p: Tensor,
    mean_q: Tensor,
    std_q: Tensor,
    low: float,
    high: float,
) -> Tensor:
    """KL(P || Q) in nats of actions `x.clamp(low, high)`, each dimension on its own.

    Never more than the KL of x. The two ends are atoms, with the mass beyond them; an
    infinite bound clips nothing. Exactly 0 for equal arguments, and not negative where
    it is above the rounding of its terms: those at the bounds have both signs, and are
    computed in float64 for that reason and rounded once. A row with a standard
    deviation that is not positive and finite is `nan`.

    Args:
        mean_p: Means of P before the clipping, `(*batch, dims)`.
        std_p: Standard deviations of P before it, `(*batch, dims)` or `(dims,)`.
        mean_q: Means of Q before it, `(*batch, dims)` or `(dims,)`.
        std_q: Standard deviations of Q before it, `(*batch, dims)` or `(dims,)`.
        low: The smallest action, or `-inf`.
        high: The largest action, or `inf`.

    Returns:
        One KL per action, `(*batch)`. Gradients flow to all arguments.

    Raises:
        ValueError: If `low` is not below `high`, shapes differ in more than missing
            batch axes, or an argument is an integer tensor.
    """
    check_dims(mean_p=mean_p, std_p=std_p, mean_q=mean_q, std_q=std_q)
    if not low < high:
        raise ValueError(f"low is {low}, and high is {high}")
    dtype, rows = widen(mean_p, std_p, mean_q, std_q)
    mean_p, std_p, mean_q, std_q = (x.double() for x in rows)
    # --8<-- [start:clipped]
    shift, change = (mean_p - mean_q) / std_q, (std_p - std_q) / std_q
    lower, upper = (_standard(x, mean_p, std_p) for x in (low, high))  # (*batch, dims)
    plain = kl_gaussian(*(x.unsqueeze(-1) for x in (mean_p, std_p, mean_q, std_q)))
    kl = _mass(lower, upper) * plain  # (*batch, dims)
    kl = kl + (_end(lower, shift, change) if low > -math.inf else 0.0)
    kl = kl + (_end(-upper, -shift, change) if high < math.inf else 0.0)
    # --8<-- [end:clipped]
    return kl.sum(-1).to(dtype)


def _standard(bound: float, mean: Tensor, std: Tensor) -> Tensor:
    """A bound in deviations from the mean. An infinite one has no gradient."""
    z = (bound - mean) / std
    return z if math.isfinite(bound) else z.detach()


def _mass(lower: Tensor, upper: Tensor) -> Tensor:
    """What a standard normal has between the bounds, from the smaller tails."""
    low, high = (
        torch.where(lower > 0, -upper, lower),
        torch.where(lower > 0, -lower, upper),
    )
    mass: Tensor = ndtr(high) - ndtr(low)
    return mass


def _end(z: Tensor, shift: Tensor, change: Tensor) -> Tensor:
    """What the atom below z adds, and what it changes in the part between the bounds.

    Where Q has its bound close to z, the two cancel to first order: then it is the gap
    of log_ndtr below its tangent, and what is left of the second order.
    """
    mass = ndtr(z)
    z = z.where(mass > torch.finfo(mass.dtype).tiny, 0.0)
    density, step = _hazard(z) * ndtr(z), shift + change * z
    near = step.abs() < 0.1
    gap = near_gap(torch.where(near, z + step, z), z, _curvature)
    close = mass * gap + density * change * (shift + change * z / 2)
    moments = density * (shift + change * shift + (change + change.square() / 2) * z)
    far = mass * (log_ndtr(z) - log_ndtr(z + step.masked_fill(near, 0.0))) + moments
    return torch.where(
        mass > torch.finfo(mass.dtype).tiny, torch.where(near, close, far), 0.0
    )


def _hazard(z: Tensor) -> Tensor:
    """The slope of log_ndtr: the density over the mass below."""
    log_density = -z.square() / 2 - math.log(2 * math.pi) / 2
    return torch.exp(log_density - log_ndtr(z))


def _curvature(z: Tensor) -> Tensor:
    """By how much that slope falls."""
    return _hazard(z) * (_hazard(z) + z)
