"""The routing page leads everywhere, and has the names that people search for."""

import re
from pathlib import Path

import pytest

from snippets.estimate.estimators import k1, k3
from snippets.lab.gallery import trainer_logs
from snippets.practice.doctor import mean_and_cluster_error

DOCS = Path(__file__).parents[2] / "docs/practice"
PAGE = (DOCS / "symptoms.md").read_text("utf-8")
NAMES = [
    "objective/kl", "actor/ppo_kl", "actor/kl_loss", "kl_loss_coef", "low_var_kl",
    "kl_coef", "mean_kl", "train/approx_kl", "clip_fraction", "losses/old_approx_kl",
    "mean_kl_loss", "rollout_corr/kl", "vllm_kl", "Loss/learning_rate",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_stands_in_logs_is_explained_in_the_text(name):
    assert f"`{name}`" in PAGE.split("---\n", 2)[2]


def test_every_symptom_of_the_other_pages_has_a_row():
    rows = re.findall(r"\((\w+)\.md#([\w-]+)\)", PAGE)
    for page in ("negative_or_zero", "growing", "counting"):
        text = (DOCS / f"{page}.md").read_text("utf-8")
        heads = [
            h
            for h in re.findall(r"^## (.+)$", text, re.MULTILINE)
            if "question" not in h
        ]
        slugs = {re.sub(r"[^\w]+", "-", h.lower()).strip("-") for h in heads}
        assert slugs == {anchor for name, anchor in rows if name == page}


def test_the_three_numbers_tell_a_healthy_batch_from_another_samplers():
    for fault, wrong in (("healthy", False), ("reference samples", True)):
        *_, log = trainer_logs(fault, runs=20, updates=21, passes=1, seed=3)
        far = 0
        for rows in (log.of(run) for run in range(20)):
            old, ref = rows["old_log_probs"], rows["ref_log_probs"]
            mean, error = mean_and_cluster_error((ref - old).exp(), rows["mask"])
            far += bool(abs(mean - 1) > 4 * error)
            assert mean_and_cluster_error(k3(old, ref), rows["mask"]).mean > 0
            if wrong:
                assert mean_and_cluster_error(k1(old, ref), rows["mask"]).mean < 0
        assert (far >= 18) if wrong else (far == 0)
