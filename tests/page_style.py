"""Lints and formats the Python on pages as ruff does files: `make lint` runs this.

`python -m tests.page_style` says what is wrong and where; with `--write`, it formats.
Ruff formats blocks of Markdown, but takes an include for an expression, and does not
lint them: so includes are hidden from it, and each page is linted as one module in
which every line stands where it stands on the page.
"""

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent

DOCS = Path(__file__).parents[1] / "docs"
FENCE = re.compile(
    r"^(?P<indent> *)```python(?P<options>.*)\n(?P<body>(?:.*\n)*?)(?P=indent)```",
    re.MULTILINE,
)
HIDDEN = "# hidden: "
RULES = "B,C4,E,F,FURB,PERF,PIE,RUF,SIM,UP,W"
# Imports stand where they are first needed, letters are the field's, rows of a table
# are as long as its heads, and an expression may be the point of a line.
LEFT = "B018,B905,E402,E731,RUF001,RUF002,RUF003,RUF005,RUF100"


def hide(page: str) -> str:
    """The page with the lines of included listings as comments."""

    def comment(fence: re.Match[str]) -> str:
        if "--8<--" not in fence["body"]:
            return fence[0]
        head, *body, end = fence[0].split("\n")
        return "\n".join(
            [head, *(re.sub(r"^( *)", rf"\1{HIDDEN}", x) for x in body), end]
        )

    return FENCE.sub(comment, page)


def module(page: str) -> str:
    """The blocks that run, as one module with the page's line numbers."""
    lines = [""] * (page.count("\n") + 1)
    for fence in FENCE.finditer(page):
        if 'exec="off"' not in fence["options"]:
            first = page[: fence.start("body")].count("\n")
            body = dedent(fence["body"]).removesuffix("\n").split("\n")
            if HIDDEN in fence["body"]:  # names come from a listing
                lines[0] = "# ruff: noqa: F821"
            lines[first : first + len(body)] = body
    return "\n".join(lines).rstrip("\n") + "\n"


def ruff(*arguments: str, folder: Path) -> str:
    """What ruff says, with no settings but these."""
    command = [
        sys.executable,
        "-m",
        "ruff",
        *arguments,
        "--isolated",
        "--line-length=88",
    ]
    return subprocess.run(
        [*command, "."], cwd=folder, capture_output=True, text=True
    ).stdout


def main(write: bool) -> int:
    """Check every page, or format it; the number of pages with a fault."""
    pages = {
        p.relative_to(DOCS).as_posix(): p.read_text("utf-8") for p in DOCS.rglob("*.md")
    }
    with TemporaryDirectory() as name:
        folder = Path(name)
        for page, text in pages.items():
            file = folder / page
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(hide(text), "utf-8")
            file.with_suffix(".py").write_text(module(hide(text)), "utf-8")
        rules = [f"--select={RULES}", f"--ignore={LEFT}", "--output-format=concise"]
        found = ruff("check", *rules, folder=folder)
        for file in folder.rglob("*.py"):
            file.unlink()
        ruff("format", folder=folder)
        changed = {
            page: formatted
            for page, text in pages.items()
            if (formatted := (folder / page).read_text("utf-8").replace(HIDDEN, ""))
            != text
        }
    faults = re.sub(r"\.py:(\d+)", r".md:\1", found).replace("All checks passed!\n", "")
    print(faults, end="")
    for page, formatted in changed.items():
        if write:
            (DOCS / page).write_text(formatted, "utf-8")
        lines = zip(pages[page].split("\n"), formatted.split("\n"), strict=False)
        first = next((n for n, (a, b) in enumerate(lines, 1) if a != b), 1)
        print(
            f"{page}:{first}: {'formatted' if write else 'not formatted as ruff would'}"
        )
    return int(bool(faults) or bool(changed and not write))


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv))
