"""Builds small sites with the project's own `mkdocs.yml`."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
FRONT = "---\ndescription: A page of a test, which says in a line what it is.\n---\n"
ENVIRONMENT = os.environ | {"NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}


class Build(NamedTuple):
    """What a build said and left."""

    status: int
    output: str
    site: Path

    def article(self, page: str = "index.html") -> str:
        """The part of a built page that its author wrote."""
        html = (self.site / page).read_text("utf-8")
        return html[html.index("<article") : html.index("</article>")]


def snapshot(site: Path) -> dict[Path, bytes]:
    """Every file of a built site."""
    return {
        path.relative_to(site): path.read_bytes()
        for path in site.rglob("*")
        if path.is_file()
    }


class Project:
    """A docs tree of its own beside the real theme and settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("snippets/shift.py", "AMOUNT = 1\n")
        (folder / "docs").mkdir()
        for shared in ("docs/_theme", "docs/assets"):
            (folder / shared).symlink_to(ROOT / shared)

    def write(self, name: str, text: str) -> None:
        """Write a file of the project."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")

    def configure(self, pages: dict[str, str], nav: list[str] | None = None) -> None:
        """Write the pages, and the real settings with a nav of these pages."""
        for name, text in pages.items():
            front = "" if text.startswith("---") else FRONT
            self.write(f"docs/{name}", front + text)
        settings, _ = (ROOT / "mkdocs.yml").read_text("utf-8").split("\nnav:")
        entries = "".join(f"  - {name}\n" for name in nav or pages)
        self.write("mkdocs.yml", f"{settings}\nnav:\n{entries}")

    def build(
        self,
        pages: dict[str, str] | str,
        engine: str = "mkdocs",
        nav: list[str] | None = None,
    ) -> Build:
        """Build pages (one text is the front page) in a process of their own."""
        if isinstance(pages, str):
            pages = {"index.md": pages}
        self.configure(pages, nav)
        clean = ["-c"] if engine == "zensical" else []
        run = subprocess.run(
            [sys.executable, "-m", engine, "build", *clean],
            cwd=self.folder,
            env=ENVIRONMENT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=200,
        )
        return Build(run.returncode, run.stdout, self.folder / "site")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty project."""
    return Project(tmp_path)
