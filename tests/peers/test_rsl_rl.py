"""What rsl_rl's adaptive schedule reads: the statements of two pages."""

import pytest
import torch

from snippets.algorithms.trust_region.adaptive_rate import adapt_rate
from tests.peers.records import (
    OPTIONS,
    assert_default,
    assert_exact,
    gaussians,
    options_of,
)

pytest.importorskip("rsl_rl")
import inspect

from rsl_rl.algorithms import PPO
from rsl_rl.modules.distribution import GaussianDistribution


@pytest.fixture(autouse=True)
def arguments_are_checked_again():
    """It turns the checks of torch's distributions off for everyone."""
    yield
    torch.distributions.Distribution.set_default_validate_args(True)


def test_what_it_reads_is_the_exact_kl():
    given = gaussians()
    found = GaussianDistribution(3).kl_divergence(given["old"], given["new"])
    assert_exact("rsl-rl", found.mean(), given)


def test_a_policy_has_no_distance_from_itself():
    mean, std = torch.zeros(1, 8), torch.full((1, 8), 0.01)
    found = GaussianDistribution(8).kl_divergence((mean, std), (mean, std))
    assert (found == 0).all()


def test_its_update_asks_with_the_old_policy_first():
    source = inspect.getsource(PPO.update)
    asked = "get_kl_divergence(batch.old_distribution_params, distribution_params)"
    assert asked in source
    assert OPTIONS["rsl-rl"]["p"] == "old"


@pytest.mark.parametrize("kl", [0.0, 0.001, 0.0049, 0.01, 0.0199, 0.021, 1.0])
@pytest.mark.parametrize("rate", [1e-5, 1e-3, 1e-2])
def test_its_schedule_is_ours(kl, rate):
    rule = inspect.getsource(PPO.update)
    start = rule.index("if kl_mean > self.desired_kl * 2.0:")
    end = rule.index("# Update the learning rate for all GPUs")
    state = PPO.__new__(PPO)
    state.desired_kl, state.learning_rate = 0.01, rate
    exec(inspect.cleandoc(rule[start:end]), {"self": state, "kl_mean": kl})
    assert state.learning_rate == adapt_rate(rate, kl, 0.01, 1e-5, 1e-2)


@pytest.mark.parametrize("name", options_of("rsl_rl"))
def test_the_defaults_are_those_of_the_record(name):
    assert_default(name)
    assert inspect.signature(PPO).parameters["schedule"].default == "adaptive"
