"""A policy so small that every sequence can be listed, and every mean is exact.

Source: none is needed; it is the definition of an expectation.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """What a loss is on average over all sequences, without sampling error."""

    mean: Tensor
    variance: Tensor
    gradient: Tensor
    gradient_variance: Tensor  # summed over the parameters


def every_sequence(actions: int, steps: int) -> Tensor:
    """Every sequence of actions, in counting order.

    Args:
        actions: How many actions there are at each step.
        steps: How many steps a sequence has.

    Returns:
        `(samples, time)`, with `actions ** steps` samples.
    """
    one_step = torch.arange(actions)
    return torch.cartesian_prod(*[one_step] * steps).reshape(-1, steps)


def prefixes(sequences: Tensor, actions: int) -> Tensor:
    """Which state of a tabular policy each action is chosen in.

    State 0 is the empty prefix, then come all prefixes of one action, of two, ...:
    action `a` in state `s` leads to state `s * actions + a + 1`.

    Args:
        sequences: Actions, `(samples, time)`.
        actions: How many actions there are at each step.

    Returns:
        One state per action, `(samples, time)`.
    """
    states = torch.zeros_like(sequences)
    for t in range(1, sequences.shape[1]):
        states[:, t] = states[:, t - 1] * actions + sequences[:, t - 1] + 1
    return states


def token_log_probs(policy: Tensor, sequences: Tensor) -> Tensor:
    """Log-probability in nats of each action, given the actions before it.

    Args:
        policy: Logits in each state, `(states, actions)`.
        sequences: Actions, `(samples, time)`.

    Returns:
        `(samples, time)`. Summed over time: the sequence's.
    """
    states = prefixes(sequences, policy.shape[1])
    return policy.log_softmax(-1)[states, sequences]


def moments(sampler: Tensor, losses: Tensor, policy: Tensor) -> Moments:
    """Mean and variance of a loss over all sequences, and of its gradient.

    Args:
        sampler: Log-probability of each sequence under what draws it, `(samples)`.
        losses: The loss of each sequence, likewise.
        policy: What the losses are differentiated by, `(states, actions)`.

    Returns:
        Mean, variance and gradient variance as scalars, the gradient like `policy`.
    """
    weights = sampler.detach().exp()  # (samples)
    directions = torch.eye(len(losses), dtype=losses.dtype)
    (gradients,) = torch.autograd.grad(
        losses, policy, directions, is_grads_batched=True, retain_graph=True
    )  # (samples, states, actions)
    mean = weights @ losses.detach()
    gradient = torch.einsum("s,sij->ij", weights, gradients)
    spread = (gradients - gradient).square().sum((1, 2))  # (samples)
    variance = weights @ (losses.detach() - mean).square()
    return Moments(mean, variance, gradient, weights @ spread)
