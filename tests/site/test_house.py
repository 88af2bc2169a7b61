"""The house rules that a program can check."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.new_page import main as lay_down
from tests.page_style import hide, module

ROOT = Path(__file__).parents[2]
ROOMS = ["foundations", "exact", "estimate", "algorithms", "scale", "practice", "lab"]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
SNIPPETS = [p for room in ROOMS for p in (ROOT / "snippets" / room).rglob("[!_]*.py")]
FENCE = re.compile(r"^( *)```python(.*)\n((?:.*\n)*?)\1```", re.MULTILINE)


def name(path):
    return path.relative_to(ROOT).as_posix()


def room(path):
    return path.relative_to(ROOT / "docs").parts[0]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=name)
def test_a_snippet_has_a_page_and_a_test_at_the_same_path(snippet):
    inside = snippet.relative_to(ROOT / "snippets")
    assert (ROOT / "docs" / inside).with_suffix(".md").exists()
    assert (ROOT / "tests" / inside.parent / f"test_{inside.name}").exists()


@pytest.mark.parametrize("page", [p for p in PAGES if room(p) in ROOMS], ids=name)
def test_a_page_of_a_room_has_a_test_at_the_same_path(page):
    inside = page.relative_to(ROOT / "docs").with_suffix(".py")
    assert (ROOT / "tests" / inside.parent / f"test_{inside.name}").exists()


def front_matter(page):
    """What stands between the first two lines of dashes, which every page has."""
    found = re.match(r"---\n(.*?\n)---\n", page.read_text("utf-8"), re.DOTALL)
    assert found, f"{name(page)} does not begin with a description between two ---"
    return yaml.safe_load(found[1])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_describes_itself_and_has_one_title(page):
    description = front_matter(page).get("description", "")
    said = f"{name(page)}: the description has {len(description)} characters"
    assert 40 <= len(description) <= 200, f"{said}, and needs 40 to 200"
    outside = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    assert len(re.findall(r"^# ", outside, re.MULTILINE)) == 1, "one title, with one #"
    assert not re.findall(r"^#+ .*\$", outside, re.MULTILINE), "math in a heading"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_is_in_the_navigation(page):
    listed = (ROOT / "mkdocs.yml").read_text("utf-8").split("\nnav:")[1]
    inside = page.relative_to(ROOT / "docs").as_posix()
    assert f" {inside}\n" in f"{listed}\n", (
        f"{inside} has no line in nav: of mkdocs.yml"
    )


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_block_is_short(page):
    for _, options, body in FENCE.findall(page.read_text("utf-8")):
        if "--8<--" in body:
            continue
        # A block that draws a figure or a table is not shown, and may be longer.
        most = 60 if 'source=""' in options else 12
        assert len(body.rstrip("\n").split("\n")) <= most, body


def test_ruff_sees_blocks_where_they_stand_and_no_include():
    page = """# T

??? note

    ```python source=""
    x = 1
    ```

```python exec="off"
--8<-- "a.py"
```
"""
    assert module(page).split("\n")[5] == "x = 1"
    assert "a.py" not in module(page)
    assert hide(page).replace("# hidden: ", "") == page
    assert '\n# hidden: --8<-- "a.py"\n' in hide(page)


def test_new_pages_pass_every_check(tmp_path):
    """What CONTRIBUTING begins with, in a copy of the project."""
    for part in ("docs", "snippets", "tests", "extensions"):
        cut = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, tmp_path / part, ignore=cut)
    for file in ("mkdocs.yml", "pyproject.toml", "conftest.py"):
        shutil.copy(ROOT / file, tmp_path)

    def run(*command):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    docs, proofs, python = [], [], []
    for path in ("foundations/larger", "algorithms/trust_region/nearness"):
        lay_down(path, tmp_path)
        room, _, title = path.rpartition("/")
        docs.append(f"docs/{path}.md")
        proofs.append(f"tests/{room}/test_{title}.py")
        python.append(f"snippets/{path}.py")
    checks = [
        "tests/site/test_house.py",
        "tests/contract",
        "tests/algorithms/test_index.py",
        "tests/algorithms/test_atlas.py",
    ]
    ours = "(larger or nearness or record) and not new_pages"
    quiet = ["-q", "-n0", "-p", "no:cacheprovider", "-k", ours]
    status, said = run("pytest", *quiet, *docs, *proofs, *checks)
    assert status == 0, said
    _, said = run("tests.page_style")
    assert not any(path.removeprefix("docs/") in said for path in docs), said
    assert run("ruff", "check", *python, *proofs)[0] == 0
    assert run("ruff", "format", "--check", *python, *proofs)[0] == 0


def test_torch_has_one_version():
    files = ("Makefile", "README.md", "CONTRIBUTING.md")
    texts = [(ROOT / file).read_text("utf-8") for file in files]
    found = [set(re.findall(r"torch==([\d.]+)", text)) for text in texts]
    assert all(len(versions) == 1 for versions in found)
    assert found == found[:1] * len(files)


def test_snippets_import_torch_math_and_each_other_only():
    allowed = {"torch", "math", "snippets", "typing", "collections", "itertools"}
    allowed |= {"dataclasses", "functools", "__future__"}
    for snippet in SNIPPETS:
        imported = re.findall(
            r"^(?:from|import) (\w+)", snippet.read_text("utf-8"), re.MULTILINE
        )
        assert set(imported) <= allowed, name(snippet)


def test_extensions_import_nothing_of_ours():
    for file in (ROOT / "extensions").glob("*.py"):
        assert not re.search(r"^(from|import) (snippets|tests)", file.read_text())


def test_the_machinery_can_be_read_in_one_sitting():
    files = [*(ROOT / "extensions").glob("*.py"), ROOT / "conftest.py"]
    assert sum(len(file.read_text("utf-8").splitlines()) for file in files) < 1420


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("vendor.github-workflows", ".github/workflows/*.yml"),
        ("vendor.citation-file-format", "CITATION.cff"),
    ],
)
def test_metadata_is_valid(schema, pattern):
    files = [str(path) for path in ROOT.glob(pattern)]
    assert files
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    subprocess.run([*check, *files], check=True)


def test_actions_are_pinned_by_hash():
    for workflow in (ROOT / ".github/workflows").glob("*.yml"):
        for action in re.findall(r"uses: (\S+)", workflow.read_text("utf-8")):
            pinned = re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action)
            assert pinned or action.startswith("./.github"), action


def test_the_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = re.findall(r"^(\w+):.*##", makefile, re.MULTILINE)
    readme = (ROOT / "README.md").read_text("utf-8")
    commands = re.findall(r"(?:^|`)make (\w+)", readme, re.MULTILINE)
    assert {"serve", "test"} <= set(commands) <= set(targets)
