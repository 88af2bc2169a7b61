"""How far from the reference a proxy reward can be trusted.

Source: Gao, Schulman and Hilton, arXiv:2210.10760, whose axis is the square root of
KL(new || ref) in nats, and whose two curves are fitted here.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from snippets.algorithms.regularised.optimal_policy import optimal_policy
from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import (
    check_floating,
    check_tensors,
    nan_outside,
    widen,
)


class Frontier(NamedTuple):
    """The policies that are best for a proxy at their KL, from near to far."""

    distance: Tensor  # the square root of KL(new || ref) in nats, (betas)
    proxy: Tensor  # mean proxy reward, above the reference's, (betas)
    true: Tensor  # mean true reward, above the reference's, (betas)


def frontier(
    *, ref_logits: Tensor, proxy_rewards: Tensor, true_rewards: Tensor, betas: Tensor
) -> Frontier:
    """Where optimising a proxy leads, in root nats and units of reward, for each beta.

    Each policy is the exact optimum of E[proxy] - beta KL(new || ref): no policy has
    more proxy reward at its KL. A proxy that is the same for every completion goes
    nowhere. A beta that is not positive gives `nan`. At a distance of 0 the root has
    no slope: its gradient is 0 there. Half precision is computed in float32 and
    rounded once.

    Args:
        ref_logits: Logits of the reference over whole completions, `(actions)`.
        proxy_rewards: What is optimised, `(actions)`; finite.
        true_rewards: What is wanted, `(actions)`; finite.
        betas: KL coefficients, `(betas)`.

    Returns:
        Distances and mean rewards, one for each beta.

    Raises:
        ValueError: If the rewards are not one per completion, or a tensor is an
            integer one.
    """
    check_floating(betas=betas)
    check_tensors(
        1, ref_logits=ref_logits, proxy_rewards=proxy_rewards, true_rewards=true_rewards
    )
    given = (ref_logits, proxy_rewards, true_rewards, betas)
    dtype, (ref, proxy, true, betas) = widen(*given)
    problem = {"ref_logits": ref, "rewards": proxy}
    new = torch.stack([optimal_policy(**problem, beta=x) for x in betas.unbind()])
    kl = kl_divergence_logits(new, ref)  # (betas)
    distance = kl.where(kl > 0, 1.0).sqrt().where(kl > 0, 0.0)
    moved = new.exp() - ref.softmax(-1)
    found = (distance, moved @ proxy, moved @ true)
    return Frontier(*(nan_outside(x, betas > 0).to(dtype) for x in found))


class Fit(NamedTuple):
    """The curve reward = distance · (alpha - beta · bend), by least squares."""

    alpha: Tensor  # reward per root nat at the start
    beta: Tensor  # how fast it is lost
    residual: Tensor  # root mean square, in units of reward


def fit_reward_curve(*, distance: Tensor, rewards: Tensor, bend: Tensor) -> Fit:
    """Gao's curve through rewards, in their unit, against root nats of KL(new || ref).

    The bend is the distance itself for best-of-n, its logarithm for RL. Where it is
    not finite, as at the reference itself, the fit is `nan`. Half precision is
    computed in float32 and rounded once.

    Args:
        distance: Square roots of KL(new || ref), `(points)`.
        rewards: Mean reward above the reference's, `(points)`.
        bend: What beta multiplies, `(points)`; finite.

    Returns:
        Coefficients, and how far the curve is from the points.

    Raises:
        ValueError: If there are fewer than three points, the shapes differ, or one is
            an integer tensor.
    """
    check_tensors(1, distance=distance, rewards=rewards, bend=bend)
    if distance.shape[-1] < 3:
        raise ValueError(f"distance has {len(distance)} points, and a fit needs three")
    dtype, (distance, rewards, bend) = widen(distance, rewards, bend)
    curve = -distance * bend  # least squares by orthogonal columns
    length = distance @ distance
    common = (distance @ curve) / length
    rest = curve - common * distance
    beta = (rest @ rewards) / (rest @ rest)
    alpha = (distance @ rewards) / length - common * beta
    residual = (alpha * distance + beta * curve - rewards).square().mean().sqrt()
    return Fit(*(x.to(dtype) for x in (alpha, beta, residual)))
