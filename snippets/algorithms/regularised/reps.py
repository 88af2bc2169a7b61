"""REPS: the best distribution of states and actions inside a KL.

Source: Peters, Mülling and Altün, Relative Entropy Policy Search, AAAI 2010; average
reward, with the states' own equations as constraints. Here with a known model.
"""

import math

import torch
from torch import Tensor

from snippets.algorithms.regularised.kl_control import expected_next_value
from snippets.algorithms.regularised.optimal_policy import optimal_policy
from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import (
    check_floating,
    check_positive,
    check_tensors,
    widen,
)


def bellman_error(*, rewards: Tensor, transitions: Tensor, values: Tensor) -> Tensor:
    """Reward plus the next state's value less this state's, undiscounted.

    In units of reward. The values are the multipliers of the constraint that what
    flows into a state flows out of it.

    Args:
        rewards: Reward of each state and action, `(states, actions)`.
        transitions: Probabilities of the next state, `(states, actions, states)`.
        values: Value of each state, `(*batch, states)`.

    Returns:
        Bellman errors, `(*batch, states, actions)`.

    Raises:
        ValueError: If the shapes do not fit, or a tensor is an integer one.
    """
    check_tensors(2, rewards=rewards, transitions=transitions[..., 0])
    check_floating(values=values)
    dtype, (rewards, transitions, values) = widen(rewards, transitions, values)
    # --8<-- [start:errors]
    after = expected_next_value(transitions=transitions, values=values)
    errors = rewards + after - values[..., None]  # (*batch, states, actions)
    # --8<-- [end:errors]
    return errors.to(dtype)


def solve_joint(
    *, old_log_joint: Tensor, rewards: Tensor, transitions: Tensor, epsilon: float
) -> Tensor:
    """The best joint distribution within KL(new || old) = epsilon, as logs, in nats.

    Computed in float64, whatever the scale of the rewards: the KL is epsilon to one
    part in a million, and the flow into each state is the flow out of it to 1e-9. It
    is a solver: it reads values on the host.

    Args:
        old_log_joint: Log-probabilities of states and actions together,
            `(states, actions)`. They must be those of a policy in the long run: what
            flows into a state flows out of it.
        rewards: Reward of each state and action, `(states, actions)`; finite.
        transitions: Probabilities of the next state, `(states, actions, states)`.
        epsilon: Limit on KL(new || old), in nats.

    Returns:
        Log-probabilities, `(states, actions)`; the policy is their softmax over the
        actions.

    Raises:
        ValueError: If epsilon is not positive, or no temperature was found: the best
            distribution of all is nearer than epsilon, or so close to it that the
            temperature is below a millionth of the rewards' range; or the dual did not
            converge. If the shapes do not fit, or a tensor is an integer one.
    """
    check_positive(epsilon=epsilon)
    check_tensors(2, old_log_joint=old_log_joint, rewards=rewards)
    zero = torch.zeros_like(rewards[:, 0])
    bellman_error(rewards=rewards, transitions=transitions, values=zero)
    dual = _Dual(old_log_joint, rewards, transitions)
    high = 1 / math.sqrt(2 * epsilon)  # Pinsker: at this temperature the KL is less
    low = high / 2
    while not dual.kl_at(low) > epsilon:
        low, high = low / 2, low
        if low < 1e-6:
            raise ValueError(f"epsilon is {epsilon}, beyond the best distribution")
    for _ in range(40):
        middle = math.sqrt(low * high)
        far = dual.kl_at(middle) > epsilon
        low, high = (middle, high) if far else (low, middle)
    missed = abs(dual.kl_at(high) / epsilon - 1)
    flow = (dual.log_joint.exp() @ dual.flow).abs().amax().item()
    if not (missed < 1e-6 and flow < 1e-9):
        raise ValueError(f"epsilon is {epsilon}, and the dual did not converge")
    return dual.log_joint.reshape(rewards.shape).to(old_log_joint.dtype)


class _Dual:
    """REPS' dual in the values, for one temperature after another.

    Rewards are scaled to a range of 1. The values stay from call to call, so that a
    temperature near the last takes few steps.
    """

    def __init__(self, old: Tensor, rewards: Tensor, transitions: Tensor) -> None:
        """Flatten states and actions to one axis."""
        self.old = old.detach().double().flatten().log_softmax(-1)
        taken = self.old.isfinite()
        r = rewards.detach().double().flatten()
        r = (r - r[taken].amax()).where(taken, 0.0)
        self.rewards = r / r.abs().amax().clamp(min=torch.finfo(r.dtype).tiny)
        states = rewards.shape[0]
        after = transitions.detach().double().reshape(-1, states)
        after = after / after.sum(-1, keepdim=True)  # what float32 left of 1
        here = torch.eye(states).to(after).repeat_interleave(rewards.shape[1], 0)
        self.flow = after - here  # (states * actions, states), of a unit of value
        self.values = torch.zeros_like(after[0])

    # --8<-- [start:solve]
    def kl_at(self, eta: float) -> float:
        """KL(new || old) in nats, once the values are those of the temperature."""
        for _ in range(200):
            errors = self.rewards + self.flow @ self.values
            self.log_joint = optimal_policy(
                ref_logits=self.old, rewards=errors, beta=eta
            )
            new = self.log_joint.exp()
            slope = new @ self.flow  # what flows in, less what flows out
            curvature = (self.flow.T * new) @ self.flow - slope.outer(slope)
            step = torch.linalg.pinv(curvature, hermitian=True) @ slope
            change = self.flow @ step  # of the log-ratios
            size = (change.amax() - change.amin()).item()
            if not size > 1e-9:
                break
            self.values -= eta * math.log1p(size) / size * step  # always downhill
        return kl_divergence_logits(self.log_joint, self.old).item()

    # --8<-- [end:solve]
