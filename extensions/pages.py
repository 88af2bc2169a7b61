"""The Python blocks of a page, as the site and the tests must both see them."""

import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from markdown import Markdown
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mkdocs.exceptions import BuildError
from pymdownx.snippets import SnippetExtension
from pymdownx.superfences import SuperFencesException

Expand = Callable[[list[str]], list[str]]
RECORD = (  # what the atlas needs to know of an algorithm
    *("algorithm", "p", "q", "samples", "estimate", "enters", "sign", "unit"),
    *("default", "source", "verified", "code", "test"),
)


class PageError(SuperFencesException, BuildError):
    """What must stop a build. SuperFences and MkDocs let it through as it is."""


class Block(NamedTuple):
    """A fence that runs: its source with includes expanded, and where it stands."""

    line: int  # of the opening fence, counted from 1 in the file
    end: int  # the line of the closing fence
    source: str
    written: str  # the source before includes are expanded
    shown: bool  # whether the page shows the source


def parser() -> MarkdownIt:
    """CommonMark that sees fences inside `!!!`, `???` and `===` too."""
    return MarkdownIt("commonmark").disable("code")


@lru_cache(maxsize=1000)  # `mkdocs serve` asks again for every page at every edit
def _fences(text: str) -> list[Token]:
    return [token for token in parser().parse(text) if token.type == "fence"]


def read_blocks(text: str, name: str, expand: Expand) -> list[Block]:
    """The blocks of a page that run, in order.

    Args:
        text: The page's Markdown, from the first line of the file.
        name: What errors call the page.
        expand: Replaces the `--8<--` lines of a block by what they include.

    Raises:
        PageError: If a fence is not closed, or is Python in a spelling that only
            one of the two runners would see.
    """
    lines = text.split("\n")
    blocks = []
    for token in _fences(text):
        assert token.map
        line, end = token.map[0] + 1, token.map[1]
        closing = lines[end - 1].lstrip("> \t").rstrip() if end > line else ""
        if set(closing) != {token.markup[0]} or len(closing) < len(token.markup):
            raise PageError(f"{name}:{line}: this fence is never closed")
        language = token.info.split()[0] if token.info else ""
        if language == "python" and token.markup == "```":
            if not re.search(r"""\bexec=["']?off\b""", token.info):
                written = token.content.removesuffix("\n")
                source = "\n".join(expand(written.split("\n")))
                shown = not re.search(r"""\bsource=(""|'')""", token.info)
                blocks.append(Block(line, end, source, written, shown))
        elif re.match(r"(?i)\{?\s*\.?i?py", token.info):
            way = "write ```python, so that the block runs, or ```text"
            raise PageError(f"{name}:{line}: {way}")
    return blocks


def includes(root: Path) -> Expand:
    """Replace `--8<--` lines as the site does, with the site's own preprocessor."""
    md = Markdown()
    SnippetExtension(
        base_path=[str(root)], check_paths=True, dedent_subsections=True
    ).extendMarkdown(md)
    return md.preprocessors["snippet"].run


def declared(source: str) -> list[Path]:
    """The files that a block says it reads, in lines like `# reads: docs/*.md`.

    Raises:
        FileNotFoundError: If there is none.
    """
    files: list[Path] = []
    for pattern in re.findall(r"^# reads: (.+)$", source, re.MULTILINE):
        files += (found := sorted(Path().glob(pattern.strip())))
        if not found:
            raise FileNotFoundError(f"# reads: {pattern} names no file")
    return files


def front_matter(text: str, name: str) -> dict[str, Any]:
    """What stands between the lines `---` on top of a page.

    Raises:
        PageError: If it does not describe the page, or a record of the atlas is
            not complete.
    """
    found = re.match(r"---\n(.*?)^---$", text, re.DOTALL | re.MULTILINE)
    try:
        data = yaml.safe_load(found[1]) if found else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 2 if error.problem_mark else 1
        raise PageError(f"{name}:{line}: no YAML: {error.problem}") from error
    said = data.get("description") if isinstance(data, dict) else ""
    if not 40 <= len(said or "") <= 200:
        needs = (
            "`---`, `description:` and 40 to 200 characters, which lists show, `---`"
        )
        raise PageError(f"{name}:1: a page begins with {needs}")
    for record in data.get("atlas") or []:
        if lacks := [key for key in RECORD if record.get(key) in (None, "")]:
            at = locate(text, f"algorithm: {record.get('algorithm')}", "atlas:")
            raise PageError(f"{name}{at}: a record of the atlas lacks {lacks}")
    return data


def locate(text: str, *excerpts: str) -> str:
    """Where the first of these excerpts stands, as `:12`, or nothing."""
    lines = text.split("\n")
    for excerpt in excerpts:
        first = excerpt.strip().split("\n")[0]
        for number, line in enumerate(lines, 1):
            if first and first in line:
                return f":{number}"
    return ""


def page_file(md: Markdown) -> Path | None:
    """The file that is being converted, by what MkDocs or Zensical put into `md`."""
    if "relpath" in md.treeprocessors:
        return Path(md.treeprocessors["relpath"].file.abs_src_path)  # type: ignore[attr-defined]
    if "rendering_context" in md.preprocessors:
        context = md.preprocessors["rendering_context"]
        return Path(context.config["docs_dir"], context.page.path)  # type: ignore[attr-defined]
    return None


def place(md: Markdown, *excerpts: str) -> str:
    """What an error calls the page, with the line of one of these excerpts."""
    file = page_file(md)
    if file is None:
        return "a page"
    return os.path.relpath(file) + locate(file.read_text("utf-8"), *excerpts)
