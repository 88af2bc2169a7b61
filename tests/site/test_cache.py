"""What a block printed is kept exactly as long as nothing it depends on changes."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from mkdocs.config import load_config
from mkdocs.structure.files import get_files
from mkdocs.structure.pages import Page

from extensions import cache
from extensions.pages import PageError
from tests.site.conftest import ENVIRONMENT, Project, snapshot

# Each execution of a block leaves a mark that no block reads.
COUNTING = """# Page

```python
import os
from snippets.shift import AMOUNT

def mark(name):
    os.system(f"echo {name} >> .marks")

mark("first")
state = [AMOUNT]
print("amount", AMOUNT)
```

```python
mark("second")
state.append(2)
print("state", state)
```

Prose.
"""


class Converted(NamedTuple):
    """What pages became, without a theme around them."""

    status: int
    pages: dict[str, str]

    def article(self, page="index.html"):
        """A page's HTML."""
        return self.pages[page.replace("/index.html", ".html")]


class Quick(Project):
    """Converts pages as MkDocs does, in this process."""

    def build(self, pages):
        """All pages, or none when one of them fails."""
        self.configure({"index.md": pages} if isinstance(pages, str) else pages)
        config = load_config("mkdocs.yml")
        files, html = get_files(config), {}
        for file in files.documentation_pages():
            page = Page(None, file, config)
            page.read_source(config)
            try:
                page.render(config, files)
            except PageError:
                return Converted(1, {})
            html[file.src_uri.replace(".md", ".html")] = page.content
        return Converted(0, html)


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A project whose blocks have been executed once."""
    project = Quick(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in [name for name in sys.modules if name.split(".")[0] == "snippets"]:
        monkeypatch.delitem(sys.modules, module)
    assert project.build(COUNTING).status == 0
    assert marks(project) == ["first", "second"]
    return project


def marks(project):
    """Which blocks were executed since this was asked last."""
    path = project.folder / ".marks"
    names = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return names


def test_nothing_is_executed_again_and_the_site_is_the_same(project):
    cold = snapshot(project.build(COUNTING).site)
    assert marks(project) == ["first", "second"]
    warm = project.build(COUNTING)
    assert marks(project) == []
    assert snapshot(warm.site) == cold


def test_another_package_is_another_environment(tmp_path, monkeypatch):
    without = cache._environment.__wrapped__()
    (tmp_path / "site-packages/extra-1.0.dist-info").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site-packages")])
    assert cache._environment.__wrapped__() != without


def test_it_is_the_same_cache_however_a_command_is_started(project):
    """`python -m` puts the working directory on the path, with a package's metadata."""
    project.write("ours.egg-info/PKG-INFO", "Name: ours\n")
    assert project.build("# Page\n\n```python\nprint(1)\n```\n").status == 0
    kept = snapshot(project.folder / ".cache")
    assert kept
    script = str(Path(sys.executable).with_name("mkdocs"))
    run = [script, "build"]
    subprocess.run(run, cwd=project.folder, env=ENVIRONMENT, check=True)
    assert snapshot(project.folder / ".cache") == kept


def test_prose_costs_no_execution(built):
    build = built.build(COUNTING.replace("Prose.", "Other prose."))
    assert "Other prose." in build.article()
    assert marks(built) == []


def test_an_edited_block_runs_after_those_before_it(built):
    build = built.build(COUNTING.replace("state.append(2)", "state.append(3)"))
    assert marks(built) == ["first", "second"]
    assert "state [1, 3]" in build.article()


def test_an_edited_first_block_runs_all(built):
    build = built.build(COUNTING.replace("[AMOUNT]", "[AMOUNT, 0]"))
    assert marks(built) == ["first", "second"]
    assert "state [1, 0, 2]" in build.article()


def test_an_edited_snippet_runs_the_pages_that_use_it_and_no_others(built):
    built.write("snippets/below.py", "from snippets.deep import DEPTH\n")
    built.write("snippets/deep.py", "DEPTH = 3\n")
    uses = COUNTING.replace("snippets.shift import AMOUNT", "snippets import below")
    uses = uses.replace("AMOUNT", "below.DEPTH").replace('mark("', 'mark("other ')
    pages = {"index.md": COUNTING, "other.md": uses}
    assert built.build(pages).status == 0
    marks(built)
    built.write("snippets/deep.py", "DEPTH = 4\n")
    build = built.build(pages)
    assert marks(built) == ["other", "first", "other", "second"]
    assert "amount 4" in build.article("other/index.html")
    built.write("snippets/shift.py", "AMOUNT = 5  # a comment\n")
    assert "amount 5" in built.build(pages).article()
    assert marks(built) == ["first", "second"]


def test_a_changed_file_runs_the_blocks_that_declare_it(built):
    reads = "from pathlib import Path\n# reads: data/*.csv\n"
    reads += "print([p.read_text() for p in sorted(Path('data').glob('*'))])"
    page = f'{COUNTING}\n```python\nmark("third")\n{reads}\n```\n'
    built.write("data/a.csv", "one")
    built.build(page)
    marks(built)
    built.build(page)
    assert marks(built) == []
    built.write("data/a.csv", "two")
    assert "two" in built.build(page).article()
    assert marks(built) == ["first", "second", "third"]
    built.write("data/b.csv", "three")
    assert "three" in built.build(page).article()


def test_a_failing_block_is_never_kept(built):
    page = COUNTING + '\n```python\nmark("third")\nraise ValueError\n```\n'
    for _ in range(2):
        assert built.build(page).status != 0
        assert marks(built) == ["first", "second", "third"]


def test_the_switch_executes_everything(built, monkeypatch):
    monkeypatch.setenv("KL_CACHE", "off")
    built.build(COUNTING)
    assert marks(built) == ["first", "second"]


@pytest.mark.parametrize("damage", ["bits", "garbage", "truncated", "empty", "swapped"])
def test_a_damaged_entry_is_never_shown_and_heals(built, damage):
    files = sorted((built.folder / ".cache/blocks").iterdir())
    texts = [file.read_bytes() for file in files]
    assert len(files) == 2
    for file, text, other in zip(files, texts, reversed(texts), strict=True):
        file.write_bytes(
            {
                "bits": text[:-3] + bytes([text[-3] ^ 4]) + text[-2:],
                "garbage": b"\xff\x00" * 100,
                "truncated": text[:-1],
                "empty": b"",
                "swapped": other,
            }[damage]
        )
    build = built.build(COUNTING)
    assert build.status == 0
    assert "state [1, 2]" in build.article()
    assert marks(built) == ["first", "second"]
    assert [file.read_bytes() for file in files] == texts
    built.build(COUNTING)
    assert marks(built) == []


def test_an_entry_that_no_build_asks_for_is_forgotten_after_a_month(built):
    month_ago = time.time() - 31 * 86400
    files = set((built.folder / ".cache/blocks").iterdir())
    for file in files:
        os.utime(file, (month_ago, month_ago))
    cache._sweep.cache_clear()  # as in a new process
    built.build(COUNTING.replace("[AMOUNT]", "[AMOUNT, 0]"))
    assert not files & set((built.folder / ".cache/blocks").iterdir())


def test_no_disk_to_write_to_is_no_error(project):
    project.write(".cache", "a file where the folder would be")
    build = project.build(COUNTING)
    assert build.status == 0
    assert build.output.count("cache of blocks") == 1


def test_two_builds_at_once_agree(project):
    project.configure({"index.md": COUNTING})

    def build(site):
        command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", site]
        return subprocess.run(
            command, cwd=project.folder, env=ENVIRONMENT, timeout=200
        ).returncode

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(build, ["one", "two"])) == [0, 0]
    one, two = (snapshot(project.folder / site) for site in ("one", "two"))
    assert (
        one[next(p for p in one if p.name == "index.html")]
        == two[next(p for p in two if p.name == "index.html")]
    )


def test_a_cached_build_imports_no_torch(project):
    page = "# Page\n\n```python\nimport torch\n\nprint(torch.ones(2))\n```\n"
    assert project.build(page).status == 0
    script = (
        "import sys\n"
        "from mkdocs.__main__ import cli\n"
        "cli(['build'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=project.folder,
        env=ENVIRONMENT | {"PATH": os.environ["PATH"]},
        timeout=200,
    )
    assert run.returncode == 0
