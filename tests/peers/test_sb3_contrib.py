"""What sb3-contrib's TRPO constrains: the statements of the page on TRPO."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence
from torch.testing import assert_close

from snippets.exact.gaussian import kl_gaussian
from tests.peers.records import assert_default, assert_exact, gaussians, options_of

pytest.importorskip("sb3_contrib", minversion="2.9")
import gymnasium
import numpy as np
from sb3_contrib import TRPO
from sb3_contrib.trpo import trpo
from stable_baselines3.common import distributions

LIMIT = 0.01


class Reach(gymnasium.Env):
    """One step, an observation of noise, a reward for an action near one."""

    def __init__(self, dims):
        self.observation_space = gymnasium.spaces.Box(-9, 9, (3,), np.float32)
        self.action_space = gymnasium.spaces.Box(-9, 9, (dims,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        return self.np_random.normal(size=3).astype(np.float32), {}

    def step(self, action):
        reward = -float(np.square(action - 1).sum())
        return np.zeros(3, np.float32), reward, True, False, {}


def update(dims, monkeypatch):
    """Train once; the joint KL(old || new) of the update, and every call."""
    calls = []

    def watched(p, q):
        value = distributions.kl_divergence(p, q)
        flows = [x.distribution.mean.requires_grad for x in (p, q)]
        calls.append((p, q, flows))
        return value

    monkeypatch.setattr(trpo, "kl_divergence", watched)
    model = TRPO("MlpPolicy", Reach(dims), n_steps=512, seed=0, device="cpu")
    model.learn(512)
    new, old, _ = calls[-1]
    p = Independent(old.distribution, 1)
    q = Independent(new.distribution, 1)
    return kl_divergence(p, q).mean().item(), calls


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_gaussian_divergence_keeps_its_dimensions():
    p, q = (distributions.DiagGaussianDistribution(8) for _ in "pq")
    log_std = torch.zeros(8)
    p.proba_distribution(torch.zeros(4, 8), log_std)
    q.proba_distribution(torch.ones(4, 8), log_std)
    each = distributions.kl_divergence(p, q)
    joint = kl_gaussian(
        torch.zeros(4, 8), log_std.exp(), torch.ones(4, 8), log_std.exp()
    )
    assert each.shape == (4, 8)
    assert_close(each.mean(), joint.mean() / 8)
    assert isinstance(p.distribution, Normal)


@pytest.mark.parametrize("dims", [1, 8])
def test_the_joint_divergence_grows_with_the_number_of_dimensions(dims, monkeypatch):
    joint, _ = update(dims, monkeypatch)
    # The line search takes the first length that passes, so close to the limit;
    # the other direction differs from it in the third order.
    assert 0.4 * dims * LIMIT < joint < 1.2 * dims * LIMIT


def test_the_new_policy_comes_first(monkeypatch):
    _, calls = update(2, monkeypatch)
    _, _, flows = calls[0]  # the one that is differentiated
    assert flows == [True, False]


def test_the_limit_is_a_hundredth():
    assert TRPO("MlpPolicy", Reach(1), device="cpu").target_kl == LIMIT


def test_what_it_limits_is_that_of_the_record(monkeypatch):
    _, calls = update(2, monkeypatch)
    given, actors = gaussians(), {}
    for name, (mean, std) in given.items():
        actors[name] = distributions.DiagGaussianDistribution(3)
        actors[name].proba_distribution(mean, std.log())
    # It passes the policy whose gradient flows first.
    order = ("new", "old") if calls[0][2][0] else ("old", "new")
    found = distributions.kl_divergence(*(actors[name] for name in order)).mean()
    assert_exact("sb3-trpo", found, given)


@pytest.mark.parametrize("name", options_of("sb3-contrib"))
def test_the_defaults_are_those_of_the_record(name):
    assert_default(name)
