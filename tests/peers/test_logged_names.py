"""The names under which libraries log a KL still stand in their sources."""

from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/practice/symptoms.md"
NAMES = {
    "trl/trainer/grpo_trainer.py": [
        '"kl"', '"sampling/sampling_logp_difference/mean"', '"clip_ratio/region_mean"',
        '"frac_reward_zero_std"',
    ],
    "trl/trainer/rloo_trainer.py": ['"kl"'],
    "trl/experimental/online_dpo/online_dpo_trainer.py": ['"objective/kl"', "mean_kl"],
    "stable_baselines3/ppo/ppo.py": ['"train/approx_kl"', '"train/clip_fraction"'],
    "sb3_contrib/trpo/trpo.py": ['"train/kl_divergence_loss"'],
    "skrl/agents/torch/ppo/ppo.py": ['"Learning / Learning rate"'],
}  # fmt: skip


def source(path):
    package, _, inside = path.partition("/")
    (folder,) = find_spec(package).submodule_search_locations
    return (Path(folder) / inside).read_text("utf-8")


@pytest.mark.parametrize("path", NAMES)
def test_a_name_stands_in_the_source(path):
    text = source(path)
    for name in NAMES[path]:
        assert name in text


@pytest.mark.parametrize(
    "name", [n.strip('"') for names in NAMES.values() for n in names]
)
def test_a_name_that_is_checked_is_on_a_page(name):
    pages = [PAGE, PAGE.with_name("growing.md")]
    stem = name.removesuffix("/mean")
    assert any(stem in page.read_text("utf-8") for page in pages)


def test_skrl_and_rloo_do_with_their_kl_what_the_page_says():
    skrl = source("skrl/agents/torch/ppo/ppo.py")
    logged = [line for line in skrl.splitlines() if "track_data" in line]
    assert logged
    assert not any("kl" in line.lower() for line in logged)
    rloo = source("trl/trainer/rloo_trainer.py")
    assert "rewards = rewards - self.beta * kl" in rloo  # of sums over tokens
    assert "kl_stats[0] / kl_stats[1]" in rloo  # a mean over tokens
