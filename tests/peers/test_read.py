"""Arithmetic that was read in libraries which are not installed, on the same inputs.

Each function says in our words what stands at the path and lines of the record.
"""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from tests.peers.records import (
    assert_clamped,
    assert_estimate,
    assert_exact,
    gaussians,
)


def openrlhf(a, b, kind, sampler=None):
    """The clamp comes after the estimator; k3's log-ratio is bounded before exp."""
    gap = a - b
    value = {"k1": gap, "k3": (-gap.clamp(min=-10)).exp() - 1 + gap.clamp(min=-10)}
    value = value[kind].clamp(-10, 10)
    if sampler is None:
        return value
    pull = (a - sampler).exp().clamp(max=10).detach() * gap**2 / 2
    return value.detach() + pull - pull.detach()


def nemo(a, b, weight=1.0):
    """The log-ratio is clamped at 20, the weight comes before the clamp at 10."""
    gap = (b - a).clamp(-20, 20)
    return (weight * (gap.exp() - 1 - gap)).clamp(-10, 10)


def open_instruct(a, b, sampler, index):
    """Four estimators of a log-ratio that is clamped at 40."""
    gap = (a - b).clamp(-40, 40)
    ratio = (a - sampler).exp()
    return (gap, gap**2 / 2, torch.expm1(-gap) + gap, ratio * gap)[index]


def slime(a, b, kind, weight=1.0):
    """Only low_var_kl is clamped, after the weight."""
    gap = a - b
    value = {"k1": gap, "low_var_kl": (-gap).exp() - 1 + gap}[kind] * weight
    return value.clamp(-10, 10) if kind == "low_var_kl" else value


READ = {
    "openrlhf-reward": lambda new, old, ref: openrlhf(old, ref, "k1"),  # noqa: ARG005
    "openrlhf-loss": lambda new, old, ref: openrlhf(new, ref, "k3"),  # noqa: ARG005
    "openrlhf-unbiased": lambda new, old, ref: openrlhf(new, ref, "k3", old),
    "nemo-loss": lambda new, old, ref: nemo(  # noqa: ARG005
        new, ref, (new - new.detach()).exp()
    ),
    "nemo-reward": lambda new, old, ref: nemo(old, ref),  # noqa: ARG005
    "open-instruct-k3": lambda new, old, ref: open_instruct(new, ref, old, 2),
    "open-instruct-weighted": lambda new, old, ref: open_instruct(new, ref, old, 3),
    "slime-k1": lambda new, old, ref: slime(new, ref, "k1"),  # noqa: ARG005
    "slime-unbiased": lambda new, old, ref: slime(
        new, ref, "low_var_kl", (new - old).exp()
    ),
    "slime-reward": lambda new, old, ref: slime(old, ref, "k1"),  # noqa: ARG005
    "cleanrl-ppo": lambda new, old, ref: (  # noqa: ARG005
        ((new - old).exp() - 1) - (new - old)
    ),
}


@pytest.mark.parametrize("name", READ)
def test_value_and_gradient_are_those_of_the_record(name):
    assert_estimate(name, READ[name])


@pytest.mark.parametrize("name", ["openrlhf-loss", "nemo-loss"])
def test_a_token_that_drifted_has_no_gradient_left(name):
    assert_clamped(name, READ[name])


def test_rllib_has_the_exact_kl_of_the_record():
    given = gaussians()
    prev, curr = (Independent(Normal(*given[name]), 1) for name in ("old", "new"))
    assert_exact("rllib-ppo", kl_divergence(prev, curr).mean(), given)
