"""Builds small sites with the project's own `mkdocs.yml`."""

import fcntl
import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parents[2]
FRONT = "---\ndescription: A page of a test, which says in a line what it is.\n---\n"
CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
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


def copy(folder: Path) -> None:
    """Copy what an engine reads."""
    for part in ("docs", "snippets"):
        shutil.copytree(ROOT / part, folder / part, dirs_exist_ok=True)
    for file in ("mkdocs.yml", "CITATION.cff"):
        shutil.copy(ROOT / file, folder)


def start(engine: str, folder: Path, *options: str) -> subprocess.Popen[str]:
    """Begin to build the site of a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", engine, "build", *options],
        cwd=folder,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(run: subprocess.Popen[str]) -> None:
    """Wait for a build, which must succeed."""
    output, _ = run.communicate(timeout=600)
    assert run.returncode == 0, output


@pytest.fixture(scope="session")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The real site, built by both engines at once from copies of this project.

    The first worker that asks builds it, and the others wait.
    """
    engines = {"mkdocs": ["--strict"], "zensical": ["-c", "--strict"]}
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folders = {engine: base / f"real-{engine}" for engine in engines}
    with (base / "real.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "real.done").exists():
            for folder in folders.values():
                copy(folder)
            runs = [start(name, folders[name], *engines[name]) for name in engines]
            for run in runs:
                finish(run)
            (base / "real.done").touch()
    return {engine: folder / "site" for engine, folder in folders.items()}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def address(sites: dict[str, Path]) -> Iterator[str]:
    """Where the site that MkDocs built is served."""
    handler = functools.partial(Quiet, directory=sites["mkdocs"])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the tests of a file."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
