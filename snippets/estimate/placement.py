"""The two places of a KL penalty: in the reward, or in the loss.

Source: Ziegler et al., arXiv:1909.08593, for the reward; Shao et al.,
arXiv:2402.03300, for the loss.
"""

import torch
from torch import Tensor

from snippets.estimate.estimators import k1
from snippets.estimate.gradients import weighted_k3_loss
from snippets.estimate.off_policy import importance_weight
from snippets.foundations.contract import check_floating, check_tensors, widen


def kl_penalty(kl: Tensor, beta: float) -> Tensor:
    """Beta times a KL, in units of reward; 0 for a beta of 0, even where the KL is inf.

    Args:
        kl: A KL, or an estimate of one, in nats, `(*batch)`.
        beta: The KL coefficient: how much reward a nat is worth, at least 0.

    Returns:
        One penalty per row, `(*batch)`.

    Raises:
        ValueError: If beta is negative or nan, or the KL is an integer tensor.
    """
    check_floating(kl=kl)
    if not beta >= 0:
        raise ValueError(f"beta is {beta}: a negative one rewards divergence")
    return beta * kl if beta else torch.zeros_like(kl)


def penalised_reward(
    *, rewards: Tensor, old_log_probs: Tensor, ref_log_probs: Tensor, beta: float
) -> Tensor:
    """The reward less beta times k1, for samples of old: a number, without gradient.

    Its mean under old is the objective of the penalised problem,
    E[reward] - beta KL(old || ref). Subtract the baseline from the result.

    Args:
        rewards: One reward per sample, `(*batch)`.
        old_log_probs: Log-probability under the policy that sampled, `(*batch)`.
        ref_log_probs: Log-probability under the reference, `(*batch)`.
        beta: The KL coefficient, at least 0.

    Returns:
        One reward per sample, `(*batch)`.

    Raises:
        ValueError: If beta is negative, the shapes differ, or one is an integer tensor.
    """
    check_tensors(
        rewards=rewards, old_log_probs=old_log_probs, ref_log_probs=ref_log_probs
    )
    # --8<-- [start:reward]
    return rewards - kl_penalty(k1(old_log_probs, ref_log_probs).detach(), beta)
    # --8<-- [end:reward]


def policy_gradient_loss(
    *, new_log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor
) -> Tensor:
    """Minus the advantage, weighted by how much more often new would sample it.

    Its gradient is minus the policy gradient, on average over samples of old. Half
    precision is computed in float32 and rounded once.

    Args:
        new_log_probs: Log-probability under the policy that trains, `(*batch)`.
        old_log_probs: Log-probability under the policy that sampled, `(*batch)`.
        advantages: Reward less baseline; a constant, `(*batch)`.

    Returns:
        One loss per sample, `(*batch)`, to be minimised.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(
        advantages=advantages, new_log_probs=new_log_probs, old_log_probs=old_log_probs
    )
    dtype, (new, old, signal) = widen(new_log_probs, old_log_probs, advantages)
    rho = importance_weight(new_log_probs=new, old_log_probs=old)
    return (-rho * signal.detach()).to(dtype)


def penalised_loss(
    *,
    new_log_probs: Tensor,
    old_log_probs: Tensor,
    ref_log_probs: Tensor,
    advantages: Tensor,
    beta: float,
) -> Tensor:
    """The policy loss plus beta KL(new || ref), the latter with its true gradient.

    The penalty is k3 times the importance weight, which carries a gradient too. With a
    beta of 0 the reference is not read. Half precision is computed in float32 and
    rounded once.

    Args:
        new_log_probs: Log-probability under the policy that trains, `(*batch)`.
        old_log_probs: Log-probability under the policy that sampled, `(*batch)`.
        ref_log_probs: Log-probability under the reference, `(*batch)`.
        advantages: Reward less baseline; a constant, `(*batch)`.
        beta: The KL coefficient, at least 0.

    Returns:
        One loss per sample, `(*batch)`, to be minimised.

    Raises:
        ValueError: If beta is negative, the shapes differ, or one is an integer tensor.
    """
    given = (new_log_probs, old_log_probs, ref_log_probs, advantages)
    check_tensors(
        new_log_probs=new_log_probs,
        old_log_probs=old_log_probs,
        ref_log_probs=ref_log_probs,
        advantages=advantages,
    )
    dtype, (new, old, ref, signal) = widen(*given)
    policies = {"new_log_probs": new, "old_log_probs": old}
    # --8<-- [start:core]
    loss = policy_gradient_loss(**policies, advantages=signal)
    kl = weighted_k3_loss(**policies, ref_log_probs=ref)
    return (loss + kl_penalty(kl, beta)).to(dtype)
    # --8<-- [end:core]
