"""MPO: improve without parameters inside a KL, then project inside another.

Source: Abdolmaleki et al., Maximum a Posteriori Policy Optimisation, arXiv:1806.06920;
the decoupled constraints on mean and covariance are those of arXiv:1812.02256.
Sampled actions are a policy too, uniform over themselves: pass zeros as old logits.
"""

import math

import torch
from torch import Tensor

from snippets.algorithms.regularised.awr import regression_loss
from snippets.algorithms.regularised.optimal_policy import (
    optimal_policy,
    optimal_value,
)
from snippets.exact.categorical import kl_divergence_logits
from snippets.exact.gaussian import kl_gaussian
from snippets.foundations.contract import check_positive, check_tensors, widen


def temperature_dual(
    *, old_logits: Tensor, action_values: Tensor, eta: float | Tensor, epsilon: float
) -> Tensor:
    """The dual of a KL limit, eta (epsilon + log E_old exp(Q / eta)), in units of Q.

    Convex in eta. The derivative of its mean over states is epsilon less the mean
    KL(target || old), so the minimum is where the constraint holds with equality. The
    target is `optimal_policy(ref_logits=old_logits, rewards=action_values, beta=eta)`.
    Half precision is computed in float32 and rounded once.

    Args:
        old_logits: Logits of the policy that sampled, `(*batch, actions)`; zeros over
            sampled actions.
        action_values: Q of each action, `(*batch, actions)`; finite.
        eta: The temperature, a number or a scalar tensor, which gets the gradient.
            Where a tensor is not positive, the result is `nan`.
        epsilon: Limit on the mean KL, in nats.

    Returns:
        One number per state, `(*batch)`: average it before taking the gradient.

    Raises:
        ValueError: If eta or epsilon is a number that is not positive, the shapes
            differ, or a tensor is an integer one.
    """
    check_tensors(1, old_logits=old_logits, action_values=action_values)
    check_positive(epsilon=epsilon)
    dtype, (old, q) = widen(old_logits, action_values)
    # --8<-- [start:dual]
    value = optimal_value(ref_logits=old, rewards=q, beta=eta)  # eta log E exp(Q / eta)
    dual = eta * epsilon + value  # (*batch)
    # --8<-- [end:dual]
    return dual.to(dtype)


def solve_temperature(
    *, old_logits: Tensor, action_values: Tensor, epsilon: float
) -> Tensor:
    """The temperature at which the mean KL(target || old) is epsilon, in units of Q.

    By bisection of its logarithm in float64, whatever the scale of Q: for limits of
    1e-9 nats or more, the KL is epsilon to one part in a million. It reads values on
    the host once, to see whether the limit binds.

    Args:
        old_logits: Logits of the policy that sampled, `(*batch, actions)`; zeros over
            sampled actions.
        action_values: Q of each action, `(*batch, actions)`; finite.
        epsilon: Limit on the mean KL, in nats.

    Returns:
        `()`, in float32 or wider; a constant, without gradient.

    Raises:
        ValueError: If epsilon is not positive, or no temperature exists: even the
            greedy policy is nearer than epsilon. If the shapes differ, or a tensor is
            an integer one.
    """
    check_tensors(1, old_logits=old_logits, action_values=action_values)
    check_positive(epsilon=epsilon)
    dtype = torch.promote_types(action_values.dtype, torch.float32)
    old = old_logits.detach().double().log_softmax(-1)
    old = old.masked_fill(old < -700, -math.inf)  # exp(-700) is still a number
    q = action_values.detach().double().where(old.isfinite(), -math.inf)
    below = (q - q.amax(-1, keepdim=True)).where(old.isfinite(), 0.0)
    greedy = -old.masked_fill(below < 0, -math.inf).logsumexp(-1).mean()
    if not greedy > epsilon:
        raise ValueError(
            f"epsilon is {epsilon}, beyond greedy, {greedy.abs():.4g} nats"
        )
    # --8<-- [start:solve]
    low = (below.where(below < 0, -math.inf).amax().abs() / 1e4).log()
    high = (below.amin().abs() / math.sqrt(8 * epsilon)).log()  # Hoeffding's lemma
    for _ in range(100):
        eta = ((low + high) / 2).exp()
        target = optimal_policy(ref_logits=old, rewards=below, beta=eta)
        far = kl_divergence_logits(target, old).mean() > epsilon
        low, high = torch.where(far, eta.log(), low), torch.where(far, high, eta.log())
    # --8<-- [end:solve]
    return high.exp().to(dtype)


def projection_loss(*, target_logits: Tensor, new_log_probs: Tensor) -> Tensor:
    """Cross-entropy of the new policy under the target, in nats, per state.

    KL(target || new) plus the target's entropy, which has no gradient for new. An
    action that the target never takes is not read.

    Args:
        target_logits: What `optimal_policy` gives, `(*batch, actions)`; over sampled
            actions, too. No gradient flows to it.
        new_log_probs: Log-probability or density of the same actions under the policy
            that learns, `(*batch, actions)`.

    Returns:
        One loss per state, `(*batch)`, to be minimised.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(1, target_logits=target_logits, new_log_probs=new_log_probs)
    dtype, (target_logits, new_log_probs) = widen(target_logits, new_log_probs)
    # --8<-- [start:projection]
    weights = target_logits.softmax(-1)  # (*batch, actions)
    loss = regression_loss(weights=weights, new_log_probs=new_log_probs).sum(-1)
    # --8<-- [end:projection]
    return loss.to(dtype)


def decoupled_kls(
    *, old_mean: Tensor, old_log_std: Tensor, new_mean: Tensor, new_log_std: Tensor
) -> tuple[Tensor, Tensor]:
    """KL(old || new) in nats, per dimension, of the mean alone and the std alone.

    The first changes only the mean, the second only the standard deviation. Their sum
    is the KL of both changes where at most one of them happens. Half precision is
    computed in float32 and rounded once.

    Args:
        old_mean: Mean of the policy that sampled, `(*batch, dims)`.
        old_log_std: Its log standard deviation, `(*batch, dims)`.
        new_mean: Mean of the policy that learns, `(*batch, dims)`.
        new_log_std: Its log standard deviation, `(*batch, dims)`.

    Returns:
        Two KLs per state and dimension, `(*batch, dims)` each: their sums over the
        dimensions are the joint KLs.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(
        1,
        old_mean=old_mean,
        old_log_std=old_log_std,
        new_mean=new_mean,
        new_log_std=new_log_std,
    )
    dtype, wide = widen(old_mean, old_log_std, new_mean, new_log_std)
    # --8<-- [start:decoupled]
    old, log_old, new, log_new = (x[..., None] for x in wide)  # (*batch, dims, 1)
    old_std, new_std = log_old.exp(), log_new.exp()
    of_mean = kl_gaussian(old, old_std, new, old_std)  # (*batch, dims)
    of_std = kl_gaussian(old, old_std, old, new_std)
    # --8<-- [end:decoupled]
    return of_mean.to(dtype), of_std.to(dtype)


def constraint_losses(
    *, kl: Tensor, multiplier: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """A KL limit as two losses, in units of reward: for the policy, for its multiplier.

    Both are minimised. The multiplier grows while the KL is above epsilon. A
    multiplier of 0 makes the first 0, even where the KL is `inf`.

    Args:
        kl: Mean KL(old || new) of each constraint, in nats, `(*batch)`.
        multiplier: The Lagrange multiplier of each, not negative, `(*batch)`.
        epsilon: Limit on the KL, in nats.

    Returns:
        `multiplier * KL` with a gradient for the policy alone, and
        `multiplier * (epsilon - KL)` with one for the multiplier alone, `(*batch)`.

    Raises:
        ValueError: If epsilon is not positive, the shapes differ, or one is an integer
            tensor.
    """
    check_tensors(kl=kl, multiplier=multiplier)
    check_positive(epsilon=epsilon)
    # --8<-- [start:constraint]
    fixed = multiplier.detach()
    for_policy = fixed * kl.where(fixed != 0, 0.0)
    for_multiplier = multiplier * (epsilon - kl.detach())
    # --8<-- [end:constraint]
    return for_policy, for_multiplier
