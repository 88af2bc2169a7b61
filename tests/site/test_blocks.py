"""The blocks that are written are the ones that run and the ones that are tested."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from extensions.pages import PageError, read_blocks
from tests.site.conftest import FRONT

ROOT = Path(__file__).parents[2]
NESTING = (ROOT / "tests/site/pages/nesting.md").read_text("utf-8")
WRITTEN = re.compile(r'^[> ]*```python(?!.*exec="off")', re.MULTILINE)
LISTINGS = NESTING.count("part of an example")  # shown by a fence around it

# Runs a page, and says which lines of which file were executed as blocks.
TRACE = """
import sys
from extensions import sessions

run = sessions.Session.run


def traced(self, block):
    print("ran", block.line, file=sys.stderr)
    return run(self, block)


sessions.Session.run = traced
from {engine}.__main__ import cli

cli()
"""


def test_every_nesting_runs_in_order_in_one_namespace(project):
    build = project.build(NESTING)
    assert build.status == 0, build.output
    printed = build.article().split("10\n2\n")[1].split("</code>")[0].split("\n")
    assert printed[:-1] == [
        *("plain", "admonition", "tab in admonition", "details", "tab"),
        *("admonition in tab", "list", "list in list", "quote", "div"),
    ]


@pytest.mark.parametrize("engine", ["mkdocs", "zensical"])
def test_written_executed_and_collected_blocks_are_the_same(project, engine):
    project.configure({"index.md": NESTING})
    written = len(WRITTEN.findall(NESTING)) - LISTINGS
    script = TRACE.format(engine=engine)
    clean = ["-c"] if engine == "zensical" else []
    site = subprocess.run(
        [sys.executable, "-c", script, "build", *clean],
        cwd=project.folder,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert site.returncode == 0, site.stderr
    executed = re.findall(r"ran (\d+)", site.stderr)
    assert len(executed) == written
    assert executed == collected(project)


def collected(project):
    """The lines of the blocks that pytest finds on the front page."""
    listing = pytest_in(project, "--collect-only", "docs/index.md").stdout
    return re.findall(r"docs/index.md::\[CodeFence#\d+\]\[line:(\d+)\]", listing)


def pytest_in(project, *arguments):
    """Run pytest with the project's own conftest and settings on its pages."""
    for shared in ("conftest.py", "pyproject.toml"):
        if not (project.folder / shared).exists():
            (project.folder / shared).symlink_to(ROOT / shared)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=project.folder,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_every_block_of_the_real_site_is_collected():
    listing = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "docs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    ).stdout
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = page.relative_to(ROOT).as_posix()
        written = len(WRITTEN.findall(page.read_text("utf-8")))
        assert listing.count(f"{name}::") == written, name


PAGE = """# Page

```python
runs = []
```

```python
runs.append(1)
assert len(runs) == 1
```

```python
runs.append(2)
assert runs == [1, 2]
```
"""


def test_each_block_is_run_once(project):
    project.configure({"index.md": PAGE})
    assert "3 passed" in pytest_in(project, "docs").stdout


def test_a_block_can_be_selected_alone(project):
    project.configure({"index.md": PAGE})
    chosen = "docs/index.md::[CodeFence#3][line:15]"
    assert "1 passed" in pytest_in(project, chosen).stdout
    assert "1 passed" in pytest_in(project, "-k", "line:10", "docs").stdout


def test_workers_that_share_a_page_agree(project):
    project.configure({"index.md": PAGE})
    run = pytest_in(project, "docs", "-n2", "--dist=load")
    assert "3 passed" in run.stdout, run.stdout


def test_a_failure_names_page_and_line(project):
    project.configure({"index.md": PAGE + "\n```python\nx = 1\nassert x == 2\n```\n"})
    run = pytest_in(project, "docs")
    assert "1 failed, 3 passed" in run.stdout
    assert re.search(r"docs/index\.md\", line 22", run.stdout), run.stdout


def test_a_failure_in_an_include_shows_the_included_line(project):
    project.write("snippets/broken.py", "def broken():\n    return 1 / 0\n")
    include = "```python\n--8<--\nsnippets/broken.py\n--8<--\n```\n"
    page = f"# Page\n\n{include}\n```python\nbroken()\n```\n"
    build = project.build(page)
    assert build.status != 0
    assert "docs/index.md:12" in build.output
    assert "return 1 / 0" in build.output


def test_output_stands_below_its_source_and_no_box_is_empty(project):
    build = project.build(
        "# Page\n\n```python\nprint('seen')\n```\n\n```python\n1\n```\n"
    )
    assert build.article().count('class="language-python') == 2
    assert build.article().count('class="language-text') == 1
    assert build.article().index("print") < build.article().index("seen\n")


PRINTS = """# Page

```python
import logging, os, pprint, sys, warnings

sys.stdout.write("written\\n")
pprint.pprint({"pretty": 1})
help(len)
logging.basicConfig(stream=sys.stdout, level=logging.INFO, force=True)
print("to stderr", file=sys.stderr)
os.system("echo by another process")
"value of the last line"
```

```python
from snippets.speaks import speak

speak()
logging.info("logged")
```
"""


def test_everything_that_a_block_prints_is_shown(project):
    project.write("snippets/speaks.py", "def speak():\n    print('imported')\n")
    article = project.build(PRINTS).article()
    shown = article.split('class="language-text', 1)[1]
    for text in ("written", "pretty", "len(obj", "to stderr", "by another process"):
        assert text in shown
    assert "imported" in shown
    assert "logged" in shown
    assert "value of the last line" not in shown  # as in a script


def test_long_listings_and_outputs_are_not_searched(project):
    long = "\n".join(f"long_{number} = {number}" for number in range(20))
    page = f"# Page\n\n```python\n{long}\n```\n\n```python\nshort = 'out' 'put'\n"
    build = project.build(f"{page}print(short)\n```\n\nProse.\n")
    index = (build.site / "search/search_index.json").read_text("utf-8")
    assert "short" in index
    assert "Prose." in index
    assert "long_3" not in index
    assert "output" not in index
    assert "long_3" in re.sub("<[^>]+>", "", build.article())


def test_a_page_without_blocks_needs_no_session(project):
    assert project.build("# Page\n\nText.\n").status == 0


def test_lines_are_those_of_the_file_below_front_matter(project):
    text = f"{FRONT}\n# Page\n\n```python\n1 / 0\n```\n"
    assert "index.md:7" in project.build(text).output


def test_reads_a_fence_at_the_end_of_a_file():
    (block,) = read_blocks("```python\n1\n```", "page", lambda lines: lines)
    assert (block.line, block.source) == (1, "1")


def test_refuses_a_closing_fence_that_is_too_short():
    with pytest.raises(PageError, match="page:1"):
        read_blocks("````python\n1\n```", "page", lambda lines: lines)


def test_links_that_a_block_prints_are_checked_and_resolved(project):
    shown = '```python source=""\nprint("[there](deep/page.md)")\n```\n'
    pages = {"index.md": f"# Page\n\n{shown}", "deep/page.md": "# Deep\n"}
    build = project.build(pages)
    assert build.status == 0, build.output
    assert 'href="deep/page/"' in build.article()
    build = project.build({"index.md": f"# Page\n\n{shown}".replace("deep", "absent")})
    assert build.status != 0
    assert "absent/page.md" in build.output
