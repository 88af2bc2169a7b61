"""Lets pytest read a page as the site runs it: each block is a test."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from extensions.pages import Block, front_matter, includes, read_blocks
from extensions.sessions import BlockError, Session

collect_ignore = ["tests/site/pages"]  # pages that tests build

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(autouse=True)
def arguments_are_checked() -> None:
    """Checks of distributions, which importing skrl or torchrl turns off for all."""
    if distributions := sys.modules.get("torch.distributions"):
        distributions.Distribution.set_default_validate_args(True)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Any:
    """Pages are test files."""
    return (
        Page.from_parent(parent, path=file_path) if file_path.suffix == ".md" else None
    )


class Page(pytest.File):
    """A page: the blocks that the site runs, and no others, once and in order."""

    def collect(self) -> Iterator[pytest.Item]:
        """One test for each block."""
        self.file = os.path.relpath(self.path)
        self.text = self.path.read_text("utf-8")
        if self.file.startswith("docs"):
            front_matter(self.text, self.file)
        self.waiting: list[Block] = []
        for number, block in enumerate(self.blocks(), 1):
            name = f"[CodeFence#{number}][line:{block.line}]"
            yield Code.from_parent(self, name=name, block=block)

    def blocks(self) -> list[Block]:
        """All of them."""
        return read_blocks(self.text, self.file, includes(Path(__file__).parent))


class Code(pytest.Item):
    """A block. When it is selected alone, those before it run first."""

    def __init__(self, block: Block, **more: Any) -> None:
        """Wait."""
        super().__init__(**more)
        self.block, self.page = block, self.parent

    def runtest(self) -> None:
        """Run the page up to this block."""
        if self.block not in self.page.waiting:
            self.page.waiting, self.page.session_ = (
                self.page.blocks(),
                Session(self.page.file),
            )
        while self.block in self.page.waiting:
            self.page.session_.run(self.page.waiting.pop(0))

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """The traceback of the page, not that of pytest."""
        return (
            str(excinfo.value)
            if excinfo.errisinstance(BlockError)
            else super().repr_failure(excinfo)
        )

    def reportinfo(self) -> tuple[Path, int, str]:
        """What a failure is called."""
        return self.path, self.block.line, f"{self.page.file}:{self.block.line}"
