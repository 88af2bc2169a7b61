"""The Python blocks of a page, as the site and the tests must both see them."""

import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from markdown import Markdown
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pymdownx.snippets import SnippetExtension
from pymdownx.superfences import SuperFencesException

Expand = Callable[[list[str]], list[str]]


class PageError(SuperFencesException):
    """Something on a page that must stop the build. SuperFences lets it through."""


class Block(NamedTuple):
    """A fence that runs: its source with includes expanded, and where it stands."""

    line: int  # of the opening fence, counted from 1 in the file
    end: int  # the line of the closing fence
    source: str
    included: bool  # whether the source stands in another file
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
        closing = lines[end - 1].lstrip("> ").rstrip() if end > line else ""
        if set(closing) != {token.markup[0]} or len(closing) < len(token.markup):
            raise PageError(f"{name}:{line}: this fence is never closed")
        language = token.info.split()[0] if token.info else ""
        if language == "python" and token.markup == "```":
            if not re.search(r"""\bexec=["']?off\b""", token.info):
                written = token.content.removesuffix("\n")
                source = "\n".join(expand(written.split("\n")))
                shown = not re.search(r"""\bsource=(""|'')""", token.info)
                blocks.append(Block(line, end, source, source != written, shown))
        elif re.match(r"\{?\s*\.?py(thon|thon3|con)?\b", token.info):
            raise PageError(f"{name}:{line}: write ```python, so that the block runs")
    return blocks


def includes(root: Path) -> Expand:
    """Replace `--8<--` lines as the site does, with the site's own preprocessor."""
    md = Markdown()
    SnippetExtension(base_path=[str(root)], check_paths=True).extendMarkdown(md)
    return md.preprocessors["snippet"].run


def page_file(md: Markdown) -> Path | None:
    """The file that is being converted, by what MkDocs or Zensical put into `md`."""
    if "relpath" in md.treeprocessors:
        return Path(md.treeprocessors["relpath"].file.abs_src_path)  # type: ignore[attr-defined]
    if "rendering_context" in md.preprocessors:
        context = md.preprocessors["rendering_context"]
        return Path(context.config["docs_dir"], context.page.path)  # type: ignore[attr-defined]
    return None


def page_name(md: Markdown) -> str:
    """What an error calls the page."""
    file = page_file(md)
    return os.path.relpath(file) if file else "a page"
