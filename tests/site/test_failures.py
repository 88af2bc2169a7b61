"""What must stop a build stops it, and says on which page, where, and why."""

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mkdocs.config import load_config
from mkdocs.structure.files import get_files
from mkdocs.structure.pages import Page

from extensions import blocks, formulas, pages, sessions
from extensions.pages import PageError, read_blocks
from tests.site.conftest import ENVIRONMENT, ROOT

LINE = "docs/index.md:6"  # below front matter of three lines, a title and a blank

FAILURES = {
    "a block that raises": ("```python\n1 / 0\n```", "ZeroDivisionError"),
    "sys.exit": ("```python\nimport sys\nsys.exit(0)\n```", "SystemExit"),
    "os._exit": ("```python\nimport os\nos._exit(0)\n```", "the process ended"),
    "a crash": (
        "```python\nimport ctypes\nctypes.string_at(0)\n```",
        "Segmentation fault",
    ),
    "an interruption": ("```python\nraise KeyboardInterrupt\n```", "KeyboardInterr"),
    "a syntax error": ("```python\nif:\n```", "SyntaxError"),
    "a lone surrogate": ("```python\nprint(chr(0xD800))\n```", "surrogates"),
    "bytes that are no text": (
        "```python\nimport os\nos.write(1, b'\\xff')\n```",
        "UnicodeDecodeError",
    ),
    "too much output": ("```python\nprint('x' * 10**7)\n```", "1000000 characters"),
    "a warning": ("```python\nimport warnings\nwarnings.warn('odd')\n```", "UserWarn"),
    "a thread that fails": (
        "```python\nfrom threading import Thread\nt = Thread(target=lambda: 1 / 0)\n"
        "t.start(); t.join()\n```",
        "ZeroDivisionError",
    ),
    "a coroutine that nobody awaits": (
        "```python\nasync def f(): pass\nf()\n```",
        "never awaited",
    ),
    "a file that is not declared": (
        "```python\nopen('mkdocs.yml')\n```",
        "# reads: mkd",
    ),
    "a file outside": ("```python\nopen('/etc/hostname')\n```", "# reads: /etc"),
    "a block that writes into docs": (
        "```python\nfrom pathlib import Path\nPath('docs/a.md').write_text('a')\n```",
        "without `# reads",
    ),
    "a declared file that is absent": (
        "```python\n# reads: data/*.csv\n1\n```",
        "data/*.csv names no file",
    ),
    "an import by another way": (
        "```python\nimport importlib\nimportlib.import_module('snippets.shift')\n```",
        "imported by no import statement",
    ),
    "a misspelt option": ('```python exce="on"\n1\n```', "exce"),
    "a misspelt value": ('```python source="abve"\n1\n```', "abve"),
    "lines that cannot be marked": ('```python hl_lines="x"\n1\n```', "not run this"),
    "py": ("```py\n1\n```", "write ```python"),
    "Python": ("```Python\n1\n```", "write ```python"),
    "ipython": ("```ipython\n1\n```", "write ```python"),
    "pytb": ("```pytb\n1\n```", "write ```python"),
    "pycon": ("```pycon\n1\n```", "write ```python"),
    "tildes": ("~~~python\n1\n~~~", "write ```python"),
    "braces": ("```{.python}\n1\n```", "write ```python"),
    "an unclosed fence": ("```python\n1", "never closed"),
    "an unclosed fence of another language": ("```yaml\na: 1", "never closed"),
    "a missing include in prose": ('--8<-- "absent.txt"', "absent.txt"),
    "TeX that does not parse": (r"So $\frac{a$ is.", r"\\frac{a"),
    "an unknown macro": (r"So $\KLL{p}{q}$ is.", "KLL"),
    "an unclosed formula": (r"So $\KL{p}{q} is.", "a formula that does not end"),
    "a formula that only ends": ("So x$ is.", "a formula that does not end"),
    "a displayed formula inside a line": ("So $$\na\n$$ is.", "does not end"),
    "TeX outside of a formula": ("So \\pitheta is.", "TeX outside of a formula"),
    "parentheses for a formula": (r"So \(a\) is.", "write $…$"),
    "brackets for a formula": ("\\[a\\]", "write $…$"),
    "a link that is not defined": ("See [this][nowhere].", "a link that is not"),
    "a footnote that is not defined": ("See.[^9]", "a footnote that is not defined"),
    "two equal ids": ("## A {#same}\n\n## B {#same}", "'same'"),
}
# The line of these is further down.
BELOW = {
    "displayed TeX that does not parse": ("$$\n\\frac{a\n$$", r"\\frac{a"),
    "a missing region": (
        "```python\n--8<--\nsnippets/shift.py:absent\n--8<--\n```",
        "absent",
    ),
    "a missing include": (
        "```python\n--8<--\nsnippets/absent.py\n--8<--\n```",
        "absent",
    ),
    "a fence glued to its admonition": (
        "!!! note\n    ```python\n    glued = 1\n    ```",
        "the tests do not see this block",
    ),
    "a block in a comment": (
        "<!--\n```python\nhidden = 1\n```\n-->",
        "the tests do not see this block",
    ),
    "an unclosed formula in a list": ("- item\n  $$\n  a\n  $$", "does not end"),
}
WARNINGS = {
    "a dead link": ("[there](absent.md)", "absent.md"),
    "a picture that is not there": ("![it](absent.png)", "absent.png"),
    "an absolute link": ("[there](/absent/)", "/absent/"),
}


@pytest.fixture
def convert(project, monkeypatch):
    """Convert a front page as MkDocs does, in this process."""
    monkeypatch.chdir(project.folder)
    monkeypatch.syspath_prepend(project.folder)
    for module in [name for name in sys.modules if name.split(".")[0] == "snippets"]:
        monkeypatch.delitem(sys.modules, module)

    def converted(text, name="index.md"):
        project.configure({name: text})
        config = load_config("mkdocs.yml")
        files = get_files(config)
        page = Page(None, files.get_file_from_path(name), config)
        page.read_source(config)
        page.render(config, files)
        return page.content

    return converted


@pytest.mark.parametrize("name", FAILURES | BELOW)
def test_stops_the_build(convert, name):
    text, reason = (FAILURES | BELOW)[name]
    with pytest.raises(PageError) as caught:
        convert(f"# Page\n\n{text}\n")
    said = str(caught.value)
    assert said.startswith(f"{LINE}:" if name in FAILURES else "docs/index.md:"), said
    assert said.split(":")[1].isdigit(), said
    assert reason in said


@pytest.mark.parametrize("name", WARNINGS)
def test_a_link_that_leads_nowhere_is_named_with_its_line(convert, name, caplog):
    text, reason = WARNINGS[name]
    convert(f"# Page\n\n{text}\n")
    (said,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert said.getMessage().startswith(f"{LINE}: ")
    assert reason in said.getMessage()


@pytest.mark.parametrize(
    ("front", "place", "reason"),
    [
        ("---\nother: 1\n---\n", "index.md:1", "40 to 200 characters"),
        ("---\ndescription: short\n---\n", "index.md:1", "40 to 200 characters"),
        ("---\ndescription: [a\n---\n", "index.md:3", "no YAML"),
        ("---\njust words\n---\n", "index.md:1", "40 to 200 characters"),
        (
            f"---\ndescription: {'long enough ' * 4}\natlas:\n"
            "  - algorithm: GRPO\n    p: new\n---\n",
            "index.md:4",
            "lacks ['q', 'samples'",
        ),
    ],
)
def test_front_matter_that_lacks_something_is_an_error_there(
    convert, front, place, reason
):
    with pytest.raises(PageError) as caught:
        convert(f"{front}# Page\n")
    assert str(caught.value).startswith(f"docs/{place}")
    assert reason in str(caught.value)


def test_a_page_in_a_file_that_pytest_does_not_collect_is_refused(convert):
    with pytest.raises(PageError, match=r"named \.md"):
        convert("# Page\n", name="index.markdown")


def test_a_dollar_that_is_money_or_code_is_no_formula(convert):
    html = convert("# Page\n\nIt costs $5, or $10, and `$x` is code, `\\(a\\)` too.\n")
    assert "$5, or $10" in html


def broken(*_, **__):
    raise RuntimeError("on purpose")


@pytest.mark.parametrize(
    ("holder", "function"),
    [
        (blocks, "highlight_validator"),
        (blocks, "_unsearched"),
        (blocks, "_canonical"),
        (blocks, "_converted"),
        (blocks, "read_blocks"),
        (blocks, "front_matter"),
        (blocks.Page, "run_next"),
        (blocks.Page, "_check"),
        (blocks.Cache, "printed"),
        (blocks.MarkdownConverter, "convert"),
        (sessions.Session, "run"),
        (formulas, "mathml"),
        (pages, "declared"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_mistake_of_ours_stops_the_build(convert, monkeypatch, holder, function):
    """SuperFences shows a fence as text when a function that it calls raises."""
    monkeypatch.setattr(holder, function, broken)
    if holder is pages:
        monkeypatch.setattr("extensions.cache.declared", broken)
    hidden = '```python source=""\nprint("| a |\\n| - |\\n| b |")\n```\n'
    with pytest.raises((PageError, RuntimeError), match="on purpose"):
        convert(f"# Page\n\nSo $x$ is.\n\n```python\nprint(1)\n```\n\n{hidden}")


def test_a_block_has_a_time_limit_in_every_build(project):
    project.configure({"index.md": "# Page\n\n```python\nwhile True:\n    pass\n```\n"})
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build"],
        cwd=project.folder,
        env=ENVIRONMENT | {"KL_SECONDS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode != 0
    assert f"{LINE}: a block failed: the process ended, or took 1 s" in run.stderr
    assert re.search(r'File "docs/index.md", line [78] in', run.stderr)  # where it was


def test_a_page_missing_from_nav_stops_the_build(project):
    pages = {"index.md": "# Page\n", "forgotten.md": "# Forgotten\n"}
    build = project.build(pages, nav=["index.md"])
    assert build.status != 0
    assert "forgotten.md" in build.output


@pytest.mark.parametrize("engine", ["mkdocs", "zensical"])
@pytest.mark.parametrize("name", ["a block that raises", "TeX that does not parse"])
def test_both_engines_end_with_an_error_strict_or_not(project, name, engine):
    text, reason = FAILURES[name]
    project.configure({"index.md": f"# Page\n\n{text}\n"})
    settings = (project.folder / "mkdocs.yml").read_text()
    project.write("mkdocs.yml", settings.replace("strict: true", "strict: false"))
    run = subprocess.run(
        [sys.executable, "-m", engine, "build"],
        cwd=project.folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert run.returncode != 0
    assert LINE in run.stdout
    assert reason in run.stdout


LEAVES = """
import decimal, logging, os, random, sys
import torch
{numpy}
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
torch.set_printoptions(precision=1)
torch.set_float32_matmul_precision("medium")
torch.autograd.set_detect_anomaly(True)
torch.use_deterministic_algorithms(True)
torch.manual_seed(7)
torch.exp = torch.log
random.seed(7)
decimal.getcontext().prec = 3
logging.basicConfig(stream=sys.stdout)
os.environ["LEFT"] = "behind"
os.chdir("snippets")
sys.path.insert(0, "/left")
import builtins
builtins.left = 1
"""
SHOWS = """
import builtins, decimal, logging, os, random, sys
import torch
print(torch.get_default_dtype(), torch.is_grad_enabled(), torch.rand(2))
print(torch.get_float32_matmul_precision(), torch.is_anomaly_enabled())
print(torch.are_deterministic_algorithms_enabled(), torch.exp(torch.ones(1)))
print(random.random(), decimal.getcontext().prec, logging.getLogger().handlers)
print("LEFT" in os.environ, os.path.basename(os.getcwd()), "/left" in sys.path)
print(hasattr(builtins, "left"), "kept" in globals())
kept = 1
"""


def test_nothing_that_a_page_leaves_reaches_the_next(convert):
    numpy = "import numpy\nnumpy.random.seed(7)\nnumpy.set_printoptions(precision=1)"
    show = f"# Page\n\n```python\n{SHOWS}```\n"
    before = convert(show)
    os.environ["KL_CACHE"] = "off"
    try:
        convert(f"# Page\n\n```python\n{LEAVES.format(numpy=numpy)}```\n")
        assert convert(show) == before
    finally:
        del os.environ["KL_CACHE"]
    assert "torch.float32 True" in before


def test_a_build_that_fails_or_does_not_end_leaves_the_good_site_alone(project):
    shutil.copy(ROOT / "Makefile", project.folder)
    for needed in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / needed, project.folder)
    (project.folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    make = ["make", "--assume-old=.venv/site", "build"]
    run = {"cwd": project.folder, "timeout": 200, "capture_output": True}
    project.configure({"index.md": "# Good\n"})
    assert subprocess.run(make, **run).returncode == 0
    assert "Python file" not in (project.folder / "site/index.html").read_text()
    ends = "import os\nos.kill(os.getppid(), 9)"  # what no process survives
    for bad in ("1 / 0", "import os\nos._exit(0)", ends):
        project.configure({"index.md": f"# Bad\n\n```python\n{bad}\n```\n"})
        assert subprocess.run(make, **run).returncode != 0
        assert "Good" in (project.folder / "site/index.html").read_text()


def test_half_a_site_is_not_taken_for_one(project):
    (project.folder / ".build").mkdir()
    shutil.copy(ROOT / "Makefile", project.folder)
    project.write("false/mkdocs", "#!/bin/sh\nexit 0\n")
    (project.folder / "false/mkdocs").chmod(0o755)
    make = ["make", "--assume-old=.venv/site", "BIN=false", "build"]
    run = subprocess.run(make, cwd=project.folder, timeout=60, capture_output=True)
    assert run.returncode != 0
    assert not (project.folder / "site").exists()


def test_a_closing_fence_may_stand_behind_a_tab():
    (block,) = read_blocks("- a\n\n\t```python\n\t1\n\t```\n", "page", lambda x: x)
    assert block.source == "1"
