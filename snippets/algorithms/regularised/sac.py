"""The policy step of soft actor-critic: a reverse KL to the Boltzmann policy.

Source: Haarnoja et al., Soft Actor-Critic, arXiv:1801.01290, equation 4; the learned
temperature is that of arXiv:1812.05905.
"""

from torch import Tensor

from snippets.algorithms.regularised.kl_control import expected_next_value
from snippets.estimate.placement import kl_penalty
from snippets.exact.tanh_gaussian import tanh_log_density
from snippets.foundations.contract import check_floating, check_tensors, widen
from snippets.foundations.entropy import entropy


def squashed_sample(
    *, new_mean: Tensor, new_log_std: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Actions in (-1, 1), and their log-densities in nats, from noise.

    The log-density is that of the action after the tanh, finite wherever the number
    before it is. Half precision is computed in float32 and rounded once.

    Args:
        new_mean: Mean before the tanh, `(*batch, dims)`.
        new_log_std: Log standard deviation before the tanh, `(*batch, dims)`.
        noise: Standard normal, `(*batch, dims)`; the gradient of the actions flows to
            mean and deviation past it.

    Returns:
        Actions, `(*batch, dims)`, and one log-density per action, `(*batch)`.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(1, new_mean=new_mean, new_log_std=new_log_std, noise=noise)
    dtype, (mean, log_std, noise) = widen(new_mean, new_log_std, noise)
    # --8<-- [start:sample]
    std = log_std.exp()
    before = mean + std * noise  # (*batch, dims)
    # The density at the Gaussian's own mean, less noise^2 / 2: the noise is at hand,
    # and (before - mean) / std would lose its digits where std is small.
    peak = tanh_log_density(mean=before, std=std, before=before)  # (*batch)
    log_probs = peak - noise.square().sum(-1) / 2
    # --8<-- [end:sample]
    return before.tanh().to(dtype), log_probs.to(dtype)


def sac_policy_loss(
    *, new_log_probs: Tensor, action_values: Tensor, alpha: float | Tensor
) -> Tensor:
    """The loss alpha log pi - Q, in units of Q, of the new policy's own actions.

    Its mean is alpha KL(new || Boltzmann) less alpha log Z. The action carries the
    gradient: it must be reparameterised, and Q a function of it. Half precision is
    computed in float32 and rounded once.

    Args:
        new_log_probs: Log-density of one action per state, in nats, `(*batch)`.
        action_values: Q of the same actions, `(*batch)`.
        alpha: The temperature, at least 0; a scalar tensor counts as a constant.

    Returns:
        One loss per state, `(*batch)`, to be minimised.

    Raises:
        ValueError: If alpha is a negative number or a tensor with axes, the shapes
            differ, or one is an integer tensor.
    """
    check_tensors(new_log_probs=new_log_probs, action_values=action_values)
    dtype, (log_probs, q) = widen(new_log_probs, action_values)
    _check_temperature(alpha)
    if isinstance(alpha, Tensor):
        penalty = alpha.detach() * log_probs
    else:
        penalty = kl_penalty(log_probs, alpha)
    return (penalty - q).to(dtype)


def sac_temperature_loss(
    *, log_alpha: Tensor, new_log_probs: Tensor, target_entropy: float
) -> Tensor:
    """An estimate of alpha (entropy - target), in nats, whose descent moves alpha.

    The temperature falls while the policy is more random than asked, and rises while
    it is less. Half precision is computed in float32 and rounded once.

    Args:
        log_alpha: Log of the temperature, `()`; the gradient is for it alone.
        new_log_probs: Log-density of sampled actions, in nats, `(*batch)`.
        target_entropy: In nats; minus the number of dimensions, by habit.

    Returns:
        One loss per state, `(*batch)`, to be minimised.

    Raises:
        ValueError: If log_alpha has axes, or one is an integer tensor.
    """
    check_floating(log_alpha=log_alpha, new_log_probs=new_log_probs)
    if log_alpha.ndim:
        raise ValueError(f"log_alpha is {[*log_alpha.shape]}, and must be a scalar")
    dtype, (log_alpha, log_probs) = widen(log_alpha, new_log_probs.detach())
    # --8<-- [start:temperature]
    excess = -log_probs - target_entropy  # of entropy, by one sample
    loss = log_alpha.exp() * excess  # (*batch)
    # --8<-- [end:temperature]
    return loss.to(dtype)


def entropy_reward(*, new_logits: Tensor, transitions: Tensor, alpha: float) -> Tensor:
    """The entropy of the next state's policy, times alpha, in units of reward.

    Add discount times this to the rewards, and ordinary action values become soft.

    Args:
        new_logits: Logits of the policy, `(*batch, states, actions)`.
        transitions: Probabilities of the next state, `(states, actions, states)`.
        alpha: The temperature, at least 0.

    Returns:
        Expected bonus, `(*batch, states, actions)`.

    Raises:
        ValueError: If alpha is negative, the shapes do not fit, or one is an integer
            tensor.
    """
    _check_temperature(alpha)
    check_floating(new_logits=new_logits)
    if new_logits.shape[-2:] != transitions.shape[:2]:
        shapes = f"{[*new_logits.shape]}, transitions is {[*transitions.shape]}"
        raise ValueError(f"new_logits is {shapes}")
    bonus = kl_penalty(entropy(new_logits), alpha)  # (*batch, states)
    return expected_next_value(transitions=transitions, values=bonus)


def _check_temperature(alpha: float | Tensor) -> None:
    """Refuse a negative number, and a tensor with axes."""
    if isinstance(alpha, Tensor):
        if alpha.ndim:
            raise ValueError(f"alpha is {[*alpha.shape]}, and must be a scalar")
    elif not alpha >= 0:
        raise ValueError(f"alpha is {alpha}, and must be at least 0")
