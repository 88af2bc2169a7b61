"""The policy that is best for a reward and a KL to a reference, in closed form.

Source: equation 4 of Rafailov et al., arXiv:2305.18290.
"""

from torch import Tensor

from snippets.estimate.placement import kl_penalty
from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import check_positive, check_tensors, widen


def optimal_policy(
    *, ref_logits: Tensor, rewards: Tensor, beta: float | Tensor
) -> Tensor:
    """The best policy, as log-probabilities in nats: ref times exp(reward / beta) / Z.

    What the reference never does, it never does either. No policy has a higher mean
    reward less beta KL(policy || ref). Half precision is computed in float32 and
    rounded once.

    Args:
        ref_logits: Logits of the reference, `(*batch, actions)`.
        rewards: Reward of each action, `(*batch, actions)`; finite.
        beta: The KL coefficient: how much reward a nat is worth. A scalar tensor may
            carry a gradient; if it is not positive, the result means nothing.

    Returns:
        Normalised log-probabilities, `(*batch, actions)`.

    Raises:
        ValueError: If beta is a number that is not positive, the shapes differ, or a
            tensor is an integer one.
    """
    check_tensors(1, ref_logits=ref_logits, rewards=rewards)
    dtype, (ref_logits, rewards) = widen(ref_logits, rewards)
    return _scores(ref_logits, rewards, beta).log_softmax(-1).to(dtype)


def optimal_value(
    *, ref_logits: Tensor, rewards: Tensor, beta: float | Tensor
) -> Tensor:
    """The best mean reward less beta KL(policy || ref), beta log Z, in units of reward.

    It lies between the reference's mean reward (beta large) and the highest reward
    that the reference can reach (beta small). Half precision is computed in float32
    and rounded once.

    Args:
        ref_logits: Logits of the reference, `(*batch, actions)`.
        rewards: Reward of each action, `(*batch, actions)`; finite.
        beta: The KL coefficient, a number or a scalar tensor.

    Returns:
        One value per row, `(*batch)`.

    Raises:
        ValueError: If beta is a number that is not positive, the shapes differ, or a
            tensor is an integer one.
    """
    check_tensors(1, ref_logits=ref_logits, rewards=rewards)
    dtype, (ref_logits, rewards) = widen(ref_logits, rewards)
    return (beta * _scores(ref_logits, rewards, beta).logsumexp(-1)).to(dtype)


def regularised_objective(
    *, new_logits: Tensor, ref_logits: Tensor, rewards: Tensor, beta: float
) -> Tensor:
    """Mean reward less beta KL(new || ref), in units of reward, to be maximised.

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
    earned = (new.softmax(-1) * rewards).sum(-1)  # (*batch)
    return (earned - kl_penalty(kl_divergence_logits(new, ref), beta)).to(dtype)


def regret(
    *, new_logits: Tensor, ref_logits: Tensor, rewards: Tensor, beta: float
) -> Tensor:
    """What a policy lacks of the best objective: beta KL(new || optimum), per row.

    In units of reward, and without computing either objective.

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
    best = optimal_policy(ref_logits=ref, rewards=rewards, beta=beta)
    return (beta * kl_divergence_logits(new, best)).to(dtype)


def _scores(ref_logits: Tensor, rewards: Tensor, beta: float | Tensor) -> Tensor:
    """Log of ref times exp(reward / beta), not normalised."""
    check_positive(beta=beta)
    return ref_logits.log_softmax(-1) + rewards / beta
