"""A policy so small that every sequence can be listed, and every mean is exact.

Source: none is needed; it is the definition of an expectation.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from snippets.foundations.contract import check_tensors


class Moments(NamedTuple):
    """What a loss is on average over all sequences, without sampling error."""

    mean: Tensor
    variance: Tensor
    gradient: Tensor
    gradient_variance: Tensor  # summed over the parameters


def every_sequence(actions: int, steps: int) -> Tensor:
    """Every sequence of actions, in counting order.

    Of no step there is one sequence, the empty one.

    Args:
        actions: How many actions there are at each step.
        steps: How many steps a sequence has.

    Returns:
        `(samples, time)`, with `actions ** steps` samples, on the CPU.

    Raises:
        ValueError: If there is no action, or steps is negative.
    """
    if actions < 1 or steps < 0:
        raise ValueError(f"actions is {actions}, and steps is {steps}")
    count = torch.arange(actions**steps).unsqueeze(-1)  # (samples, 1)
    place = torch.tensor([actions**t for t in reversed(range(steps))])  # (time)
    return count.div(place.long(), rounding_mode="floor") % actions


def prefixes(sequences: Tensor, actions: int) -> Tensor:
    """Which state of a tabular policy each action is chosen in.

    State 0 is the empty prefix, then come all prefixes of one action, of two, ...:
    action `a` in state `s` leads to state `s * actions + a + 1`.

    Args:
        sequences: Actions, integers, `(samples, time)`.
        actions: How many actions there are at each step.

    Returns:
        One state per action, `(samples, time)`.

    Raises:
        ValueError: If sequences are not integers, or have other axes.
    """
    _check_sequences(sequences)
    states = [torch.zeros_like(sequences[:, 0:1])]
    for t in range(1, sequences.shape[1]):
        chosen = sequences[:, t - 1 : t]
        states.append(states[-1] * actions + chosen + 1)
    return torch.cat(states, 1)[:, : sequences.shape[1]]


def token_log_probs(policy: Tensor, sequences: Tensor) -> Tensor:
    """Log-probability in nats of each action, given the actions before it.

    Args:
        policy: Logits in each state, `(states, actions)`.
        sequences: Actions, integers, `(samples, time)`.

    Returns:
        `(samples, time)`. Summed over time: the sequence's.

    Raises:
        ValueError: If the policy has other axes or integers, or sequences are not
            integers.
    """
    _check_policy(policy)
    states = prefixes(sequences, policy.shape[1])
    return policy.log_softmax(-1)[states, sequences]


def moments(sampler: Tensor, losses: Tensor, policy: Tensor) -> Moments:
    """Mean and variance of a loss over all sequences, and of its gradient.

    Args:
        sampler: Log-probability of each sequence under what draws it, `(samples)`.
        losses: The loss of each sequence, `(samples)`.
        policy: What the losses are differentiated by, `(states, actions)`.

    Returns:
        Mean, variance and gradient variance as scalars, the gradient like `policy`; all
        of them constants.

    Raises:
        ValueError: If the shapes do not fit, or a tensor is an integer one.
    """
    check_tensors(sampler=sampler, losses=losses)
    if losses.ndim != 1:
        raise ValueError(f"losses is {[*losses.shape]}, and needs one axis")
    _check_policy(policy)
    # --8<-- [start:core]
    weights = sampler.detach().exp()  # (samples)
    each = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
    (gradients,) = torch.autograd.grad(
        losses, policy, each, is_grads_batched=True, retain_graph=True
    )  # (samples, states, actions)
    mean = weights @ losses.detach()
    gradient = torch.einsum("s,sij->ij", weights, gradients)
    # --8<-- [end:core]
    spread = (gradients - gradient).square().sum((1, 2))  # (samples)
    variance = weights @ (losses.detach() - mean).square()
    return Moments(mean, variance, gradient, weights @ spread)


def _check_policy(policy: Tensor) -> None:
    """Refuse a table that is not floating point, or has other axes than two."""
    check_tensors(2, policy=policy)
    if policy.ndim != 2:
        raise ValueError(f"policy is {[*policy.shape]}, and needs two axes")


def _check_sequences(sequences: Tensor) -> None:
    """Refuse sequences that are no integers, or have other axes than two."""
    if sequences.is_floating_point() or sequences.ndim != 2:
        given = f"{[*sequences.shape]} {sequences.dtype}"
        raise ValueError(f"sequences is {given}, and must be two axes of integers")
