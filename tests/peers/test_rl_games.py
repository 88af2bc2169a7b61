"""What rl_games' adaptive schedule reads: the statements of two pages."""

import pytest
import torch

from snippets.algorithms.trust_region.adaptive_rate import adapt_rate
from tests.peers.records import assert_default, assert_exact, gaussians, options_of

pytest.importorskip("rl_games")
from rl_games.algos_torch.torch_ext import policy_kl
from rl_games.common.schedulers import AdaptiveScheduler


def test_what_it_reads_is_almost_the_kl_of_the_record():
    given = gaussians()
    found = policy_kl(*given["new"], *given["old"])
    assert_exact("rl-games", found, given, rtol=1e-2, atol=0)


@pytest.mark.parametrize(("std", "kl"), [(0.1, -5e-4), (0.03, -5.5e-3), (0.01, -0.045)])
def test_its_kl_of_a_policy_with_itself_is_negative(std, kl):
    mean, same = torch.zeros(1, 1).double(), torch.full((1, 1), std).double()
    assert policy_kl(mean, same, mean, same).item() == pytest.approx(kl, rel=0.05)


@pytest.mark.parametrize("kl", [0.001, 0.0039, 0.005, 0.015, 0.017, 1.0])
@pytest.mark.parametrize("rate", [1e-6, 1e-3, 1e-2])
def test_its_schedule_is_ours_where_the_kl_is_positive(kl, rate):
    found, _ = AdaptiveScheduler().update(rate, 0.0, 0, 0, kl_dist=kl)
    assert found == adapt_rate(rate, kl, 0.008, 1e-6, 1e-2)


def test_a_negative_kl_raises_the_rate():
    found, _ = AdaptiveScheduler().update(1e-3, 0.0, 0, 0, kl_dist=-0.045)
    assert found == 1e-3 * 1.5


@pytest.mark.parametrize("name", options_of("rl_games"))
def test_the_defaults_are_those_of_the_record(name):
    assert_default(name)
