"""The same three torch pages in three generators, in one run.

Installs the others into an environment of its own under `.cache/`; they are no
dependencies of this project. Quarto and Jupyter Book 2 fetch parts of themselves from
the network while they install or build, and are not measured.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from bench_build import BUILD, ROOT, medians, seconds, table

OTHERS = ["jupyter-book==1.0.4.post1", "sphinx==7.4.7", "torch==2.13.0"]
MYST = """jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  name: python3
  display_name: Python 3
"""
CELLS = {
    "closed_form": """import torch
from torch.distributions import Normal, kl_divergence

p, q = Normal(torch.zeros(3), 1.0), Normal(torch.ones(3), 2.0)
print(kl_divergence(p, q))""",
    "monte_carlo": """import torch
from torch.distributions import Normal

torch.manual_seed(0)
x = torch.randn(5_000_000)
ratio = Normal(0.0, 1.0).log_prob(x) - Normal(1.0, 2.0).log_prob(x)
print(round(ratio.mean().item(), 3))""",
    "fit": """import torch

torch.manual_seed(0)
target = torch.tensor([0.7, 0.2, 0.1])
logits = torch.zeros(3, requires_grad=True)
optimiser = torch.optim.Adam([logits], lr=0.1)
for _ in range(2000):
    optimiser.zero_grad()
    (target * (target.log() - logits.log_softmax(-1))).sum().backward()
    optimiser.step()
print(logits.softmax(-1))""",
}


def our_site(folder: Path) -> Path:
    """The pages as this project writes them."""
    (folder / "docs").mkdir(parents=True)
    (folder / "snippets").mkdir()
    for shared in ("_theme", "assets"):
        (folder / "docs" / shared).symlink_to(ROOT / "docs" / shared)
    nav = ""
    for name, code in CELLS.items():
        front = (
            "---\ndescription: A page of a benchmark, with one block of torch.\n---\n"
        )
        page = f"{front}# {name}\n\n```python\n{code}\n```\n"
        file = "index" if not nav else name
        (folder / "docs" / f"{file}.md").write_text(page, "utf-8")
        nav += f"  - {file}.md\n"
    settings, _ = (ROOT / "mkdocs.yml").read_text("utf-8").split("\nnav:")
    (folder / "mkdocs.yml").write_text(f"{settings}\nnav:\n{nav}", "utf-8")
    return folder


def book(folder: Path) -> Path:
    """The pages as MyST notebooks, with jupyter-cache."""
    folder.mkdir()
    for name, code in CELLS.items():
        page = f"---\n{MYST}---\n# {name}\n\n```{{code-cell}} ipython3\n"
        (folder / f"{name}.md").write_text(f"{page}{code}\n```\n", "utf-8")
    names = list(CELLS)
    toc = "".join(f"  - file: {name}\n" for name in names[1:])
    toc = f"format: jb-book\nroot: {names[0]}\nchapters:\n{toc}"
    (folder / "_toc.yml").write_text(toc, "utf-8")
    config = "title: Bench\nexecute:\n  execute_notebooks: cache\n"
    (folder / "_config.yml").write_text(config, "utf-8")
    return folder


def environment() -> Path:
    """Where the others are installed."""
    folder = ROOT / ".cache" / "generators"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        install = [folder / "bin/pip", "install", "--quiet", *OTHERS]
        subprocess.run(install, check=True, stderr=subprocess.DEVNULL)
        (folder / "ready").touch()
    return folder / "bin"


def main() -> None:
    """Measure all of them, taking turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    others = environment()
    with tempfile.TemporaryDirectory() as scratch:
        ours, theirs = our_site(Path(scratch, "ours")), book(Path(scratch, "book"))
        zensical = our_site(Path(scratch, "zensical"))
        jupyter = [str(others / "jupyter-book"), "build", "."]
        zen = [sys.executable, "-m", "zensical", "build"]

        def forget(folder: Path, *names: str) -> None:
            subprocess.run(["rm", "-rf", *names], cwd=folder, check=True)

        def edit(folder: Path, file: str) -> None:
            with (folder / file).open("a") as page:
                page.write("\nMore prose.\n")

        def cold_book() -> float:
            forget(theirs, "_build")
            return seconds(jupyter, theirs)

        def cold_zensical() -> float:
            forget(zensical, ".cache", "site")
            return seconds([*zen, "-c"], zensical)

        def edited(folder: Path, file: str, command: list[str]) -> Callable[[], float]:
            def run() -> float:
                edit(folder, file)
                return seconds(command, folder)

            return run

        cases = {
            "ours, cold": lambda: seconds(BUILD, ours, KL_CACHE="off"),
            "zensical, cold": cold_zensical,
            "book, cold": cold_book,
        }
        cold = medians(runs, cases)
        seconds(BUILD, ours)
        warm = medians(
            runs,
            {
                "ours": lambda: seconds(BUILD, ours),
                "zensical": lambda: seconds(zen, zensical),
                "book": lambda: seconds(jupyter, theirs),
            },
        )
        prose = medians(
            runs,
            {
                "ours": edited(ours, "docs/fit.md", BUILD),
                "zensical": edited(zensical, "docs/fit.md", zen),
                "book": edited(theirs, "fit.md", jupyter),
            },
        )
        block = statistics.median(
            seconds([sys.executable, "-c", "\n".join(CELLS.values())], ours)
            for _ in range(runs)
        )
    names = {
        "ours": f"this project, MkDocs {version('mkdocs')}",
        "zensical": f"this project, Zensical {version('zensical')}",
        "book": "Jupyter Book 1.0.4.post1 (Sphinx 7.4.7, MyST-NB, jupyter-cache)",
    }
    print("# The same three torch pages in several generators\n")
    print(f"The cells alone, as one script: {block:.2f} s. Seconds below, medians.\n")
    rows = [
        [label, f"{cold[f'{key}, cold']:.2f}", f"{warm[key]:.2f}", f"{prose[key]:.2f}"]
        for key, label in names.items()
    ]
    rows.append(["Quarto", "does not install without the network", "", ""])
    rows.append(["Jupyter Book 2", "does not build without the network", "", ""])
    table(["generator", "cold", "nothing changed", "prose edited"], rows)


if __name__ == "__main__":
    main()
