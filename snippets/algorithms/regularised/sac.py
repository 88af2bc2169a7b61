"""The policy step of soft actor-critic: a reverse KL to the Boltzmann policy.

Source: Haarnoja et al., Soft Actor-Critic, arXiv:1801.01290; the learned temperature
is that of arXiv:1812.05905.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus


# --8<-- [start:exact]
def boltzmann_divergence(
    new_logits: Tensor, action_values: Tensor, alpha: float
) -> Tensor:
    """KL(new || exp(Q / alpha) / Z) in nats, per state, exact over the actions.

    An action with a logit of `-inf` adds nothing, and takes no part in Z.

    Args:
        new_logits: Logits of the policy that learns, `(*batch, actions)`.
        action_values: Soft Q of each action, likewise; finite.
        alpha: The temperature: the price of a nat of entropy.

    Returns:
        One divergence per state, `(*batch)`.
    """
    new = new_logits.log_softmax(-1)
    absent = new.isneginf()
    best = (action_values / alpha).masked_fill(absent, -math.inf).log_softmax(-1)
    return (new.exp() * (new - best).masked_fill(absent, 0.0)).sum(-1)


# --8<-- [end:exact]


# --8<-- [start:sampled]
def squashed_sample(
    new_mean: Tensor, new_log_std: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Actions in (-1, 1), and their log-densities in nats, from noise.

    The log-density is that of the action after the tanh, finite wherever the
    action before it is.

    Args:
        new_mean: Mean before the tanh, `(*batch, dims)`.
        new_log_std: Log standard deviation before the tanh, likewise or `(dims)`.
        noise: Standard normal, `(*batch, dims)`; gradients flow past it.

    Returns:
        Actions, `(*batch, dims)`, and one log-density per action, `(*batch)`.
    """
    before = new_mean + new_log_std.exp() * noise
    normal = -0.5 * noise.square() - new_log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(x)^2), without the difference that rounds to zero.
    shrunk = 2 * (math.log(2) - before - softplus(-2 * before))
    return before.tanh(), (normal - shrunk).sum(-1)


def policy_loss(new_log_probs: Tensor, action_values: Tensor, alpha: float) -> Tensor:
    """The loss alpha · log π - Q, in units of Q, of the new policy's own actions.

    Its mean is alpha · KL(new || Boltzmann) less alpha · log Z. The action carries
    the gradient: it must be reparameterised, and Q a function of it.

    Args:
        new_log_probs: Log-density of one action per state, `(*batch)`, in nats.
        action_values: Q of the same actions, `(*batch)`.
        alpha: The temperature.

    Returns:
        One loss per state, `(*batch)`.
    """
    return alpha * new_log_probs - action_values


def temperature_loss(
    log_alpha: Tensor, new_log_probs: Tensor, target_entropy: float
) -> Tensor:
    """An estimate of alpha · (entropy - target), in nats, whose descent moves alpha.

    The temperature falls while the policy is more random than asked, and rises
    while it is less. Gradients flow to `log_alpha` alone.

    Args:
        log_alpha: Log of the temperature, a scalar.
        new_log_probs: Log-density of sampled actions, `(*batch)`, in nats.
        target_entropy: In nats; minus the number of dimensions, by habit.

    Returns:
        One loss per state, `(*batch)`.
    """
    return -log_alpha.exp() * (new_log_probs.detach() + target_entropy)


# --8<-- [end:sampled]


def entropy_reward(new_logits: Tensor, transitions: Tensor, alpha: float) -> Tensor:
    """The entropy that waits in the next state, times alpha, per state and action.

    Add discount times this to the rewards, and ordinary action values become soft.

    Args:
        new_logits: Logits of the policy, `(*batch, states, actions)`.
        transitions: Probabilities of the next state, `(states, actions, states)`.
        alpha: The temperature.

    Returns:
        Expected bonus, `(*batch, states, actions)`, in units of reward.
    """
    new = new_logits.log_softmax(-1)
    entropy = -(new.exp() * new.masked_fill(new.isneginf(), 0.0)).sum(-1)
    return alpha * torch.einsum("san,...n->...sa", transitions, entropy)
