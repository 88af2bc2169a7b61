"""BRAC: stay near the data by a KL penalty; and BEAR's MMD, which is no KL.

Source: Wu, Tucker and Nachum, Behavior Regularized Offline Reinforcement Learning,
arXiv:1911.11361; Kumar et al., arXiv:1906.00949 (BEAR).
"""

from torch import Tensor

from snippets.estimate.placement import kl_penalty
from snippets.foundations.contract import (
    check_floating,
    check_positive,
    check_tensors,
    widen,
)


def kl_penalised_value(*, action_values: Tensor, kl: Tensor, alpha: float) -> Tensor:
    """Q less alpha times the KL in the same state, in units of Q.

    Of the next state, it is what BRAC's Bellman target discounts (value penalty).
    Minus it, in this state, is BRAC's policy loss (policy penalty). With an alpha of 0
    it is Q, even where the KL is `inf`. Half precision is computed in float32 and
    rounded once.

    Args:
        action_values: Q of the new policy's action, `(*batch)`.
        kl: KL(new || behaviour) in the same state, in nats, `(*batch)`.
        alpha: The KL coefficient, in units of Q, at least 0.

    Returns:
        One value per state, `(*batch)`.

    Raises:
        ValueError: If alpha is negative, the shapes differ, or one is an integer
            tensor.
    """
    check_tensors(action_values=action_values, kl=kl)
    if not alpha >= 0:
        raise ValueError(f"alpha is {alpha}, and must be at least 0")
    dtype, (action_values, kl) = widen(action_values, kl)
    # --8<-- [start:value]
    value = action_values - kl_penalty(kl, alpha)  # (*batch)
    # --8<-- [end:value]
    return value.to(dtype)


def squared_mmd(
    *, new_actions: Tensor, behaviour_actions: Tensor, sigma: float
) -> Tensor:
    """Squared MMD between two sets of actions, Laplacian kernel; it has no unit.

    Exactly zero for identical sets, at most 2, finite for disjoint ones. For nearly
    identical sets it can round below zero. It sees samples alone: no density is
    needed. Half precision is computed in float32 and rounded once.

    Args:
        new_actions: Drawn by the new policy, `(*batch, samples, dims)`.
        behaviour_actions: Drawn by the cloned behaviour, `(*batch, others, dims)`; the
            number of samples may differ.
        sigma: Width of the kernel exp(-|x - y| / (2 sigma)), in units of action.

    Returns:
        One number per state, `(*batch)`.

    Raises:
        ValueError: If sigma is not positive, batches or dims differ, or one is an
            integer tensor.
    """
    check_positive(sigma=sigma)
    check_floating(new_actions=new_actions, behaviour_actions=behaviour_actions)
    of_new, of_other = [*new_actions.shape], [*behaviour_actions.shape]
    if of_new[:-2] != of_other[:-2] or of_new[-1:] != of_other[-1:] or not of_new[1:]:
        raise ValueError(f"new_actions is {of_new}, behaviour_actions is {of_other}")
    dtype, (new, other) = widen(new_actions, behaviour_actions)
    # --8<-- [start:mmd]
    within = _similarity(new, new, sigma) + _similarity(other, other, sigma)
    squared = within - 2 * _similarity(new, other, sigma)  # (*batch)
    # --8<-- [end:mmd]
    return squared.to(dtype)


def _similarity(left: Tensor, right: Tensor, sigma: float) -> Tensor:
    """The mean of the kernel over all pairs, `(*batch)`."""
    gaps = left[..., :, None, :] - right[..., None, :, :]
    distances = gaps.abs().sum(-1)  # (*batch, samples, others)
    return (-distances / (2 * sigma)).exp().mean((-2, -1))
