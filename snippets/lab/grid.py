"""Every estimator, weight, placement and sampler, by enumeration.

Source: none is needed; each entry is a sum over all sequences.
"""

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from snippets.estimate.estimators import k1, k2, k3
from snippets.estimate.gradients import straight_through
from snippets.estimate.off_policy import importance_weight
from snippets.estimate.sequences import reward_to_go
from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import check_tensors
from snippets.lab.enumeration import (
    Moments,
    every_sequence,
    moments,
    prefixes,
    token_log_probs,
)

PLACES = {
    "loss, sequence": ("k1", "k2", "k3", "k3, gradient of k2", "Rao–Blackwell"),
    "loss, token": ("k1", "k2", "k3", "k3, gradient of k2", "Rao–Blackwell"),
    "reward, sequence": ("k1", "k2", "k3", "k1 of old", "Rao–Blackwell"),
    "reward, token to go": ("k1", "k2", "k3", "k1 of old", "Rao–Blackwell"),
    "reward, own token": ("k1", "k2", "k3", "k1 of old", "Rao–Blackwell"),
}
WEIGHTS = ("none", "sg(ρ)", "ρ")
SAMPLERS = ("new", "old")
SAME = 1e-10  # what counts as equal in float64, where sums of 64 terms err by 1e-15


class Cell(NamedTuple):
    """One way to use an estimator, and what it gives on average."""

    place: str
    sampler: str
    weight: str
    estimator: str
    value: str  # the KL it estimates, or its bias
    variance: float
    gradient: str  # the gradient it estimates, or its relative error
    gradient_variance: float


class Lab:
    """Three tabular policies and all their sequences.

    Args:
        new: Logits of the policy that trains, `(states, actions)`.
        old: Logits of the policy that samples, `(states, actions)`.
        ref: Logits of the reference, `(states, actions)`.
        steps: How many tokens a sequence has.
    """

    def __init__(self, new: Tensor, old: Tensor, ref: Tensor, steps: int) -> None:
        """List the sequences, and their log-probabilities under each policy."""
        self.policy = new.clone().requires_grad_()
        sequences = every_sequence(new.shape[1], steps)
        states = prefixes(sequences, new.shape[1])
        self.old_policy, self.ref_policy = old.detach(), ref.detach()
        self.new, self.old, self.ref = (
            token_log_probs(policy, sequences)  # (samples, time)
            for policy in (self.policy, self.old_policy, self.ref_policy)
        )
        self.exact = kl_divergence_logits(self.policy, self.ref_policy)[states]
        self.other = kl_divergence_logits(self.ref_policy, self.policy)[
            states
        ]  # (samples, time)
        self.sampler = self.old.sum(-1)  # (samples)

    def moments(self, losses: Tensor) -> Moments:
        """Exact moments of a loss, `(samples)`, over samples of old."""
        return moments(self.sampler, losses, self.policy)

    def estimate(self, name: str, tokens: bool) -> Tensor:
        """An estimator by its name, `(samples, time)` or `(samples, 1)`."""
        if name == "Rao–Blackwell":
            return self.exact
        new, old, ref = (
            x if tokens else x.sum(-1, keepdim=True)
            for x in (self.new, self.old, self.ref)
        )
        match name:
            case "k1":
                return k1(new, ref)
            case "k2":
                return k2(new, ref)
            case "k3":
                return k3(new, ref)
            case "k1 of old":
                return k1(old, ref)
            case "k3, gradient of k2":
                return straight_through(value=k3(new, ref), loss=k2(new, ref))
        raise ValueError(f"no estimator is called {name!r}")

    def weight(self, kind: str, name: str, tokens: bool) -> Tensor:
        """The weight of an estimator: of its token, its sequence or its prefix."""
        new, old = self.new, self.old  # (samples, time)
        if not tokens and name == "Rao–Blackwell":
            new, old = (x.cumsum(-1) - x for x in (new, old))  # of the tokens before
        elif not tokens:
            new, old = (x.sum(-1, keepdim=True) for x in (new, old))
        weight = importance_weight(new_log_probs=new, old_log_probs=old)
        return {
            "none": torch.ones_like(weight),
            "sg(ρ)": weight.detach(),
            "ρ": weight,
        }[kind]

    # --8<-- [start:placement]
    def in_loss(self, name: str, weight: str, tokens: bool) -> Tensor:
        """The estimator as a loss, `(samples)`."""
        factor = self.weight(weight, name, tokens)
        return (factor * self.estimate(name, tokens)).sum(-1)

    def in_reward(self, name: str, weight: str, place: str) -> Tensor:
        """The estimator as a penalty that the policy gradient sees, `(samples)`.

        The weight multiplies the gradient of the log-probability, as in PPO.
        """
        tokens = place != "reward, sequence"
        penalty = self.estimate(name, tokens).detach()
        if place == "reward, token to go":
            penalty = reward_to_go(penalty, torch.ones_like(penalty, dtype=torch.bool))
        if not tokens:
            penalty = penalty.sum(-1, keepdim=True)
        score = self.new if tokens else self.new.sum(-1, keepdim=True)
        factor = self.weight(weight, "k1", tokens).detach()
        return (factor * penalty * score).sum(-1)

    # --8<-- [end:placement]

    def cell(self, place: str, weight: str, name: str, sampler: str) -> Cell:
        """What one use of an estimator gives on average."""
        tokens = not place.endswith("sequence")
        values = self.in_loss(name, weight, tokens)
        placed = place.startswith("loss")
        losses = values if placed else self.in_reward(name, weight, place)
        weights = self.sampler.exp()
        mean = weights @ values.detach()
        variance = (weights @ (values.detach() - mean).square()).item()
        found = self.moments(losses)
        gradient = self.name_gradient(found.gradient, tokens)
        value = self.name_value(mean)
        spread = found.gradient_variance.item()
        return Cell(place, sampler, weight, name, value, variance, gradient, spread)

    def name_value(self, mean: Tensor) -> str:
        """Which KL a mean is, or how far it is from KL(new || ref)."""
        weights = self.sampler.exp()
        right = (self.new.sum(-1).exp() @ (self.new - self.ref).sum(-1)).detach()
        at_old = (weights @ self.exact.sum(-1)).detach()
        if abs(mean - right) < SAME:
            return "KL"
        if abs(mean - at_old) < SAME:
            return "KL, prefixes of old"
        return f"{mean - right:+.3f}"

    def targets(self, tokens: bool) -> dict[str, Tensor]:
        """Gradients that have a name, each like the policy."""
        weights, new = self.sampler.exp(), self.new.sum(-1)
        right = self.slope(new.exp() @ (self.new - self.ref).sum(-1))
        own = self.slope(weights @ self.exact.sum(-1))
        old_new = self.slope(-(weights @ new))  # of KL(old || new)
        new_old = self.slope(new.exp() @ (self.new - self.old).sum(-1))
        reference = self.ref.sum(-1).exp()
        other = weights @ self.other.sum(-1) if tokens else -(reference @ new)
        other = self.slope(other)  # of KL(ref || new)
        return {
            "zero": torch.zeros_like(right),
            "right": right,
            "own token": own,
            "other direction": other,
            "right − other": right - other,
            "right − own token": right - own,
            "own token − other": own - other,
            "right − KL(new ‖ old)": right - new_old,
            "away from old": -old_new,
        }

    def slope(self, mean: Tensor) -> Tensor:
        """The gradient of a mean over all sequences, like the policy."""
        return torch.autograd.grad(mean, self.policy, retain_graph=True)[0]

    def name_gradient(self, gradient: Tensor, tokens: bool) -> str:
        """Which gradient this is, or its error relative to the right one."""
        targets = self.targets(tokens)
        for name, target in targets.items():
            if (gradient - target).abs().max() < SAME:
                return name
        error = (gradient - targets["right"]).norm() / targets["right"].norm()
        return f"{100 * error:.0f} % off"


def three_policies(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a policy, an older one near it, and a reference further away.

    Args:
        seed: Of a generator of its own; the global random state is left alone.

    Returns:
        New, old and reference, `(states, actions)` each, in float64: 4 actions and
        21 states, which is enough for 3 steps.
    """
    generator = torch.Generator().manual_seed(seed)
    new, step, ref = torch.randn(3, 21, 4, dtype=torch.float64, generator=generator)
    return 0.8 * new, 0.8 * new + 0.3 * step, 0.8 * ref


def cells(new: Tensor, old: Tensor, ref: Tensor, steps: int) -> list[Cell]:
    """Every cell of the grid, on-policy (samples of new) and off-policy (of old).

    To name what it finds, it reads values on the host.

    Args:
        new: Logits of the policy that trains, `(states, actions)`.
        old: Logits of the policy that samples off-policy, `(states, actions)`.
        ref: Logits of the reference, `(states, actions)`.
        steps: How many tokens a sequence has.

    Returns:
        The cells, in the order of `PLACES`, `SAMPLERS`, estimators and `WEIGHTS`.

    Raises:
        ValueError: If the shapes differ, or a tensor is an integer one.
    """
    check_tensors(2, new=new, old=old, ref=ref)
    labs = {"new": Lab(new, new, ref, steps), "old": Lab(new, old, ref, steps)}
    found = []
    for place, sampler in product(PLACES, SAMPLERS):
        for name, weight in product(PLACES[place], WEIGHTS):
            if place.startswith("loss") or weight != "sg(ρ)":
                found.append(labs[sampler].cell(place, weight, name, sampler))
    return found
