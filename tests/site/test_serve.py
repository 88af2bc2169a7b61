"""`mkdocs serve` follows edits of pages and of snippets, and survives mistakes."""

import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.site.conftest import ENVIRONMENT, Project

PAGE = (
    "# Page\n\n```python\nfrom snippets.shift import AMOUNT\nprint('is', AMOUNT)\n```\n"
)
PATIENCE = 60  # seconds; a rebuild takes one


class Server:
    """A served project and what the server said."""

    def __init__(self, project):
        self.project = project
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = "{}:{}".format(*free.getsockname())
        self.url = f"http://{address}/"
        self.log = project.folder / "serve.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mkdocs", "serve", "--dev-addr", address],
                cwd=project.folder,
                env=ENVIRONMENT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def until_said(self, text):
        """Wait until the server has printed a text."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def until_shown(self, text, page=""):
        """Wait until a page holds a text."""
        deadline = time.monotonic() + PATIENCE
        html = ""
        while text not in html:
            assert time.monotonic() < deadline, self.log.read_text()
            try:
                with urllib.request.urlopen(
                    self.url + page, timeout=PATIENCE
                ) as answer:
                    html = answer.read().decode()
            except OSError:
                time.sleep(0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A served front page that prints what a snippet holds."""
    project = Project(tmp_path_factory.mktemp("served"))
    project.configure({"index.md": PAGE})
    served = Server(project)
    served.until_shown("is 1")
    yield served
    served.process.terminate()
    served.process.wait(PATIENCE)


def test_an_edited_snippet_shows_its_new_number(server):
    server.project.write("snippets/shift.py", "AMOUNT = 22\n")
    server.until_shown("is 22")
    server.project.write("snippets/shift.py", "AMOUNT = 1\n")
    server.until_shown("is 1\n")


def test_an_edited_page_shows_its_new_text(server):
    server.project.configure({"index.md": PAGE + "\nMore.\n"})
    server.until_shown("More.")


@pytest.mark.parametrize(
    ("mistake", "shown"),
    [
        ("```python\n1 / 0\n```", "line 12, in &lt;module&gt;"),
        ("$\\frac{a$", "the formula"),
        ("```Python\n1\n```", "write ```python"),
        ("```python\n--8<--\nabsent.py\n--8<--\n```", "absent.py"),
        ("[there](absent.md)", "there"),
    ],
    ids=["block", "formula", "fence", "include", "link"],
)
def test_a_mistake_is_shown_where_it_is_and_then_mended(server, mistake, shown):
    pages = {"index.md": f"{PAGE}\n{mistake}\n", "other.md": "# Other\n\nWords.\n"}
    server.project.configure(pages)
    server.until_shown(shown)
    server.until_shown("Words.", "other/")  # other pages are as they were
    server.until_said("docs/index.md:")
    if mistake.startswith("```python\n1"):
        server.until_shown("docs/index.md:11")
        server.until_shown("is 1")  # and so is the page above the mistake
    server.project.configure({"index.md": PAGE + "\nMended.\n"})
    server.until_shown("Mended.")


def test_a_comment_in_a_snippet_executes_no_page_that_does_not_use_it(server):
    mark = "import os\nos.system('echo ran >> .marks')\nprint('apart')"
    pages = {"index.md": PAGE, "apart.md": f"# Apart\n\n```python\n{mark}\n```\n"}
    server.project.configure(pages)
    server.until_shown("apart", "apart/")
    server.project.write("snippets/shift.py", "AMOUNT = 3  # a comment\n")
    server.until_shown("is 3")
    assert (server.project.folder / ".marks").read_text() == "ran\n"
