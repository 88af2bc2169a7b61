"""The policy that is best for a reward and a KL to a reference, in closed form.

Source: equation 4 of Rafailov et al., arXiv:2305.18290.
"""

import torch
from torch import Tensor

from snippets.estimate.placement import kl_penalty
from snippets.exact.bregman import exp_gap
from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import (
    check_floating,
    check_positive,
    check_tensors,
    widen,
)


def optimal_policy(
    *, ref_logits: Tensor, rewards: Tensor, beta: float | Tensor
) -> Tensor:
    """The best policy, as log-probabilities in nats: ref times exp(reward / beta) / Z.

    What the reference never does, it never does either, and the reward of that is not
    read. No policy has a higher mean reward less beta KL(policy || ref). A row with
    every action masked is `nan`. Half precision is computed in float32 and rounded
    once.

    Args:
        ref_logits: Logits of the reference, `(*batch, actions)`.
        rewards: Reward of each action, `(*batch, actions)`; finite.
        beta: The KL coefficient: how much reward a nat is worth. A scalar tensor may
            carry a gradient; where it is not positive, the result is `nan`.

    Returns:
        Normalised log-probabilities, `(*batch, actions)`.

    Raises:
        ValueError: If beta is a number that is not positive or a tensor with axes, the
            shapes differ, or a tensor is an integer one.
    """
    check_tensors(1, ref_logits=ref_logits, rewards=rewards)
    dtype, (ref_logits, rewards) = widen(ref_logits, rewards)
    beta = _checked(beta)
    # --8<-- [start:policy]
    log_ref = ref_logits.log_softmax(-1)  # (*batch, actions)
    gaps = _below_best(log_ref, rewards)
    log_best = (log_ref + gaps / beta).log_softmax(-1)
    # --8<-- [end:policy]
    return log_best.to(dtype)


def optimal_value(
    *, ref_logits: Tensor, rewards: Tensor, beta: float | Tensor
) -> Tensor:
    """The best mean reward less beta KL(policy || ref), beta log Z, in units of reward.

    It lies between the reference's mean reward (beta large) and the highest reward
    that the reference can reach (beta small), and keeps its digits at both ends. A row
    with every action masked is `nan`. Half precision is computed in float32 and
    rounded once.

    Args:
        ref_logits: Logits of the reference, `(*batch, actions)`.
        rewards: Reward of each action, `(*batch, actions)`; finite.
        beta: The KL coefficient, a number or a scalar tensor; where a tensor is not
            positive, the result is `nan`.

    Returns:
        One value per row, `(*batch)`.

    Raises:
        ValueError: If beta is a number that is not positive or a tensor with axes, the
            shapes differ, or a tensor is an integer one.
    """
    check_tensors(1, ref_logits=ref_logits, rewards=rewards)
    dtype, (ref_logits, rewards) = widen(ref_logits, rewards)
    beta = _checked(beta)
    log_ref = ref_logits.log_softmax(-1)
    gaps = _below_best(log_ref, rewards)
    best = rewards.where(log_ref.isfinite(), -torch.inf).amax(-1).detach()  # (*batch)
    far = best + beta * (log_ref + gaps / beta).logsumexp(-1)
    # With rewards close together, Z is 1 plus little: add the little, which is
    # positive once the mean is taken off, and keep its digits.
    gap = (log_ref.exp() * gaps).sum(-1)  # of the mean reward to the best
    near = gaps.detach().amin(-1).abs() < beta
    x = ((gaps - gap[..., None]) / beta).where(near[..., None], 0.0)
    close = best + gap + beta * (log_ref.exp() * exp_gap(x)).sum(-1).log1p()
    return torch.where(near, close, far).to(dtype)


def regularised_objective(
    *, new_logits: Tensor, ref_logits: Tensor, rewards: Tensor, beta: float
) -> Tensor:
    """Mean reward less beta KL(new || ref), in units of reward, to be maximised.

    The reward of an action that new never takes is not read. Half precision is
    computed in float32 and rounded once.

    Args:
        new_logits: Logits of the policy that learns, `(*batch, actions)`.
        ref_logits: Logits of the reference, `(*batch, actions)`.
        rewards: Reward of each action, `(*batch, actions)`; finite.
        beta: The KL coefficient, at least 0.

    Returns:
        One number per row, `(*batch)`.

    Raises:
        ValueError: If beta is negative, the shapes differ, or a tensor is an integer
            one.
    """
    check_tensors(1, new_logits=new_logits, ref_logits=ref_logits, rewards=rewards)
    dtype, (new, ref, rewards) = widen(new_logits, ref_logits, rewards)
    # --8<-- [start:objective]
    probs = new.softmax(-1)
    mean = (probs * rewards.where(probs > 0, 0.0)).sum(-1)  # (*batch)
    objective = mean - kl_penalty(kl_divergence_logits(new, ref), beta)
    # --8<-- [end:objective]
    return objective.to(dtype)


def regret(
    *, new_logits: Tensor, ref_logits: Tensor, rewards: Tensor, beta: float
) -> Tensor:
    """What a policy lacks of the best objective: beta KL(new || optimum), per row.

    In units of reward, never negative, and without computing either objective. Half
    precision is computed in float32 and rounded once.

    Args:
        new_logits: Logits of the policy that learns, `(*batch, actions)`.
        ref_logits: Logits of the reference, `(*batch, actions)`.
        rewards: Reward of each action, `(*batch, actions)`; finite.
        beta: The KL coefficient.

    Returns:
        One number per row, `(*batch)`; zero at the optimum alone.

    Raises:
        ValueError: If beta is not positive, the shapes differ, or a tensor is an
            integer one.
    """
    check_tensors(1, new_logits=new_logits, ref_logits=ref_logits, rewards=rewards)
    dtype, (new, ref, rewards) = widen(new_logits, ref_logits, rewards)
    # --8<-- [start:regret]
    best = optimal_policy(ref_logits=ref, rewards=rewards, beta=beta)
    regret = beta * kl_divergence_logits(new, best)  # (*batch)
    # --8<-- [end:regret]
    return regret.to(dtype)


def _checked(beta: float | Tensor) -> float | Tensor:
    """Beta, refused or `nan` where it is not positive."""
    check_positive(beta=beta)
    if not isinstance(beta, Tensor):
        return beta
    check_floating(beta=beta)
    if beta.ndim:
        raise ValueError(f"beta is {[*beta.shape]}, and must be a scalar")
    return beta.where(beta > 0, torch.nan)


def _below_best(log_ref: Tensor, rewards: Tensor) -> Tensor:
    """Rewards less the best that the reference can reach; 0 where it never goes."""
    taken = log_ref.isfinite()
    best = rewards.where(taken, -torch.inf).amax(-1, keepdim=True).detach()
    return (rewards - best).where(taken, 0.0)
