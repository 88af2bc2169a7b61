"""What Stable-Baselines3 estimates and stops on: the statements of the pages."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from snippets.estimate.estimators import k3
from tests.peers.records import (
    MASK,
    assert_default,
    assert_estimate,
    assigned,
    options_of,
)

pytest.importorskip("stable_baselines3", minversion="2.9")
import gymnasium
import numpy as np
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common import distributions


class Reach(gymnasium.Env):
    """One step, an observation of noise, a reward for an action near one."""

    observation_space = gymnasium.spaces.Box(-9, 9, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        return self.np_random.normal(size=3).astype(np.float32), {}

    def step(self, action):
        reward = -float(np.square(action - 1).sum())
        return np.zeros(3, np.float32), reward, True, False, {}


def train(target):
    """One update; k3 of each minibatch in order, the steps taken, the logged KL."""
    model = PPO("MlpPolicy", Reach(), n_steps=256, batch_size=64, n_epochs=2, seed=0,
                learning_rate=1e-2, target_kl=target, device="cpu")  # fmt: skip
    seen, steps = [], []
    evaluate, step = model.policy.evaluate_actions, model.policy.optimizer.step

    def watched(observations, actions):
        values, log_prob, entropy = evaluate(observations, actions)
        buffer = model.rollout_buffer
        same = (buffer.observations[:, None] == observations.numpy()).all(-1)
        old = torch.as_tensor(buffer.log_probs[same.argmax(0)]).flatten()
        seen.append(k3(old, log_prob.detach()).mean().item())
        return values, log_prob, entropy

    model.policy.evaluate_actions = watched
    model.policy.optimizer.step = lambda *a, **k: (steps.append(1), step(*a, **k))
    model.learn(256)
    return seen, len(steps), model.logger.name_to_value["train/approx_kl"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_logged_estimate_is_k3_of_the_last_epoch():
    seen, steps, logged = train(None)
    assert len(seen) == steps == 8
    # Single precision, in a form that loses digits.
    assert logged == pytest.approx(np.mean(seen[4:]), rel=1e-3, abs=1e-6)


def test_it_stops_before_the_step_at_one_and_a_half_times_the_target():
    seen, _, _ = train(None)
    third = seen[2]
    assert third > max(seen[:2])
    _, over, _ = train(third / 1.5 * 0.98)
    _, under, _ = train(third / 1.5 * 1.02)
    assert over == 2  # the third minibatch was seen, and not stepped on
    assert under > 2


def test_neither_target_nor_bonus_is_on_by_default():
    for algorithm in (PPO, A2C):
        assert inspect.signature(algorithm).parameters["ent_coef"].default == 0.0
    assert inspect.signature(PPO).parameters["target_kl"].default is None


def test_a_squashed_gaussian_has_no_entropy_and_its_substitute_no_gradient():
    torch.manual_seed(0)
    squashed = distributions.SquashedDiagGaussianDistribution(1)
    log_std = torch.zeros(100_000, 1, requires_grad=True)
    squashed.proba_distribution(torch.zeros(100_000, 1), log_std)
    assert squashed.entropy() is None
    with torch.no_grad():
        actions = squashed.sample().clone()
    substitute = -squashed.log_prob(actions)
    (gradient,) = torch.autograd.grad(substitute.sum(), log_std)
    # d(-log p)/d(log std) = 1 - z², of mean 0 and variance 2: five standard errors.
    # The Gaussian's entropy would have the gradient 1.
    assert gradient.mean().abs() < 5 * (2 / 100_000) ** 0.5
    z = torch.atanh(actions)
    # atanh of single-precision numbers near 1 loses digits.
    middle = z.abs() < 3
    assert_close(gradient[middle], (1 - z**2)[middle], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("dims", [1, 3])
def test_sacs_target_is_minus_the_dimensions_and_its_temperature_starts_at_one(dims):
    class Still(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (2,))
        action_space = gymnasium.spaces.Box(-1, 1, (dims,))

    model = SAC("MlpPolicy", Still(), buffer_size=10, device="cpu")
    assert model.target_entropy == -dims
    assert model.log_ent_coef.exp().item() == 1


def test_the_early_stop_reads_the_estimate_of_the_record():
    def call(new, old, ref):  # noqa: ARG001
        batch = SimpleNamespace(old_log_prob=old[MASK])
        seen = {"log_prob": new[MASK].detach(), "rollout_data": batch}
        found = assigned(PPO.train, "log_ratio", "approx_kl_div", **seen)
        return torch.as_tensor(found["approx_kl_div"])

    assert_estimate("sb3-ppo", call)


@pytest.mark.parametrize("name", options_of("Stable-Baselines3"))
def test_the_defaults_are_those_of_the_record(name):
    assert_default(name)
