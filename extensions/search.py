"""A plugin of MkDocs that lets the theme's search read less, and index the same.

Its parser takes 40 % of a build in which nothing is executed, most of it for the
`<span>`s that colour code, for formulas and for figures. None of these is indexed.
"""

import re
from typing import Any

from mkdocs.config.base import LegacyConfig
from mkdocs.plugins import BasePlugin
from mkdocs.structure.pages import Page

_COLOURS = re.compile(r"</?span\b[^>]*>")
_EXCLUDED = re.compile(
    r"<(math|figure)\b[^>]*\bdata-search-exclude\b.*?</\1>", re.DOTALL
)


class SearchLess(BasePlugin[LegacyConfig]):  # type: ignore[no-untyped-call]
    """Hides parts of a page until `search`, which `mkdocs.yml` lists first, is done."""

    def __init__(self) -> None:
        """Hide nothing yet."""
        self._whole: dict[str, str] = {}

    def on_page_content(self, html: str, *, page: Page, **_: Any) -> str:
        """What search is to read of a page."""
        self._whole[page.url] = html
        return _COLOURS.sub("", _EXCLUDED.sub("", html))

    def on_page_context(self, context: Any, *, page: Page, **_: Any) -> None:
        """Give the page back what templates show."""
        page.content = self._whole.pop(page.url)
