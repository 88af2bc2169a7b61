"""How skrl adapts its learning rate and stops: the statements of two pages."""

import ast
import inspect
import textwrap

import pytest
import torch
from torch.distributions import Independent, Normal
from torch.distributions import kl_divergence as exact
from torch.testing import assert_close

from snippets.algorithms.trust_region.adaptive_rate import adapt_rate
from tests.peers.records import (
    MASK,
    assert_default,
    assert_estimate,
    assert_exact,
    assigned,
    gaussians,
    options_of,
)

pytest.importorskip("skrl", minversion="2.1")
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.agents.torch.trpo import TRPO_CFG
from skrl.agents.torch.trpo.trpo import kl_divergence
from skrl.resources.schedulers.torch import KLAdaptiveLR


def next_rate(rate, divergence):
    """The learning rate after skrl's scheduler has seen a KL."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler = KLAdaptiveLR(optimiser)
    scheduler.step(divergence)
    return optimiser.param_groups[0]["lr"]


@pytest.mark.parametrize("divergence", [0.001, 0.0039, 0.005, 0.015, 0.017, 1.0])
@pytest.mark.parametrize("rate", [1e-6, 1e-3, 1e-2])
def test_the_schedule_is_ours_where_something_moved(rate, divergence):
    assert next_rate(rate, divergence) == adapt_rate(
        rate, divergence, 0.008, 1e-6, 1e-2
    )


@pytest.mark.parametrize("divergence", [0.0, -0.045])
def test_a_divergence_of_nothing_raises_the_rate(divergence):
    assert next_rate(1e-3, divergence) == 1e-3 * 1.5
    assert adapt_rate(1e-3, divergence, 0.008, 1e-6, 1e-2) == 1e-3


class Fixed:
    """A policy with one mean and deviation."""

    def __init__(self, mean, log_std):
        self.outputs = {"mean_actions": mean, "log_std": log_std}

    def act(self, inputs, role):  # noqa: ARG002
        return None, self.outputs


def test_trpo_sums_over_dimensions_with_the_first_policy_as_p():
    torch.manual_seed(0)
    mean, log_std, other, other_log_std = torch.randn(4, 5, 8)
    got = kl_divergence(policy_1=Fixed(mean, log_std),
                        policy_2=Fixed(other, other_log_std),
                        observations=None, states=None)  # fmt: skip
    p, q = Normal(mean, log_std.exp()), Normal(other, other_log_std.exp())
    assert_close(got, exact(Independent(p, 1), Independent(q, 1)).mean())


def test_defaults():
    assert TRPO_CFG().max_kl_divergence == 0.01
    assert PPO_CFG().kl_threshold == 0


def test_the_stop_leaves_one_epoch_and_not_the_update():
    tree = ast.parse(textwrap.dedent(inspect.getsource(PPO.update)))
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For)]
    epochs = next(node for node in loops if ast.unparse(node.target) == "epoch")
    inner = next(node for node in epochs.body if isinstance(node, ast.For))
    stops = [node for node in ast.walk(epochs) if isinstance(node, ast.Break)]
    assert stops == [node for node in ast.walk(inner) if isinstance(node, ast.Break)]
    assert len(stops) == 1


def test_the_early_stop_reads_the_estimate_of_the_record():
    def call(new, old, ref):  # noqa: ARG001
        seen = {"next_log_prob": new[MASK].detach(), "sampled_log_prob": old[MASK]}
        return assigned(PPO.update, "ratio", "kl_divergence", **seen)["kl_divergence"]

    assert_estimate("skrl-ppo", call)


def test_trpo_is_that_of_the_record():
    given = gaussians()
    old, new = (Fixed(mean, std.log()) for mean, std in given.values())
    found = kl_divergence(policy_1=old, policy_2=new, observations=None, states=None)
    assert_exact("skrl-trpo", found, given)


@pytest.mark.parametrize("name", options_of("skrl"))
def test_the_defaults_are_those_of_the_record(name):
    assert_default(name)
