"""KL control: planning where every step away from a default policy is paid in nats.

Source: Todorov, Linearly-solvable Markov decision problems, NIPS 2006, and Kappen,
Gómez and Opper, arXiv:0901.0633; the sampled form is MPPI, Williams et al., Information
Theoretic MPC for Model-Based Reinforcement Learning, ICRA 2017.
"""

import torch
from torch import Tensor


# --8<-- [start:backup]
def soft_backup(
    ref_logits: Tensor,
    rewards: Tensor,
    transitions: Tensor,
    next_values: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """The best policy of one step, as log-probabilities, and the values it leaves.

    The value is that of reward less beta · KL(new || ref), from here on.

    Args:
        ref_logits: Logits of the default policy, `(states, actions)`.
        rewards: Likewise; finite.
        transitions: Probabilities of the next state, `(states, actions, states)`.
        next_values: Value of each next state, discounted, `(*batch, states)`.
        beta: The price of a nat, in units of reward.

    Returns:
        Log-probabilities, `(*batch, states, actions)`, and values, `(*batch, states)`.

    Raises:
        ValueError: If beta is not positive.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}, not positive")
    worth = rewards + torch.einsum("san,...n->...sa", transitions, next_values)
    scores = ref_logits.log_softmax(-1) + worth / beta
    return scores.log_softmax(-1), beta * scores.logsumexp(-1)


def control_divergence(new_logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(new || ref) in nats, per state: what each step is charged for.

    Args:
        new_logits: Logits of the controlled policy, `(*batch, states, actions)`.
        ref_logits: Logits of the default policy, likewise.

    Returns:
        One divergence per state, `(*batch, states)`.
    """
    new, ref = new_logits.log_softmax(-1), ref_logits.log_softmax(-1)
    log_ratio = (new - ref).masked_fill(new.isneginf(), 0.0)
    return (new.exp() * log_ratio).sum(-1)


# --8<-- [end:backup]


# --8<-- [start:sampled]
def path_weights(returns: Tensor, beta: float) -> Tensor:
    """softmax(return / beta) over sampled plans; they sum to 1.

    Args:
        returns: Of plans drawn around the current one, `(*batch, samples)`.
        beta: The temperature, in units of return.

    Returns:
        Weights, `(*batch, samples)`.
    """
    return (returns / beta).softmax(-1)


def anchored_returns(
    returns: Tensor, noise: Tensor, mean: Tensor, std: Tensor, beta: float
) -> Tensor:
    """Returns less the cost of having drawn the plans away from the default.

    With it the weights aim at the optimum of KL(plans || zero-mean plans), wherever
    the current plan is; without it, the anchor moves along with the plan.

    Args:
        returns: Of plans `mean + noise`, `(*batch, samples)`.
        noise: What was added to the mean, `(*batch, samples, dims)`.
        mean: The current plan, flattened, `(*batch, dims)`.
        std: Standard deviation of the noise, `(dims)`.
        beta: The temperature, in units of return.

    Returns:
        Corrected returns, `(*batch, samples)`.
    """
    pull = noise @ (mean / std.square())[..., None]  # (*batch, samples, 1)
    return returns - beta * pull[..., 0]


def updated_mean(weights: Tensor, noise: Tensor, mean: Tensor) -> Tensor:
    """The Gaussian nearest to the weighted plans in KL(weighted || Gaussian): its mean.

    Args:
        weights: What `path_weights` gives, `(*batch, samples)`.
        noise: What was added to the mean, `(*batch, samples, dims)`.
        mean: The current plan, flattened, `(*batch, dims)`.

    Returns:
        The new plan, `(*batch, dims)`.
    """
    return mean + (weights[..., None] * noise).sum(-2)


def projection_divergence(
    optimum_mean: Tensor, optimum_std: Tensor, new_mean: Tensor, new_std: Tensor
) -> Tensor:
    """KL(optimum || new) in nats of Gaussians over plans, summed over the dims.

    Args:
        optimum_mean: Mean of the best plans, `(*batch, dims)`.
        optimum_std: Their standard deviation, likewise or `(dims)`.
        new_mean: Mean of the plans that are drawn next, likewise.
        new_std: Their standard deviation, likewise or `(dims)`.

    Returns:
        One divergence per row, `(*batch)`.
    """
    ratio = optimum_std / new_std
    moved = (optimum_mean - new_mean) / new_std
    return 0.5 * (ratio.square() - 1 - 2 * ratio.log() + moved.square()).sum(-1)


# --8<-- [end:sampled]
