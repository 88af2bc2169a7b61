"""How far from the reference a proxy reward can be trusted.

Source: Gao, Schulman and Hilton, arXiv:2210.10760, whose axis is the square root of
KL(new || ref) in nats, and whose two curves are fitted here.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from snippets.algorithms.regularised.optimal_policy import soft_optimum


class Frontier(NamedTuple):
    """The policies that are best for a proxy at their KL, from near to far."""

    distance: Tensor  # the square root of KL(new || ref) in nats, (betas)
    proxy: Tensor  # mean proxy reward, above the reference's, (betas)
    true: Tensor  # mean true reward, likewise


def frontier(
    ref_logits: Tensor, proxy_rewards: Tensor, true_rewards: Tensor, betas: Tensor
) -> Frontier:
    """What optimising a proxy gains, and costs, at every price of a nat.

    Each policy is the exact optimum of E[proxy] - beta KL(new || ref): no policy has
    more proxy reward at its KL. A proxy that is the same for every answer goes nowhere.

    Args:
        ref_logits: Logits of the reference over whole answers, `(actions)`.
        proxy_rewards: What is optimised, `(actions)`.
        true_rewards: What is wanted, `(actions)`.
        betas: Prices of a nat, `(betas)`.

    Returns:
        Distances and gains, one for each beta.

    Raises:
        ValueError: If a beta is not positive, or the rewards are not one per answer.
    """
    rewards = {"proxy_rewards": proxy_rewards, "true_rewards": true_rewards}
    for name, x in rewards.items():
        if x.shape != ref_logits.shape:
            raise ValueError(f"{name} has {tuple(x.shape)}, not one per answer")
    policies = [soft_optimum(ref_logits, proxy_rewards, float(b)) for b in betas]
    new = torch.stack(policies)  # (betas, actions)
    moved = new.exp() - ref_logits.softmax(-1)
    distance = _distance(new, ref_logits.log_softmax(-1))
    return Frontier(distance, moved @ proxy_rewards, moved @ true_rewards)


def _distance(new: Tensor, ref: Tensor) -> Tensor:
    """The root of KL(new || ref), from log-probabilities, `(betas)`.

    The plain sum of new * log(new / ref) rounds to either side of 0 near the reference,
    and has no root below it. None of the terms here is negative.
    """
    p, x = new.exp(), (ref - new).masked_fill(ref.isneginf(), 0.0)
    near = x < 1  # beyond, p may be 0 and exp(x) infinite
    small = x.where(near, 0.0)
    terms = (p * (small.expm1() - small)).where(near, ref.exp() - p - p * x)
    return terms.sum(-1).sqrt()


class Fit(NamedTuple):
    """The curve gain = distance · (alpha - beta · shape), by least squares."""

    alpha: Tensor  # reward per root nat at the start
    beta: Tensor  # how fast it is lost
    residual: Tensor  # root mean square, in units of reward


def fit(distance: Tensor, gain: Tensor, shape: Tensor) -> Fit:
    """Fit Gao's curve. The shape is the distance for best-of-n, its logarithm for RL.

    Args:
        distance: Square roots of KL(new || ref), `(points)`.
        gain: True reward above the reference's, likewise.
        shape: What beta multiplies, likewise; finite.

    Returns:
        Coefficients, and how far the curve is from the points.

    Raises:
        ValueError: If there are fewer than three points, or the shape is not finite.
    """
    if len(distance) < 3:
        raise ValueError(f"distance has {len(distance)} points; a fit needs three")
    if not shape.isfinite().all():
        raise ValueError("shape is not finite; leave out the reference itself")
    columns = torch.stack([distance, -distance * shape], -1)
    solution = torch.linalg.lstsq(columns, gain[:, None]).solution[:, 0]
    residual = (columns @ solution - gain).square().mean().sqrt()
    return Fit(solution[0], solution[1], residual)
