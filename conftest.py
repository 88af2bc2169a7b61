"""Lets pytest read a page as the site runs it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pytest_markdown_docs._runners import DefaultRunner, register_runner
from pytest_markdown_docs.definitions import FenceTestDefinition
from pytest_markdown_docs.plugin import MarkdownDocstringCodeModule

from extensions.pages import Block, front_matter, includes, parser, read_blocks
from extensions.sessions import Session

expand = includes(Path(__file__).parent)

DOCS = Path(__file__).parent / "docs"
collect_ignore = ["tests/site/pages"]  # pages that tests build

settings.register_profile("shared machine", deadline=None, derandomize=True)
settings.load_profile("shared machine")


@pytest.fixture(autouse=True)
def arguments_are_checked() -> None:
    """Checks of distributions, which importing skrl or torchrl turns off for all."""
    if distributions := sys.modules.get("torch.distributions"):
        distributions.Distribution.set_default_validate_args(True)


class PageParser(MarkdownIt):
    """Gives pytest-markdown-docs the blocks that the site runs, and no others."""

    def parse(self, src: str, env: Any = None) -> list[Token]:
        """The page's fences, with includes expanded."""
        blocks = {block.line: block for block in read_blocks(src, "page", expand)}
        tokens = []
        for token in parser().parse(src, env):
            line = token.map[0] + 1 if token.map else 0
            if token.type == "fence" and line in blocks:
                token.info, token.content = "python", blocks[line].source + "\n"
                tokens.append(token)
        return tokens


def pytest_markdown_docs_markdown_it() -> MarkdownIt:
    """What pytest-markdown-docs parses pages with."""
    return PageParser()


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path) -> Any:
    """Blocks live in pages: leave the docstrings of Python files alone."""
    if file_path.is_relative_to(DOCS) and file_path.suffix == ".md":
        front_matter(file_path.read_text("utf-8"), file_path.name)
    collectors: Sequence[Any] = yield
    docstrings = MarkdownDocstringCodeModule
    return [c for c in collectors if not isinstance(c, docstrings)]


@register_runner(default=True)
class PageRunner(DefaultRunner):
    """Runs each block of a page once, in the page's own session.

    When a block is selected alone, or blocks are spread over workers, those before
    it run first.
    """

    def __init__(self) -> None:
        """No page has been opened."""
        self.pages: dict[Path, tuple[Session, list[Block]]] = {}

    def runtest(
        self, test: FenceTestDefinition, args: dict[str, Any], **_: Any
    ) -> None:
        """Run the page up to this block."""
        path = test.source_path
        _, waiting = self.pages.get(path, (None, []))
        if test.start_line not in {block.line for block in waiting}:
            blocks = read_blocks(path.read_text("utf-8"), str(path), expand)
            self.pages[path] = Session(str(path)), blocks
        session, waiting = self.pages[path]
        while waiting and waiting[0].line <= test.start_line:
            session.run(waiting[0])
            del waiting[0]
