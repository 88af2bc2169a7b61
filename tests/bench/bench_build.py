"""How long the site takes to build, against the floor of what it has to do.

Prints Markdown tables. Builds are measured in processor time, theirs and that of their
pages' processes, so that what else the machine does counts little; medians of several
runs, ratios within this run. From saving to seeing is measured by the clock.
"""

import argparse
import functools
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

from extensions.cache import closure
from extensions.pages import includes, read_blocks

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
BUILD = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--no-strict"]

# All blocks of all pages in one process, a fresh namespace a page, nothing rendered.
FLOOR = """
import contextlib, io
from pathlib import Path
from extensions.pages import includes, read_blocks
from extensions import sessions  # one thread, as in a build

for page in sorted(Path("docs").rglob("*.md")):
    names = {"__name__": "page"}
    for block in read_blocks(page.read_text(), str(page), includes(Path())):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block.source, str(page), "exec"), names)
"""


def seconds(command: list[str], folder: Path, **environment: str) -> float:
    """The processor time of a command and of the processes that it started."""
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        command,
        cwd=folder,
        env=ENVIRONMENT | environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime


def medians(runs: int, cases: dict[str, Callable[[], float]]) -> dict[str, float]:
    """The median of each case; the cases take turns, so that they share the weather."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(runs):
        for name, case in cases.items():
            times[name].append(case())
    return {name: statistics.median(values) for name, values in times.items()}


def copy_of_the_site(folder: Path) -> Path:
    """This project's pages and code, to build beside it."""
    for part in ("docs", "snippets"):
        shutil.copytree(ROOT / part, folder / part)
    for file in ("mkdocs.yml", "CITATION.cff"):
        shutil.copy(ROOT / file, folder)
    return folder


def without_execution(folder: Path) -> Path:
    """The same site, with every block shown and none run."""
    for page in (folder / "docs").rglob("*.md"):
        text = page.read_text("utf-8")
        page.write_text(text.replace("```python", '```python exec="off"'), "utf-8")
    return folder


def table(header: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    for row in [header, ["---"] * len(header), *rows]:
        print(f"| {' | '.join(row)} |")
    print()


def the_whole_site(runs: int, scratch: Path) -> None:
    """Cold and warm, against what has to be done in any case."""
    site = copy_of_the_site(scratch / "site")
    shown = without_execution(copy_of_the_site(scratch / "shown"))
    seconds(BUILD, site)  # fills the cache
    times = medians(
        runs,
        {
            "blocks": lambda: seconds([sys.executable, "-c", FLOOR], site),
            "shown": lambda: seconds(BUILD, shown),
            "cold": lambda: seconds(BUILD, site, KL_CACHE="off"),
            "warm": lambda: seconds(BUILD, site),
        },
    )
    floor = times["blocks"] + times["shown"]
    pages = list((site / "docs").rglob("*.md"))
    blocks = sum(
        len(read_blocks(page.read_text("utf-8"), page.name, includes(ROOT)))
        for page in pages
    )
    print(f"## The whole site: {len(pages)} pages, {blocks} blocks\n")
    table(
        ["build", "seconds", "against", "ratio", "target"],
        [
            ["blocks as plain Python", f"{times['blocks']:.2f}", "", "", ""],
            ["execution off", f"{times['shown']:.2f}", "", "", ""],
            ["cold", f"{times['cold']:.2f}", "sum of the two above",
             f"{times['cold'] / floor:.2f}", "1.15"],
            ["warm, nothing changed", f"{times['warm']:.2f}", "execution off",
             f"{times['warm'] / times['shown']:.2f}", "1.10"],
        ],
    )  # fmt: skip


def edited_snippet(runs: int, scratch: Path) -> None:
    """A comment in one snippet, against the pages that use it when they stand alone."""
    site = copy_of_the_site(scratch / "snippet")
    file = site / "snippets/algorithms/regularised/mpo.py"
    module = "algorithms.regularised.mpo"
    seconds(BUILD, site)  # fills the cache
    warm = statistics.median(seconds(BUILD, site) for _ in range(runs))
    uses = []
    for page in sorted((site / "docs").rglob("*.md")):
        blocks = read_blocks(page.read_text("utf-8"), page.name, includes(ROOT))
        needed = closure("\n".join(block.source for block in blocks))
        if f"snippets/{module.replace('.', '/')}.py" in needed:
            uses.append(page.relative_to(site).as_posix())
    floor = FLOOR.replace('sorted(Path("docs").rglob("*.md"))', f"map(Path, {uses})")

    def edit() -> float:
        with file.open("a") as text:
            text.write("# A comment.\n")
        return seconds(BUILD, site)

    cases = {
        "edited": edit,
        "alone": lambda: seconds([sys.executable, "-c", floor], site),
    }
    times = medians(runs, cases)
    ratio = times["edited"] / (times["alone"] + warm)
    print(f"## A comment edited in `{module}`, which {len(uses)} pages use\n")
    table(
        ["build", "seconds", "ratio", "target"],
        [
            ["their blocks as plain Python", f"{times['alone']:.2f}", "", ""],
            ["warm, nothing changed", f"{warm:.2f}", "", ""],
            [
                "after the edit, against both",
                f"{times['edited']:.2f}",
                f"{ratio:.2f}",
                "1.30",
            ],
        ],
    )


def synthetic(folder: Path, pages: int) -> Path:
    """A site of many small pages with three blocks each."""
    (folder / "docs").mkdir(parents=True)
    (folder / "snippets").mkdir()
    for shared in ("_theme", "assets"):
        (folder / "docs" / shared).symlink_to(ROOT / "docs" / shared)
    nav = ""
    front = (
        "---\ndescription: A page of a benchmark, one of many that are alike.\n---\n"
    )
    for number in range(pages):  # in sections of ten, and ten of them in a room
        name = f"page{number}.md" if number else "index.md"
        block = "```python\nimport torch\n\nprint(torch.arange(3) + {})\n```\n"
        text = "\n".join(f"Words.\n\n{block.format(number + k)}" for k in range(3))
        page = f"{front}# Page {number}\n\n{text}"
        (folder / "docs" / name).write_text(page, "utf-8")
        nav += f"  - Room {number // 100}:\n" if number % 100 == 0 else ""
        nav += f"      - Section {number // 10}:\n" if number % 10 == 0 else ""
        nav += f"          - {name}\n"
    settings, _ = (ROOT / "mkdocs.yml").read_text("utf-8").split("\nnav:")
    (folder / "mkdocs.yml").write_text(f"{settings}\nnav:\n{nav}", "utf-8")
    return folder


def growth(runs: int, scratch: Path, sizes: list[int]) -> None:
    """The cost per page as a site grows."""
    rows = []
    for pages in sizes:
        site = synthetic(scratch / f"growth{pages}", pages)
        shown = without_execution(synthetic(scratch / f"shown{pages}", pages))
        seconds(BUILD, site)  # fills the cache
        cases = {
            "cold": functools.partial(seconds, BUILD, site, KL_CACHE="off"),
            "warm": functools.partial(seconds, BUILD, site),
            "shown": functools.partial(seconds, BUILD, shown),
        }
        times = medians(runs, cases)
        row = [str(pages)]
        for case in cases:
            row += [f"{times[case]:.2f}", f"{1000 * times[case] / pages:.0f}"]
        rows.append(row)
    print("## Growth: three blocks a page\n")
    each = "ms a page"
    table(["pages", "cold, s", each, "warm, s", each, "execution off, s", each], rows)


def until_served(url: str, text: str) -> float:
    """Seconds until a served page holds a text."""
    start = time.perf_counter()
    while time.perf_counter() - start < 300:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                if text in answer.read().decode():
                    return time.perf_counter() - start
        except OSError:
            pass
        time.sleep(0.02)
    raise TimeoutError(text)


def edit_loop(runs: int, scratch: Path) -> None:
    """From saving a file until the new page is served."""
    rows = []
    real = copy_of_the_site(scratch / "edited")
    heaviest = max(
        (real / "docs").rglob("*.md"), key=lambda p: p.read_text().count("```python")
    )
    sites = {
        "prose, a site of 40 pages": (synthetic(scratch / "forty", 40), "index.md"),
        "prose, this site": (real, "quick_notes.md"),
        "last block of the page with most blocks": (
            real,
            heaviest.relative_to(real / "docs").as_posix(),
        ),
    }
    for port, (name, (site, page)) in enumerate(sites.items(), 8431):
        address = f"127.0.0.1:{port}"
        serve = [sys.executable, "-m", "mkdocs", "serve", "--quiet", "--no-strict"]
        server = subprocess.Popen(
            [*serve, "--dev-addr", address], cwd=site, env=ENVIRONMENT
        )
        try:
            inside = page.removesuffix("index.md").removesuffix(".md")
            url = f"http://{address}/{inside + '/' if inside else ''}"
            until_served(url, "<article")
            file = site / "docs" / page
            text, times = file.read_text("utf-8"), []
            for run in range(runs):
                mark = f"edited {port} {run}"
                block = f'```python\nprint("{mark}")\n```\n'
                prose = "prose" in name
                file.write_text(f"{text}\n{mark if prose else block}\n", "utf-8")
                times.append(until_served(url, f"{mark}<" if prose else f">{mark}\n"))
            rows.append([name, f"{statistics.median(times):.2f}", "1.00"])
        finally:
            server.terminate()
            server.wait(60)
    print("## From saving to seeing, `mkdocs serve`\n")
    table(["edit", "seconds", "target"], rows)


def main() -> None:
    """Measure everything, or less of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[40, 160, 640])
    options = parser.parse_args()
    packages = ("mkdocs", "mkdocs-material", "markdown-exec", "torch")
    print(f"# Building the site, measured on {date.today()}\n")
    installed = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {installed}.\n")
    with tempfile.TemporaryDirectory() as scratch:
        the_whole_site(options.runs, Path(scratch))
        edited_snippet(options.runs, Path(scratch))
        edit_loop(options.runs, Path(scratch))
        growth(options.runs, Path(scratch), options.sizes)


if __name__ == "__main__":
    main()
