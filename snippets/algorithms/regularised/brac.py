"""BRAC: stay near the data by a KL penalty; and BEAR's MMD, which is no KL.

Source: Wu, Tucker and Nachum, Behavior Regularized Offline Reinforcement Learning,
arXiv:1911.11361; Kumar et al., arXiv:1906.00949 (BEAR).
"""

from torch import Tensor


def behaviour_divergence(new_logits: Tensor, behaviour_logits: Tensor) -> Tensor:
    """KL(new || behaviour) in nats, per state, exact over the actions.

    `inf` where the new policy does what the behaviour never does.

    Args:
        new_logits: Logits of the policy that learns, `(*batch, actions)`.
        behaviour_logits: Logits of the cloned behaviour, likewise.

    Returns:
        One divergence per state, `(*batch)`.
    """
    new, behaviour = new_logits.log_softmax(-1), behaviour_logits.log_softmax(-1)
    log_ratio = (new - behaviour).masked_fill(new.isneginf(), 0.0)
    return (new.exp() * log_ratio).sum(-1)


def sampled_divergence(new_log_probs: Tensor, behaviour_log_probs: Tensor) -> Tensor:
    """The k1 estimate of KL(new || behaviour) in nats, per state.

    A mean of log-ratios, so it can be negative; unbiased if the new policy drew
    the actions.

    Args:
        new_log_probs: Of actions that the new policy drew, `(*batch, samples)`.
        behaviour_log_probs: Of the same actions, likewise.

    Returns:
        One estimate per state, `(*batch)`.
    """
    return (new_log_probs - behaviour_log_probs).mean(-1)


def penalised_target(next_values: Tensor, divergence: Tensor, alpha: float) -> Tensor:
    """Next value less alpha times the KL in the next state: the value penalty.

    Args:
        next_values: Target Q of the new policy's action, `(*batch)`.
        divergence: KL(new || behaviour) in the same state, likewise, in nats.
        alpha: The price of a nat.

    Returns:
        What the Bellman target discounts, `(*batch)`.
    """
    return next_values - alpha * divergence


def penalised_loss(action_values: Tensor, divergence: Tensor, alpha: float) -> Tensor:
    """The policy penalty, alpha times the KL less Q, to be minimised.

    Args:
        action_values: Q of the new policy's action, `(*batch)`.
        divergence: KL(new || behaviour) in the same state, likewise, in nats.
        alpha: The price of a nat.

    Returns:
        One loss per state, `(*batch)`.
    """
    return alpha * divergence - action_values


def squared_discrepancy(
    new_actions: Tensor, behaviour_actions: Tensor, sigma: float
) -> Tensor:
    """Squared MMD between two sets of actions, Laplacian kernel; it has no unit.

    Exactly zero for identical sets, at most 2, finite for disjoint ones. It sees
    samples alone: no density is needed.

    Args:
        new_actions: Drawn by the new policy, `(*batch, samples, dims)`.
        behaviour_actions: Drawn by the cloned behaviour, likewise; the number of
            samples may differ.
        sigma: Width of the kernel exp(-|x - y| / (2 sigma)), in action units.

    Returns:
        One number per state, `(*batch)`.
    """

    def similarity(left: Tensor, right: Tensor) -> Tensor:
        gaps = left[..., :, None, :] - right[..., None, :, :]
        distances = gaps.abs().sum(-1)  # (*batch, samples, samples)
        return (-distances / (2 * sigma)).exp().mean((-2, -1))

    among_new = similarity(new_actions, new_actions)
    among_behaviour = similarity(behaviour_actions, behaviour_actions)
    return among_new + among_behaviour - 2 * similarity(new_actions, behaviour_actions)
