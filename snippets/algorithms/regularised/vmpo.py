"""V-MPO: the better half of a batch, weighted, inside a trust region.

Source: Song et al., V-MPO: On-Policy Maximum a Posteriori Policy Optimization for
Discrete and Continuous Control, arXiv:1909.12238, equations 13 to 15.
"""

import math

import torch
from torch import Tensor

from snippets.algorithms.regularised.mpo import temperature_dual
from snippets.algorithms.regularised.optimal_policy import optimal_policy
from snippets.foundations.contract import check_floating, check_mask


def top_half(*, advantages: Tensor, mask: Tensor) -> Tensor:
    """Which samples have the higher advantages: half of those present, rounded up.

    Of equal advantages, the earlier sample counts as higher. What stands under the
    mask is not read; of a row without samples, none is kept.

    Args:
        advantages: Advantage of each state and action, `(*batch, samples)`; finite.
        mask: True where a sample is present, `(*batch, samples)`.

    Returns:
        True for the samples to keep, `(*batch, samples)`.

    Raises:
        ValueError: If the mask is not boolean, or the shapes differ.
    """
    check_mask(mask, advantages=advantages)
    # --8<-- [start:half]
    ordered = advantages.masked_fill(~mask, -math.inf)
    order = ordered.argsort(stable=True, dim=-1, descending=True)
    rank: Tensor = order.argsort(-1)  # 0 is the highest
    return rank < (mask.sum(-1, keepdim=True) + 1) // 2
    # --8<-- [end:half]


def kept_logits(kept: Tensor) -> Tensor:
    """Logits of the uniform distribution over the kept samples: 0, or `-inf`.

    Args:
        kept: What `top_half` gives, boolean, `(*batch, samples)`.

    Returns:
        Logits in float32, `(*batch, samples)`.

    Raises:
        ValueError: If `kept` is not boolean.
    """
    check_mask(kept)
    zeros = torch.zeros_like(kept, dtype=torch.float32)
    return zeros.masked_fill(~kept, -math.inf)


def sample_log_weights(*, advantages: Tensor, kept: Tensor, eta: Tensor) -> Tensor:
    """Log of softmax(advantage / eta) over the kept samples, in nats.

    The optimal policy whose reference is uniform over them. A sample that is not kept
    is not read; a row without samples is `nan`.

    Args:
        advantages: Advantage of each state and action, `(*batch, samples)`; finite.
        kept: What `top_half` gives, `(*batch, samples)`.
        eta: The temperature, `()`; where it is not positive, the result is `nan`.

    Returns:
        Log-weights, `(*batch, samples)`, `-inf` where not kept; a constant, without
        gradient.

    Raises:
        ValueError: If `kept` is not boolean, eta has axes, or the shapes differ.
    """
    check_mask(kept, advantages=advantages)
    check_floating(eta=eta)
    uniform = kept_logits(kept).to(advantages.dtype)
    scores = optimal_policy(ref_logits=uniform, rewards=advantages, beta=eta)
    return scores.detach()


def vmpo_temperature_loss(
    *, advantages: Tensor, kept: Tensor, eta: Tensor, epsilon: float
) -> Tensor:
    """MPO's dual over the kept samples, in units of advantage, per row.

    Its minimum is where the KL of the weights to uniform over the kept is epsilon. A
    sample that is not kept is not read; a row without samples is `nan`.

    Args:
        advantages: Advantage of each state and action, `(*batch, samples)`; finite.
        kept: What `top_half` gives, `(*batch, samples)`.
        eta: The temperature, `()`; the gradient is for it alone. Where it is not
            positive, the result is `nan`.
        epsilon: Limit on the KL of the weights, in nats.

    Returns:
        One loss per row, `(*batch)`, to be minimised.

    Raises:
        ValueError: If epsilon is not positive, `kept` is not boolean, eta has axes, or
            the shapes differ.
    """
    check_mask(kept, advantages=advantages)
    check_floating(eta=eta)
    return temperature_dual(
        old_logits=kept_logits(kept).to(advantages.dtype),
        action_values=advantages.detach(),
        eta=eta,
        epsilon=epsilon,
    )
