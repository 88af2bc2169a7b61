"""What a block printed is kept exactly as long as nothing it depends on changes."""

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.site.conftest import ENVIRONMENT, snapshot

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


@pytest.fixture
def built(project):
    """A project whose blocks have been executed once."""
    assert project.build(COUNTING).status == 0
    assert marks(project) == ["first", "second"]
    return project


def marks(project):
    """Which blocks were executed since this was asked last."""
    path = project.folder / ".marks"
    names = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return names


def test_nothing_is_executed_again_and_the_site_is_the_same(built):
    cold = snapshot(built.folder / "site")
    warm = built.build(COUNTING)
    assert marks(built) == []
    assert snapshot(warm.site) == cold


def test_prose_costs_no_execution(built):
    build = built.build(COUNTING.replace("Prose.", "Other prose."))
    assert "Other prose." in build.article()
    assert marks(built) == []


def test_a_page_is_no_data_file_of_its_own_blocks(built):
    looks = "import linecache\nlinecache.getline('docs/index.md', 1)"
    page = f'{COUNTING}\n```python\nmark("third")\n{looks}\n```\n'
    built.build(page)
    marks(built)
    built.build(f"{page}\nMore prose.\n")
    assert marks(built) == []


def test_an_edited_block_runs_after_those_before_it(built):
    build = built.build(COUNTING.replace("state.append(2)", "state.append(3)"))
    assert marks(built) == ["first", "second"]
    assert "state [1, 3]" in build.article()


def test_an_edited_first_block_runs_all(built):
    build = built.build(COUNTING.replace("[AMOUNT]", "[AMOUNT, 0]"))
    assert marks(built) == ["first", "second"]
    assert "state [1, 0, 2]" in build.article()


def test_an_edited_snippet_runs_all(built):
    built.write("snippets/shift.py", "AMOUNT = 5\n")
    build = built.build(COUNTING)
    assert marks(built) == ["first", "second"]
    assert "amount 5" in build.article()


def test_a_changed_setting_renders_again_and_executes_nothing(built):
    settings = (built.folder / "mkdocs.yml").read_text()
    numbered = "pygments_lang_class: true\n      linenums: true"
    built.write("mkdocs.yml", settings.replace("pygments_lang_class: true", numbered))
    command = [sys.executable, "-m", "mkdocs", "build"]
    subprocess.run(command, cwd=built.folder, env=ENVIRONMENT, check=True, timeout=200)
    assert "linenodiv" in (built.folder / "site/index.html").read_text()
    assert marks(built) == []


def test_a_changed_package_runs_all(built):
    distribution = built.folder / "extra-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Name: extra\nVersion: 1.0\n")
    built.build(COUNTING)
    assert marks(built) == ["first", "second"]


def test_a_changed_data_file_runs_its_readers(built):
    reader = "from pathlib import Path\nprint(Path('data.csv').read_text())"
    page = f'{COUNTING}\n```python\nmark("third")\n{reader}\n```\n'
    built.write("data.csv", "one")
    built.build(page)
    marks(built)
    built.build(page)
    assert marks(built) == []
    built.write("data.csv", "two")
    build = built.build(page)
    assert marks(built) == ["first", "second", "third"]
    assert "two" in build.article()


def test_a_new_file_in_a_folder_that_was_listed_runs_its_readers(built):
    listing = "print(sorted(p.name for p in Path('data').iterdir()))"
    page = f"{COUNTING}\n```python\nfrom pathlib import Path\n{listing}\n```\n"
    built.write("data/a", "")
    built.build(page)
    built.write("data/b", "")
    assert "&#39;b&#39;" in built.build(page).article().replace("'", "&#39;")


def test_a_failing_block_is_never_kept(built):
    page = COUNTING + '\n```python\nmark("third")\nraise ValueError\n```\n'
    for _ in range(2):
        assert built.build(page).status != 0
        assert marks(built) == ["first", "second", "third"]


def test_the_switch_executes_everything(built, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "KL_CACHE", "off")
    built.build(COUNTING)
    assert marks(built) == ["first", "second"]


@pytest.mark.parametrize("damage", ["garbage", "truncated", "entries", "folder"])
def test_a_damaged_cache_is_right_and_says_so_once(built, damage):
    file = built.folder / ".cache/blocks.sqlite"
    if damage == "garbage":
        file.write_bytes(b"not a database" * 1000)
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "entries":
        with sqlite3.connect(file) as table:
            table.execute("UPDATE blocks SET entry = '{'")
        table.close()
    else:
        file.unlink()
        file.mkdir()
    build = built.build(COUNTING)
    assert build.status == 0
    assert "state [1, 2]" in build.article()
    assert marks(built) == ["first", "second"]
    assert build.output.count("cache of blocks") == (damage != "entries")


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
