"""A Markdown extension that executes the Python blocks of a page while it is built.

SuperFences finds the fences, markdown-exec renders source and output; this module
fills in markdown-exec's options, gives each page one session, and stops the build
where the site and the tests would not run the same blocks.
"""

import traceback
from contextvars import ContextVar
from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor
from markdown_exec import base_format
from markdown_exec import validator as markdown_exec_validator
from pymdownx.superfences import highlight_validator

from extensions.cache import Cache
from extensions.pages import Block, PageError, page_file, page_name, read_blocks
from extensions.sessions import Session

# The page whose source and output a nested Markdown renders, without running them.
_rendering: ContextVar[Markdown | None] = ContextVar("rendering", default=None)

_SOURCE = ("", "above", "below", "block", "tabbed-left", "tabbed-right", "console")
_MARKDOWN_EXEC = {"html", "id", "idprefix", "result", "tabs", "updatetoc", "workdir"}
_HIGHLIGHT = {"title", "hl_lines", "linenums"}


class Page(Preprocessor):
    """What is known of the page being converted; checks it once its fences are read."""

    def __init__(self, md: Markdown) -> None:
        """Wait for the first fence."""
        super().__init__(md)
        self._file = ""
        self._cache: Cache | None = None
        self._blocks: list[Block] = []
        self._ran = 0

    def cache(self) -> Cache:
        """What is kept of the page, whose blocks are read when this is asked first."""
        if self._cache is None:
            file = page_file(self.md)
            if file is None:
                raise PageError("Python blocks run only on pages of MkDocs or Zensical")
            self._file = page_name(self.md)
            expand = self.md.preprocessors["snippet"].run
            self._blocks = read_blocks(file.read_text("utf-8"), self._file, expand)
            self._cache = Cache(Session(self._file))
        return self._cache

    def run_next(self, source: str) -> str:
        """What the next block prints. SuperFences and the tests must agree on it."""
        cache = self.cache()
        block = self._blocks[self._ran] if self._ran < len(self._blocks) else None
        if block is None or _canonical(block.source) != _canonical(source):
            at = self._file
            raise PageError(f"{at}: the tests do not see this block:\n{source}")
        self._ran += 1
        try:
            return cache.printed(block)
        except (Exception, SystemExit) as error:
            at = f"{self._file}:{block.line}"
            trace = "".join(traceback.format_exception(error)[2:])
            raise PageError(f"{at}: a block failed: {error!r}\n{trace}") from error

    def run(self, lines: list[str]) -> list[str]:
        """Compare what ran with what the tests collect; the text stays as it is."""
        if not _rendering.get() and page_file(self.md):
            self.cache()
            for block in self._blocks[self._ran :]:
                at = f"{self._file}:{block.line}"
                raise PageError(f"{at}: the site does not run this block")
        return lines


def _canonical(source: str) -> list[str]:
    return [line.rstrip() for line in source.expandtabs(4).strip("\n").split("\n")]


def validate(
    language: str,
    inputs: dict[str, str],
    options: dict[str, Any],
    attrs: dict[str, Any],
    md: Markdown,
) -> bool:
    """SuperFences' validator: runs a fence unless it says `exec="off"`.

    Raises:
        PageError: If an option, or its value, is not known.
    """
    if _rendering.get():
        return False
    where = page_name(md)
    if unknown := set(inputs) - _MARKDOWN_EXEC - _HIGHLIGHT - {"exec", "source"}:
        raise PageError(f"{where}: a block has an unknown option {sorted(unknown)}")
    execute = inputs.pop("exec", "on")
    source = inputs.get("source", "above")
    if execute not in {"on", "off"} or source not in _SOURCE:
        raise PageError(f"{where}: a block has exec={execute!r}, source={source!r}")
    if execute == "off":
        options["source"] = None
        return bool(highlight_validator(language, inputs, options, attrs, md))
    # A block without source makes part of the page: what it prints is Markdown.
    result = "text" if source else ""
    filled = {"exec": "on", "source": source, "result": result, "idprefix": ""}
    for name, value in filled.items():
        inputs.setdefault(name, value)
    inputs.setdefault("updatetoc", "no")
    return markdown_exec_validator(language, inputs, options, attrs, md)


def execute(
    source: str,
    language: str,
    css_class: str,
    options: dict[str, Any],
    md: Markdown,
    **highlighting: Any,
) -> str:
    """SuperFences' formatter: runs a block and renders it with what it printed."""
    if options["source"] is None:
        fences: Any = md.preprocessors["fenced_code_block"]
        return str(fences.highlight(source, language, options, md, **highlighting))
    page = md.preprocessors["blocks"]
    assert isinstance(page, Page)
    printed = page.run_next(source).rstrip("\n")
    if not printed:
        options["result"] = ""  # no box where nothing was printed
    if not options["source"] and not printed.startswith("<figure"):
        return _render(printed, source, md, options)  # MkDocs must see links in it
    html = page.cache().rendered(
        lambda: _render(printed, source, md, options), printed, source, repr(options)
    )
    return f'<div class="{css_class}">{html}</div>' if options["source"] else html


def _render(printed: str, source: str, md: Markdown, options: dict[str, Any]) -> str:
    """What markdown-exec makes of a block that has run."""
    token = _rendering.set(md)
    try:
        return base_format(
            language="python",
            run=lambda *_, **__: printed,
            code=source,
            md=md,
            **options,
        )
    except Exception as error:  # SuperFences would show the fence as text
        raise PageError(f"{page_name(md)}: a block is not rendered: {error}") from error
    finally:
        _rendering.reset(token)


class BlocksExtension(Extension):
    """Gives every page its session."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Check right after SuperFences, which has priority 25."""
        md.registerExtension(self)
        page = _rendering.get()
        if page is None:
            md.preprocessors.register(Page(md), "blocks", 24)
        elif "relpath" in page.treeprocessors:  # MkDocs checks links that are printed
            md.treeprocessors.register(page.treeprocessors["relpath"], "relpath", 0)
