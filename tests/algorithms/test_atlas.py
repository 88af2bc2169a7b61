"""What the atlas says of an algorithm is what was read of it, and what its code does.

Two entries for each fact: the record in the front matter of a page, and the line of
`read.txt`, written from the papers and libraries that it names. Where a function takes
policies by name, its mean over the sampler is compared with the KL of the record, by
enumeration.
"""

import re
from pathlib import Path

import pytest
import torch
import yaml

import snippets
from snippets.algorithms.language_models.best_of_n import best_of_n
from snippets.algorithms.language_models.distillation import (
    forward_kl,
    sequence_advantages,
    token_advantages,
)
from snippets.algorithms.language_models.grpo import grpo_kl, unbiased_kl
from snippets.algorithms.language_models.rlhf import token_rewards
from snippets.algorithms.language_models.rloo import penalised_scores
from snippets.algorithms.regularised.optimal_policy import (
    regret,
    regularised_objective,
)
from snippets.algorithms.regularised.sac import sac_policy_loss
from snippets.algorithms.regularised.world_models import (
    balanced_kl,
    dynamics_kl,
    representation_kl,
)
from snippets.algorithms.trust_region.acer import kl_gradient
from snippets.algorithms.trust_region.entropy_bonus import actor_loss
from snippets.algorithms.trust_region.ppo_penalty import penalty_loss

DOCS = Path(snippets.__file__).parents[1] / "docs" / "algorithms"
ROWS = {
    row["algorithm"]: row
    for page in sorted(DOCS.rglob("*.md"))
    for row in yaml.safe_load(page.read_text("utf-8").split("---")[1]).get("atlas", [])
}
LINES = Path(__file__).with_name("read.txt").read_text("utf-8").splitlines()
CITED = dict(line.split(" | ", 1) for line in LINES if not line.startswith("#"))
WHO = (
    r"\b(old|new|student|corpus|data|buffer|compared|other|nobody|images|current|phase"
    r"|replayed|itself)\b"
)
NUMBER = r"(?<![A-Za-z\d.])\d[\d.,]*(?<![.,])"
SOURCE = r"\d{4}\.\d{4,5}|\b20\d\d\b|\d+\.\d+\.\d+|\b[0-9a-f]{7}\b"


def facts(row):
    """What a record says, without how it says it."""
    sign = re.match(r"[+-]?", row["sign"])[0] or re.match(r"\w+", row["sign"])[0]
    told = [
        f"{row['p']} {row['q']}",
        " ".join(re.findall(WHO, row["samples"])),
        re.match(r"\w+", row["estimate"])[0],
        row["enters"],
        sign,
        row["unit"],
        " ".join(re.findall(NUMBER, row["default"])) or "-",
        " ".join(re.findall(SOURCE, row["source"])) or "-",
        "read" if row["verified"] else "unread",
    ]
    return " | ".join(told)


@pytest.mark.parametrize("algorithm", CITED)
def test_a_record_says_what_was_read(algorithm):
    assert facts(ROWS[algorithm]) == CITED[algorithm]


def test_every_record_was_read():
    where = "tests/algorithms/read.txt holds a second entry of each record"
    assert set(ROWS) == set(CITED), where


def mutants(row):
    """Records with one fact changed."""
    yield row | {"p": row["q"], "q": row["p"]}
    flipped = {"+": "-", "-": "+"}.get(row["sign"][0])
    yield row | {"sign": f"{flipped or '-'}{row['sign'][1:]}"}
    if number := re.search(NUMBER, row["default"]):
        yield row | {"default": row["default"].replace(number[0], "77", 1)}
    if who := re.search(WHO, row["samples"]):
        other = "new" if who[0] != "new" else "old"
        yield row | {"samples": row["samples"].replace(who[0], other, 1)}
    yield row | {"enters": "reward" if row["enters"] != "reward" else "loss"}
    yield row | {"estimate": "k2" if row["estimate"][:2] != "k2" else "k1"}
    yield row | {"unit": "nats per token" if "token" not in row["unit"] else "bits"}
    if arxiv := re.search(r"\d{4}\.\d{4,5}", row["source"]):
        yield row | {"source": row["source"].replace(arxiv[0], "1234.56789")}


def test_nine_mutants_of_ten_are_found():
    made = [(name, x) for name, row in ROWS.items() for x in mutants(row)]
    found = [name for name, x in made if facts(x) != CITED.get(name)]
    assert len(found) >= 0.9 * len(made)


torch.manual_seed(0)
LOGITS = {
    role: torch.randn(4, dtype=torch.float64)
    for role in (
        "new", "old", "ref", "behaviour", "average", "teacher", "student", "prior",
        "posterior",
    )
}  # fmt: skip
LOGITS["uniform"] = torch.zeros(4, dtype=torch.float64)
REWARDS = torch.tensor([0.0, 1.0, 0.5, -0.3], dtype=torch.float64)
# One token each: a row for every token that can be drawn.
TOKENS = {role: x.log_softmax(-1)[:, None] for role, x in LOGITS.items()}
MASK = torch.ones(4, 1, dtype=torch.bool)


def kl(p, q):
    """The sum over the actions, as the definition has it."""
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return (p.exp() * (p - q)).sum()


def mean(role, values):
    """The mean of one number per token over who draws it."""
    return (TOKENS[role].exp() * values).sum()


def of_tokens(*roles):
    return {f"{role}_log_probs": TOKENS[role] for role in roles} | {"mask": MASK}


def of_logits(*roles):
    return {f"{role}_logits": LOGITS[role] for role in roles}


def tilted(ref):
    return (LOGITS[ref].log_softmax(-1) + REWARDS).log_softmax(-1)


def scored(function):
    zero = torch.zeros(4, dtype=torch.float64)
    found = function(scores=zero, **of_tokens("old", "ref"), beta=1.0)
    return -mean("old", found.reshape(4, 1))


# The KL that an algorithm's own function computes.
MEASURED = {
    "GRPO": lambda: mean("new", grpo_kl(**of_tokens("new", "ref"))),
    "DeepSeek-V3.2": lambda: mean("old", unbiased_kl(**of_tokens("new", "old", "ref"))),
    "RLHF with PPO": lambda: scored(token_rewards),
    "RLOO": lambda: scored(penalised_scores),
    "MiniLLM": lambda: -mean(
        "student", sequence_advantages(**of_tokens("student", "teacher"))
    ),
    "On-policy distillation": lambda: -mean(
        "student", token_advantages(**of_tokens("student", "teacher"))
    ),
    "Distillation, forward KL": lambda: forward_kl(
        **of_logits("teacher", "student"), temperature=1.0
    ),
    "KL-regularised optimum": lambda: -regularised_objective(
        **of_logits("new", "ref"), rewards=torch.zeros_like(REWARDS), beta=1.0
    ),
    "Regret of a policy": lambda: regret(
        **of_logits("new", "ref"), rewards=REWARDS, beta=1.0
    ),
    "SAC": lambda: (
        mean("new", sac_policy_loss(
            new_log_probs=TOKENS["new"], action_values=REWARDS[:, None], alpha=1.0
        ))
        + REWARDS.logsumexp(-1)
    ),
    "PPO, KL penalty": lambda: penalty_loss(
        **of_logits("new", "old"),
        actions=torch.tensor(0),
        advantages=torch.tensor(0.0, dtype=torch.float64),
        beta=1.0,
    ),
    "A2C, A3C entropy bonus": lambda: actor_loss(
        **of_logits("new"),
        actions=torch.tensor(0),
        advantages=torch.tensor(0.0, dtype=torch.float64),
        coefficient=1.0,
    ) + torch.tensor(4.0, dtype=torch.float64).log(),
    "DreamerV2": lambda: balanced_kl(
        posterior_logits=LOGITS["posterior"][None],
        prior_logits=LOGITS["prior"][None],
        balance=0.8,
    ),
    "DreamerV3, dynamics": lambda: dynamics_kl(
        posterior_logits=LOGITS["posterior"][None], prior_logits=LOGITS["prior"][None]
    ),
    "DreamerV3, representation": lambda: representation_kl(
        posterior_logits=LOGITS["posterior"][None], prior_logits=LOGITS["prior"][None]
    ),
    "Best-of-n": lambda: kl(
        best_of_n(ref_logits=LOGITS["ref"], rewards=REWARDS, n=3), LOGITS["ref"]
    ),
}  # fmt: skip


def policy(algorithm, role):
    """The logits of a role of a record."""
    if role == "optimum":
        return tilted("uniform" if algorithm == "SAC" else "ref")
    if role == "best-of-n":
        below = torch.stack(
            [(LOGITS["ref"].softmax(-1) * (r >= REWARDS)).sum() for r in REWARDS]
        )
        strictly = torch.stack(
            [(LOGITS["ref"].softmax(-1) * (r > REWARDS)).sum() for r in REWARDS]
        )
        return (below**3 - strictly**3).log()  # no two rewards are equal
    return LOGITS[role]


@pytest.mark.parametrize("algorithm", MEASURED)
def test_the_code_computes_the_kl_of_the_record(algorithm):
    row = ROWS[algorithm]
    p, q = (policy(algorithm, row[side]) for side in "pq")
    torch.testing.assert_close(MEASURED[algorithm](), kl(p, q))
    assert not torch.isclose(kl(p, q), kl(q, p), rtol=1e-3)  # a swap would show


def test_acer_projects_on_the_gradient_of_the_kl_of_its_record():
    row = ROWS["ACER"]
    new = LOGITS[row["q"]].clone().requires_grad_()
    (slope,) = torch.autograd.grad(kl(LOGITS[row["p"]], new), new)
    found = kl_gradient(**of_logits("average", "new"))
    torch.testing.assert_close(found, slope)
