"""Pages leave the site as notebooks, as Markdown and as one Python file that run."""

import ast
import json
import math
import re
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from extensions.export import FIGURE, read_page
from extensions.inline import inlined
from extensions.pages import includes, read_blocks
from extensions.sessions import BlockError
from tests.site.conftest import ENVIRONMENT, ROOT
from tests.site.test_telling import HELD, QUOTED, decimals, unheld

DOCS = ROOT / "docs"
PAGES = sorted(
    path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")
)
# Pages whose shown blocks use a name that only a hidden one defines, or read files of
# this repository: this only shrinks.
HIDDEN = {
    "algorithms/regularised/awr",
    "algorithms/regularised/brac",
    "algorithms/regularised/mpo",
    "lab/catalogue",
    "reference/notation",
}

# Runs the cells of every notebook in one process, each page in a folder of its own.
# What a page imports of ours comes from its one Python file, if it has one.
RUN = """
import contextlib, importlib.util, io, json, os, random, sys, traceback, types
import torch
left, ours, pages = sys.argv[1], *map(json.loads, sys.argv[2:])
failed, home = {}, os.getcwd()
for page in pages:
    for name in [name for name in sys.modules if name.split(".")[0] == "snippets"]:
        del sys.modules[name]
    cells = json.load(open(f"{left}/{page}.ipynb"))["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    names = {"__name__": "page"}
    folder = os.path.join(home, page.replace("/", "_"))
    os.mkdir(folder)
    os.chdir(folder)
    random.seed(0)
    torch.set_rng_state(torch.Generator().get_state())
    try:
        if os.path.exists(file := f"{left}/{page}.py"):
            spec = importlib.util.spec_from_file_location("page_file", file)
            module = sys.modules["page_file"] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            assert not [name for name in sys.modules if name.startswith("snippets")]
            for name in ours:  # a package, or a module, which is the one file
                inside = any(other.startswith(f"{name}.") for other in ours)
                sys.modules[name] = types.ModuleType(name) if inside else module
                above, _, last = name.rpartition(".")
                setattr(sys.modules.get(above), last, sys.modules[name]) if above else 0
            cells = cells[1:]  # the first writes the modules
        for cell in cells:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile("".join(cell["source"]), page, "exec"), names)
            said = "".join(x["text"] for x in cell["outputs"])
            assert out.getvalue().rstrip() == said.rstrip(), (out.getvalue(), said)
    except BaseException:
        failed[page] = traceback.format_exc()[-1500:]
    os.chdir(home)
print("\\n" + json.dumps(failed))
"""

# Lets the first cell of every notebook write its modules, and imports each of them.
WRITE = """
import importlib, json, os, sys
left, pages = sys.argv[1], json.loads(sys.argv[2])
home, paths = os.getcwd(), sys.path[:]
for page in pages:
    for name in [name for name in sys.modules if name.split(".")[0] == "snippets"]:
        del sys.modules[name]
    sys.path[:] = paths
    folder = os.path.join(home, "write_" + page.replace("/", "_"))
    os.mkdir(folder)
    os.chdir(folder)
    cells = json.load(open(f"{left}/{page}.ipynb"))["cells"]
    names = {}
    exec([cell for cell in cells if cell["cell_type"] == "code"][0]["source"], names)
    written = sorted(file for _, _, files in os.walk(folder) for file in files)
    assert written, page
    for above, _, files in os.walk("snippets"):
        for file in files:
            if file.endswith(".py"):
                name = os.path.join(above, file)[:-3].replace(os.sep, ".")
                found = importlib.import_module(name).__file__
                assert os.path.abspath(found).startswith(folder), found
"""


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The other forms of every page of the real site."""
    folder = tmp_path_factory.mktemp("left")
    run = [sys.executable, "-m", "extensions.export", str(folder)]
    subprocess.run(run, cwd=ROOT, env=ENVIRONMENT, check=True, timeout=280)
    return folder


def alone(folder, program, *given):
    """What a program prints where this repository is not to be found."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *given],
        cwd=folder,
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_every_notebook_prints_the_page_s_numbers_from_its_python_file(left, tmp_path):
    ours = {"snippets"}
    for path in (ROOT / "snippets").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        ours |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    given = str(left), json.dumps(sorted(ours)), json.dumps(PAGES)
    found = json.loads(alone(tmp_path, RUN, *given).rsplit("\n", 2)[-2])
    assert found.keys() <= HIDDEN, found


def test_a_notebook_writes_all_modules_that_it_needs(left, tmp_path):
    pages = [page for page in PAGES if (left / f"{page}.py").exists()]
    assert len(pages) > 50
    alone(tmp_path, WRITE, str(left), json.dumps(pages))


def test_a_notebook_runs_in_jupyter(left, tmp_path):
    notebook = nbformat.read(left / "exact/categorical.ipynb", as_version=4)
    nbformat.validate(notebook)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=200, resources=place).execute()


def test_python_files_are_linted_formatted_and_typed(left, tmp_path):
    """One name each, since many pages have files of one name."""
    files = sorted(left.rglob("*.py"))
    assert len(files) > 50
    for path in files:
        name = "_".join(path.relative_to(left).parts)
        (tmp_path / name).write_text(path.read_text("utf-8"), "utf-8")
    settings = ["--config", str(ROOT / "pyproject.toml")]
    rules = [*settings, "--config", 'lint.per-file-ignores={"*"=["N803","N806"]}']
    for command in (
        ["ruff", "check", *rules],
        ["ruff", "format", "--check", *settings],
        ["mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache")],
    ):
        run = subprocess.run(
            [sys.executable, "-m", *command, "."],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout


def test_a_python_file_holds_the_functions_of_its_page_and_says_where_it_is_from(left):
    for page in PAGES:
        module, file = ROOT / f"snippets/{page}.py", left / f"{page}.py"
        if module.exists():
            tree = ast.parse(file.read_text("utf-8"))
            defined = {node.name for node in tree.body if hasattr(node, "name")}
            own = ast.parse(module.read_text("utf-8")).body
            assert {node.name for node in own if hasattr(node, "name")} <= defined
            said = ast.get_docstring(tree)
            assert said, page
            assert f"/{page}/" in said
            assert re.search(r"version \d", said)
            imported = re.findall(
                r"^(?:from|import) (\w+)", file.read_text(), re.MULTILINE
            )
            assert set(imported) - set(sys.stdlib_module_names) <= {"torch"}


@pytest.mark.parametrize("page", PAGES)
def test_markdown_has_every_block_and_no_syntax_of_the_site(left, page):
    text = (left / f"{page}.md").read_text("utf-8")
    source = (DOCS / f"{page}.md").read_text("utf-8")
    for block in read_blocks(source, str(page), includes(ROOT)):
        assert not block.shown or block.source in text
    outside = text.split("```")[::2]
    assert not any("--8<--" in part or "!!! " in part for part in outside)
    assert not text.startswith("---")


@pytest.mark.usefixtures("left")  # so that what the blocks print is kept
def test_the_numbers_in_the_text_are_printed_or_typed_in_a_block(monkeypatch):
    monkeypatch.chdir(ROOT)
    stated, missing = 0, []
    for path in PAGES:
        page = DOCS / f"{path}.md"
        printed = [FIGURE.sub("", part.printed) for part in read_page(path).parts]
        stated += len(decimals(page))
        missing += [(path, number) for number in unheld(page, printed)]
    assert len(missing) <= (1 - HELD) * stated
    exact = {(p, x) for p, x in missing if len(x.replace(".", "").lstrip("0")) > 2}
    assert exact == QUOTED


def test_listings_hold_every_page(left):
    listing = (left / "llms.txt").read_text("utf-8")
    whole = (left / "llms-full.txt").read_text("utf-8")
    for page in PAGES:
        assert f"/{page}.md)" in listing
        assert (left / f"{page}.md").read_text("utf-8") in whole


def test_links_of_notebooks_lead_to_the_site(left):
    for page in PAGES:
        cells = json.loads((left / f"{page}.ipynb").read_text("utf-8"))["cells"]
        prose = "".join(x["source"] for x in cells if x["cell_type"] == "markdown")
        assert not re.findall(r"\]\((?!\w+:)[^)#]*\.md", prose), page


PAGE = """# Page

[There](other.md).

```python
from snippets.shift import AMOUNT

print(6 * AMOUNT)
```

End.
"""


def test_a_built_page_offers_its_forms_with_its_outputs(project):
    project.write("snippets/shift.py", "AMOUNT = 7\n")
    assert project.build({"index.md": PAGE, "other.md": "# Other\n"}).status == 0
    run = [sys.executable, "-m", "extensions.export", "site"]
    subprocess.run(run, cwd=project.folder, check=True, timeout=200)
    site = project.folder / "site"
    markdown = (site / "index.md").read_text()
    assert "print(6 * AMOUNT)\n```\n\n```text\n42\n```\n\nEnd." in markdown
    cells = json.loads((site / "index.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code[-1]["outputs"][0]["text"] == "42\n"
    assert "](http://127.0.0.1:8000/other/)" in cells[2]["source"]
    assert (site / "index.py").read_text().endswith("\n# shift.py\nAMOUNT = 7\n")
    front = (site / "index.html").read_text()
    for form in ("index.ipynb", "index.md", "index.py"):
        assert f'href="{form}"' in front
    assert "Python file" not in (site / "other/index.html").read_text()


def test_a_block_that_fails_stops_the_export(project, monkeypatch):
    project.configure({"index.md": "# Page\n\n```python\n1 / 0\n```\n"})
    monkeypatch.chdir(project.folder)
    with pytest.raises(BlockError, match="ZeroDivisionError"):
        read_page("index")


A = "def check(x: int) -> int:\n    return x\n\n\nROWS = 2\n"
B = "import math\n\nfrom snippets.a import check, ROWS\n\n\ndef rows() -> float:\n"
B += "    # --8<-- [start:core]\n    return check(ROWS) * math.pi\n"
B += "    # --8<-- [end:core]\n"


def test_two_modules_are_one_file():
    text = inlined({"snippets/a.py": A, "snippets/b.py": B}, "About.")
    names: dict[str, object] = {}
    exec(text, names)
    assert names["rows"]() == 2 * math.pi
    assert names["__doc__"] == "About.\n"
    assert "8<--" not in text
    assert "snippets" not in text


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (A, "from snippets import a\n", "import names, not a"),
        (A, "from snippets.a import check as seen\n", "import names, not check"),
        (A, "import snippets.a\n", "import names, not snippets.a"),
        (A, "ROWS = 3\n", "ROWS is another thing in snippets/a.py"),
        (A, "def check() -> None: ...\n", "check is another thing in snippets/a.py"),
        ("from math import exp\n", "from torch import exp\n", "exp is another thing"),
    ],
)
def test_what_cannot_be_one_file_is_refused(first, second, reason):
    with pytest.raises(ValueError, match=reason):
        inlined({"snippets/a.py": first, "snippets/b.py": second}, "")
