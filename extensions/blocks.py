"""A Markdown extension that executes the Python blocks of a page while it is built.

SuperFences finds the fences; this module shows each with what it printed, and stops
the build where the site and the tests would not run the same blocks, or where the
text would show something as it was written.
"""

import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial, wraps
from html import escape, unescape
from pathlib import Path
from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from markdown_exec import MarkdownConverter
from pymdownx.superfences import highlight_validator

from extensions.cache import Cache
from extensions.pages import (
    PageError,
    front_matter,
    includes,
    locate,
    page_file,
    read_blocks,
)
from extensions.sessions import Session

SERVING = sys.argv[1:2] == ["serve"]  # mistakes are shown where they are
LONG = 15  # lines; longer listings are not searched

_VALUES = {"exec": ("on", "off"), "source": ("", "above")}
_OPTIONS = {*_VALUES, "title", "hl_lines", "linenums"}
_LEFT = {  # what would stand in the text as it was written
    r"\[\^[^\]\s]+\]": "a footnote that is not defined",
    r"\]\[[^\]\n]*\]": "a link that is not defined",
    r"\$\$|\$(?=[^\s\d])|(?<=\S)\$(?!\d)": "a formula that does not end",
    r"\\[a-zA-Z]+": "TeX outside of a formula",
}
_NO_TEXT = re.compile(
    r"<(code|pre|math|svg|template|script|style)\b.*?</\1>", re.DOTALL
)
_page: ContextVar["Page | None"] = ContextVar("page", default=None)
_log = logging.getLogger("mkdocs.structure.pages")


class Page:
    """A page while it is converted."""

    def __init__(self, md: Markdown, file: Path) -> None:
        """Read the file."""
        self.md, self.text = md, file.read_text("utf-8")
        self.name = os.path.relpath(file)
        self.nested = False  # whether what a block printed is being converted
        self._ran, self._broken = 0, False
        self._session = Session(self.name)
        self._cache = Cache(self._session)

    def convert(self, convert: Callable[[str], str], text: str) -> str:
        """The HTML of the page, or in `mkdocs serve` that of its mistake."""
        token = _page.set(self)
        try:
            if not self.name.endswith(".md"):
                raise self.error("the tests read only files that are named .md")
            self._blocks = read_blocks(self.text, self.name, includes(Path()))
            html = convert(text)
            self._check(html)
            return html
        except Exception as error:
            return self.mistake(error)
        finally:
            self._session.close()
            _page.reset(token)

    def error(self, reason: object, *excerpts: str) -> PageError:
        """An error that names the page, and the line of one of these excerpts."""
        return PageError(f"{self.name}{locate(self.text, *excerpts)}: {reason}")

    def mistake(self, error: Exception) -> str:
        """What a served page shows of an error, which stops every build."""
        if not isinstance(error, PageError):  # those of others quote what is wrong
            error = self.error(repr(error), *re.findall(r"'([^']+)'", str(error)))
        if not SERVING:
            raise error
        self._broken = True
        _log.error(error)
        place, _, reason = escape(str(error)).partition(": ")
        title = f'<p class="admonition-title">{place}</p>'
        return f'<div class="admonition failure">{title}<pre>{reason}</pre></div>'

    def run_next(self, source: str) -> str:
        """What the next block prints. SuperFences and the tests must agree on it."""
        block = self._blocks[self._ran] if self._ran < len(self._blocks) else None
        if block is None or _canonical(block.source) != _canonical(source):
            raise self.error(f"the tests do not see this block:\n{source}", source)
        self._ran += 1
        try:
            return "" if self._broken else self._cache.printed(block)
        except BaseException as error:
            failed = PageError(f"{self.name}:{block.line}: a block failed: {error}")
            if isinstance(error, Exception):
                raise failed from error
            _log.error(failed)  # it was interrupted
            raise

    def _check(self, html: str) -> None:
        for block in self._blocks[self._ran :]:
            where = f"{self.name}:{block.line}"
            raise PageError(f"{where}: the site does not run this block")
        if left := re.search(
            r"\\[(\[].*", re.sub(r"(`+|\$+).*?\1", "", self.text, flags=re.DOTALL)
        ):
            raise self.error(f"write $…$ or $$…$$: {left[0]}", left[0])
        html = _NO_TEXT.sub("", html)
        text = unescape(re.sub(r"<[^>]*>", "", html))
        for pattern, problem in _LEFT.items():
            if left := re.search(pattern, text):
                line = text[left.start() :].split("\n")[0]
                raise self.error(f"{problem}: {line[:60]}", line[:12], left[0])
        for name, times in Counter(re.findall(r'<[^>]*\sid="(.+?)"', html)).items():
            if times > 1:
                raise self.error(f"two elements have the id {name!r}", f"#{name}", name)
        front_matter(self.text, self.name)


def _canonical(source: str) -> list[str]:
    return [line.rstrip() for line in source.expandtabs(4).strip("\n").split("\n")]


def _stops(function: Any) -> Any:
    """SuperFences shows a fence as text if its function fails: stop the build."""

    @wraps(function)
    def stopping(*given: Any, **named: Any) -> Any:
        try:
            return function(*given, **named)
        except PageError:
            raise
        except Exception as error:
            page = _page.get()
            where = f"{page.name}: " if page else ""
            raise PageError(f"{where}{error!r}") from error

    return stopping


@_stops
def validate(_: str, inputs: Any, options: Any, attrs: Any, md: Markdown) -> bool:
    """SuperFences' validator: runs a fence unless it says `exec="off"`."""
    page = _page.get()
    if page is None:
        raise PageError("Python blocks run only on pages of MkDocs or Zensical")
    if page.nested:
        return False
    for name, value in inputs.items():
        if name not in _OPTIONS or value not in _VALUES.get(name, [value]):
            written = f'{name}="{value}"', f"{name}={value}", name
            raise page.error(f"a block has the unknown option {written[0]}", *written)
    more = {name: inputs.pop(name, "above") for name in _VALUES}
    known = bool(highlight_validator("python", inputs, options, attrs, md))
    options |= {"run": more["exec"] != "off", "shown": more["source"] != ""}
    return known


@_stops
def execute(source: str, _: str, css: str, options: Any, md: Any, **more: Any) -> str:
    """SuperFences' formatter: runs a block and renders it with what it printed."""
    page, highlight = _page.get(), md.preprocessors["fenced_code_block"].highlight
    assert page
    run, shown = options.pop("run"), options.pop("shown")
    listing = highlight(source, "python", options, md, **more)
    listing = _unsearched(listing) if source.count("\n") >= LONG else listing
    if not run:
        return str(listing)
    try:
        printed = page.run_next(source).rstrip("\n")
    except PageError as error:
        return f'<div class="{css}">{listing}</div>{page.mistake(error)}'
    if not shown:
        return _converted(printed, page)
    plain: Any = {"classes": [], "id_value": "", "attrs": {}}
    output = highlight(printed, "text", {}, md, **plain) if printed else ""
    return f'<div class="{css}">{listing}{_unsearched(output)}</div>'


def _unsearched(html: str) -> str:
    return html.replace("<div ", "<div data-search-exclude ", 1)


def _converted(printed: str, page: Page) -> str:
    """The part of a page that a hidden block prints: figures, or Markdown."""
    if not re.sub(r"<figure.*?</figure>", "", printed, flags=re.DOTALL).strip():
        return printed
    page.nested = True
    try:
        converter = MarkdownConverter(page.md, update_toc=False)
        return converter.convert(printed, id_prefix="")
    finally:
        page.nested = False


class BlocksExtension(Extension):
    """Gives every page its session."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Stand around the conversion of a page."""
        md.registerExtension(self)
        page = _page.get()
        if page is None:
            convert = partial(_convert, md, md.convert)
            md.convert = convert  # type: ignore[method-assign]
        elif "relpath" in page.md.treeprocessors:  # checks links that are printed
            relpath = page.md.treeprocessors["relpath"]
            md.treeprocessors.register(relpath, "relpath", 0)
        for name in ("pages", "nav", "files"):
            logging.getLogger(f"mkdocs.structure.{name}").addFilter(_with_line)


def _convert(md: Markdown, convert: Callable[[str], str], text: str) -> str:
    file = page_file(md)
    return Page(md, file).convert(convert, text) if file else convert(text)


def _with_line(record: logging.LogRecord) -> bool:
    """Say on which line the link stands that MkDocs warns of."""
    message = record.getMessage()
    if found := re.match(r"Doc file '(.+?)' .*? '(.+?)'", message):
        file = Path("docs", found[1])
        at = locate(file.read_text("utf-8"), found[2]) if file.exists() else ""
        record.msg, record.args = f"{file}{at}: {message}", ()
    if SERVING:  # where strict mode counts warnings, nothing would be served
        record.levelno = logging.INFO
    return True
