"""What verl's KL options compute: the rows of the page on configurations.

Its package needs ray to be imported, so its functions are taken from its files.
"""

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from snippets.algorithms.language_models.rlhf import adapt_beta
from snippets.estimate.sequences import token_mean
from tests.peers.records import (
    MASK,
    OPTIONS,
    assert_clamped,
    assert_default,
    assert_estimate,
    default_at,
    estimate,
    file_of,
    functions_of,
    options_of,
    policies,
)

if find_spec("verl") is None:
    pytest.skip("verl is not installed", allow_module_level=True)
CORE = "verl/trainer/ppo/core_algos.py"
kl_penalty, _ = functions_of("verl", CORE, "kl_penalty", "kl_penalty_forward")
TYPES = {
    "verl-loss": "low_var_kl",
    "verl-loss-coef": "low_var_kl",
    "verl-k3-plus": "k3+",
    "verl-k1": "kl",
    "verl-k2": "mse",
}


@pytest.mark.parametrize("name", TYPES)
def test_value_and_gradient_are_those_of_the_record(name):
    def call(new, old, ref):  # noqa: ARG001
        return kl_penalty(new, ref, TYPES[name])

    assert_estimate(name, call)


def test_a_token_that_drifted_has_no_gradient_left():
    assert_clamped("verl-loss", lambda new, ref, **_: kl_penalty(new, ref, "k3"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("verl-reward", "kl"),
        ("verl-controller", "kl"),
        ("verl-reward-k3", "low_var_kl"),
    ],
)
def test_the_reward_has_less_by_the_estimate_of_the_record(name, kind):
    given, controller = policies(), Controller(0.3)
    rewards, metrics = penalised(given, controller, kind)
    expected = 0.3 * estimate(name, **given) * MASK
    assert_close(-rewards, expected.detach())
    # What the log shows, and the controller is fed: a mean per token.
    means = (expected / 0.3).sum(-1) / MASK.sum(-1)
    assert controller.fed == pytest.approx(means.mean().item())
    assert metrics["actor/reward_kl_penalty"] == controller.fed
    assert metrics["actor/reward_kl_penalty_coeff"] == 0.3


class Controller:
    """One that remembers what it is fed."""

    def __init__(self, value):
        self.value = value

    def update(self, current_kl, n_steps):
        self.fed, self.count = current_kl, n_steps


def penalised(given, controller, kind):
    """Rewards of completions without a score, and what verl logs."""
    (penalty,) = functions_of(
        "verl", "verl/trainer/ppo/ray_trainer.py", "apply_kl_penalty",
        core_algos=SimpleNamespace(kl_penalty=kl_penalty),
        masked_mean=lambda x, mask, axis: (x * mask).sum(axis) / mask.sum(axis),
    )  # fmt: skip

    class Batch(dict):
        batch_size = (4,)

    batch = Batch(
        response_mask=MASK,
        token_level_scores=torch.zeros(4, 5),
        old_log_probs=given["old"],
        ref_log_prob=given["ref"],
    )
    data, metrics = penalty(SimpleNamespace(batch=batch), controller, kind)
    return data.batch["token_level_rewards"], metrics


def test_the_controller_is_ours_with_a_target_per_token():
    (controller,) = functions_of("verl", CORE, "AdaptiveKLController", np=np)
    known = default_at("verl/trainer/config/ppo_trainer.yaml:algorithm.kl_ctrl")
    assert [known[x] for x in ("type", "target_kl", "horizon")] == ["fixed", 0.1, 10000]
    theirs = controller(known["kl_coef"], known["target_kl"], known["horizon"])
    for kl in (0.05, 0.1, 0.11, 6.0):
        before = theirs.value
        theirs.update(kl, 512)
        near = {"target": 0.1, "completions": 512, "horizon": 10_000}
        assert theirs.value == pytest.approx(adapt_beta(beta=before, kl=kl, **near))


def test_the_kl_loss_is_off_until_it_is_asked_for():
    actor = "verl/trainer/config/actor/actor.yaml"
    assert default_at(f"{actor}:use_kl_loss") is False
    algorithm = default_at("verl/trainer/config/ppo_trainer.yaml:algorithm")
    assert algorithm["use_kl_in_reward"] is False
    assert default_at(f"{actor}:loss_agg_mode") == "token-mean"
    assert default_at(f"{actor}:clip_ratio_c") == 3.0


def test_the_logged_step_kl_is_k1():
    # The two statements of its loss, on its inputs.
    text = file_of("verl", CORE)
    assert "negative_approx_kl = log_prob - old_log_prob" in text
    assert "ppo_kl = verl_F.masked_mean(-negative_approx_kl, response_mask)" in text
    given, option = policies(), OPTIONS["verl-ppo-kl"]
    found = token_mean(-(given["new"] - given["old"]), MASK)
    assert_close(found, token_mean(estimate(option["id"], **given), MASK))


@pytest.mark.parametrize("name", options_of("verl"))
def test_the_defaults_are_those_of_the_record(name):
    assert_default(name)
