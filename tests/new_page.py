"""Lays down a new page: its code, its words, its proof and its line in the navigation.

`python -m tests.new_page foundations/name`, or `make page ROOM=foundations NAME=name`.
What it writes passes every check but one, that another page's prose links to it.
"""

import re
import sys
from pathlib import Path

SNIPPET = '''"""The larger of the two directions of the KL between categoricals.

Source: an author, a title, a place, an equation.
"""

import torch
from torch import Tensor

from snippets.exact.categorical import kl_divergence_logits


def {name}_kl(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """The larger of KL(P || Q) and KL(Q || P) in nats, from logits.

    Never negative, and 0 for equal logits. Half precision is computed in float32 and
    rounded once.

    Args:
        logits_p: Logits of P, `(*batch, actions)`. Batches broadcast, actions never.
        logits_q: Logits of Q, `(*batch, actions)`.

    Returns:
        One number per row, `(*batch)`.

    Raises:
        ValueError: If the numbers of actions differ, or logits are integers.
    """
    # --8<-- [start:core]
    forward = kl_divergence_logits(logits_p, logits_q)
    reverse = kl_divergence_logits(logits_q, logits_p)
    return torch.maximum(forward, reverse)
    # --8<-- [end:core]
'''

ATLAS = """atlas:
  - algorithm: {title}
    p: new
    q: old
    samples: nobody
    estimate: exact
    enters: diagnostic
    sign: none
    unit: nats per state
    default: none
    source: "arXiv:0000.00000"
    verified: true
    code: {module}:{name}_kl
    test: test_is_the_larger_direction
"""

READ = (
    "{title} | new old | nobody | exact | diagnostic | none | nats per state | - "
    "| 0000.00000 | read\n"
)

PAGE = """---
description: What a reader finds on this page, in one sentence of 40 to 200 characters.
{atlas}---

# {title}

**What does the reader ask, in the reader's words?**
The answer in two sentences, before anything else. Then the smallest example, by hand,
the formula, and what each of its symbols says.

$$
\\max \\left( \\KL{{P}}{{Q}}, \\KL{{Q}}{{P}} \\right)
$$

$P$ and $Q$ are two policies over the same actions.

```python exec="off"
--8<-- "snippets/{path}.py:core"
```

A block is run when the page is built. Its claims are asserted, and it prints what the
reader should see:

```python
import torch

from snippets.{module} import {name}_kl

p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
print(f"{{{name}_kl(p, q):.3f}} nats")
torch.testing.assert_close({name}_kl(p, q), {name}_kl(q, p))
```

A sentence says what the output shows.

??? abstract "The whole file: snippets/{path}.py"

    ```python exec="off"
    --8<-- "snippets/{path}.py"
    ```
"""

TEST = '''"""`{name}_kl` is the larger of two directions."""

from hypothesis import given
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from snippets.{module} import {name}_kl
from tests.strategies import two_policies


@given(two_policies())
def test_is_the_larger_direction(policies):
    p, q = (Categorical(logits=logits) for logits in policies)
    expected = max(kl_divergence(p, q), kl_divergence(q, p))
    assert_close({name}_kl(*policies), expected)
'''


def title(path: str) -> str:
    """What the page is called at first."""
    return path.rpartition("/")[2].replace("_", " ").capitalize()


def files(path: str) -> dict[str, str]:
    """The text of each file of a page, by its place in the project."""
    room, _, name = path.rpartition("/")
    names = {
        "name": name,
        "path": path,
        "module": path.replace("/", "."),
        "title": title(path),
    }
    names["atlas"] = ATLAS.format(**names) if room.startswith("algorithms/") else ""
    return {
        f"snippets/{path}.py": SNIPPET.format(**names),
        f"docs/{path}.md": PAGE.format(**names),
        f"tests/{room}/test_{name}.py": TEST.format(**names),
    }


def with_page(settings: str, path: str) -> str:
    """The settings of the site with the page as the last of its section."""
    room, _, _ = path.rpartition("/")
    found = list(re.finditer(rf"^( +)- {room}/\w+\.md\n", settings, re.MULTILINE))
    if not found:
        raise SystemExit(f"mkdocs.yml has no section with pages of {room}/")
    end = found[-1].end()
    return f"{settings[:end]}{found[-1][1]}- {path}.md\n{settings[end:]}"


def main(path: str, root: Path) -> None:
    """Write the files, none of which may exist."""
    if not re.fullmatch(r"([a-z_]+/)+[a-z][a-z_0-9]*", path):
        raise SystemExit(f"{path!r} is no room and name in small letters")
    settings = root / "mkdocs.yml"
    listed = with_page(settings.read_text("utf-8"), path)
    for file, text in files(path).items():
        if not (root / file).parent.is_dir():
            raise SystemExit(f"there is no folder {Path(file).parent}")
        with (root / file).open("x", encoding="utf-8") as new:
            new.write(text)
        print(file)
    settings.write_text(listed, "utf-8")
    print("mkdocs.yml")
    if path.startswith("algorithms/"):
        with (root / "tests/algorithms/read.txt").open("a", encoding="utf-8") as read:
            read.write(READ.format(title=title(path)))
        print("tests/algorithms/read.txt")
    print(f"Yours to do: link docs/{path}.md from the prose of another page.")


if __name__ == "__main__":
    main(sys.argv[1], Path())
