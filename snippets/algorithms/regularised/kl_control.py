"""KL control: planning with the KL of each step to a reference policy as a penalty.

Source: Todorov, Linearly-solvable Markov decision problems, NIPS 2006, and Kappen,
Gómez and Opper, arXiv:0901.0633; the sampled form is MPPI, Williams et al., Information
Theoretic MPC for Model-Based Reinforcement Learning, ICRA 2017.
"""

import torch
from torch import Tensor

from snippets.algorithms.regularised.optimal_policy import (
    optimal_policy,
    optimal_value,
)
from snippets.foundations.contract import (
    check_floating,
    check_positive,
    check_tensors,
    nan_outside,
    widen,
)


def expected_next_value(*, transitions: Tensor, values: Tensor) -> Tensor:
    """The mean value of the next state, in units of reward, per state and action.

    Args:
        transitions: Probabilities of the next state, `(states, actions, states)`.
        values: Value of each state, `(*batch, states)`; finite.

    Returns:
        One mean per state and action, `(*batch, states, actions)`.

    Raises:
        ValueError: If the numbers of states differ, or one is an integer tensor.
    """
    check_floating(transitions=transitions, values=values)
    of_transitions, of_values = [*transitions.shape], [*values.shape]
    if transitions.ndim != 3 or of_transitions[0] != of_transitions[2]:
        raise ValueError(f"transitions is {of_transitions}, not (states, actions, …)")
    if of_values[-1:] != of_transitions[2:]:
        raise ValueError(f"values is {of_values}, transitions is {of_transitions}")
    dtype, (transitions, values) = widen(transitions, values)
    return torch.einsum("san,...n->...sa", transitions, values).to(dtype)


def soft_backup(
    *,
    ref_logits: Tensor,
    rewards: Tensor,
    transitions: Tensor,
    next_values: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """The best policy of one step, as log-probabilities, and the values it leaves.

    The value is the best of reward less beta KL(new || ref), from here on.

    Args:
        ref_logits: Logits of the reference policy, `(states, actions)`.
        rewards: Reward of each state and action, `(states, actions)`; finite.
        transitions: Probabilities of the next state, `(states, actions, states)`.
        next_values: Value of each next state, discounted, `(*batch, states)`.
        beta: The KL coefficient, in units of reward.

    Returns:
        Log-probabilities, `(*batch, states, actions)`, and values, `(*batch, states)`.

    Raises:
        ValueError: If beta is not positive, the shapes do not fit, or a tensor is an
            integer one.
    """
    check_tensors(2, rewards=rewards, ref_logits=ref_logits)
    check_floating(next_values=next_values, transitions=transitions)
    shapes = f"rewards is {[*rewards.shape]}, transitions {[*transitions.shape]}"
    if rewards.shape != transitions.shape[:2]:
        raise ValueError(shapes)
    if next_values.shape[-1:] != rewards.shape[:1]:
        raise ValueError(f"next_values is {[*next_values.shape]}, and {shapes}")
    dtype, (ref_logits, rewards, transitions, next_values) = widen(
        ref_logits, rewards, transitions, next_values
    )
    # --8<-- [start:backup]
    after = expected_next_value(transitions=transitions, values=next_values)
    worth = rewards + after  # (*batch, states, actions)
    ref = ref_logits.expand(worth.shape)
    policy = optimal_policy(ref_logits=ref, rewards=worth, beta=beta)
    values = optimal_value(ref_logits=ref, rewards=worth, beta=beta)
    # --8<-- [end:backup]
    return policy.to(dtype), values.to(dtype)


def path_weights(*, returns: Tensor, beta: float) -> Tensor:
    """softmax(return / beta) over sampled plans, without unit; they sum to 1.

    The optimal policy whose reference is the sample itself.

    Args:
        returns: Return of each plan drawn around the current one, `(*batch, samples)`;
            finite.
        beta: The temperature, in units of return: MPPI's lambda.

    Returns:
        Weights, `(*batch, samples)`.

    Raises:
        ValueError: If beta is not positive, or the returns are integers.
    """
    check_floating(returns=returns)
    dtype, (returns,) = widen(returns)
    drawn = torch.zeros_like(returns)
    weights = optimal_policy(ref_logits=drawn, rewards=returns, beta=beta).exp()
    return weights.to(dtype)


def corrected_returns(
    *, returns: Tensor, noise: Tensor, mean: Tensor, std: Tensor, beta: float
) -> Tensor:
    """Returns plus beta times log(reference / sampler) of each plan, up to a constant.

    The reference draws plans of mean 0; the sampler draws them around the current
    plan. With the correction the weights aim at the optimum for KL(plans || reference)
    wherever the current plan is; without it the reference moves along with the plan. A
    standard deviation that is not positive gives `nan`.

    Args:
        returns: Return of each plan `mean + noise`, `(*batch, samples)`.
        noise: What was added to the mean, `(*batch, samples, dims)`.
        mean: The current plan, flattened, `(*batch, dims)`.
        std: Standard deviation of the noise, `(dims,)`.
        beta: The temperature, in units of return: MPPI's lambda.

    Returns:
        Corrected returns, `(*batch, samples)`.

    Raises:
        ValueError: If beta is not positive, the shapes do not fit, or a tensor is an
            integer one.
    """
    check_positive(beta=beta)
    _check_plans(noise, mean, returns=returns)
    check_floating(std=std)
    if std.shape != noise.shape[-1:]:
        raise ValueError(f"std is {[*std.shape]}, noise is {[*noise.shape]}")
    dtype, (returns, noise, mean, std) = widen(returns, noise, mean, std)
    # --8<-- [start:corrected]
    pull = noise @ (mean / std.square())[..., None]  # (*batch, samples, 1)
    corrected = returns - beta * pull[..., 0]
    # --8<-- [end:corrected]
    return nan_outside(corrected, (std > 0).all()).to(dtype)


def updated_mean(*, weights: Tensor, noise: Tensor, mean: Tensor) -> Tensor:
    """The mean of the Gaussian nearest to the weighted plans, in units of action.

    Nearest in KL(weighted plans || Gaussian), whatever its standard deviation.

    Args:
        weights: What `path_weights` gives, `(*batch, samples)`.
        noise: What was added to the mean, `(*batch, samples, dims)`.
        mean: The current plan, flattened, `(*batch, dims)`.

    Returns:
        The new plan, `(*batch, dims)`.

    Raises:
        ValueError: If the shapes do not fit, or a tensor is an integer one.
    """
    _check_plans(noise, mean, weights=weights)
    dtype, (weights, noise, mean) = widen(weights, noise, mean)
    # --8<-- [start:mean]
    plan = mean + (weights[..., None] * noise).sum(-2)  # (*batch, dims)
    # --8<-- [end:mean]
    return plan.to(dtype)


def _check_plans(noise: Tensor, mean: Tensor, **samples: Tensor) -> None:
    """Refuse a plan, or numbers per sample, that do not fit the noise."""
    check_floating(noise=noise, mean=mean, **samples)
    if noise.ndim < 2 or mean.shape != noise.shape[:-2] + noise.shape[-1:]:
        raise ValueError(f"mean is {[*mean.shape]}, noise is {[*noise.shape]}")
    for name, x in samples.items():
        if x.shape != noise.shape[:-1]:
            raise ValueError(f"{name} is {[*x.shape]}, noise is {[*noise.shape]}")
