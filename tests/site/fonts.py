"""Which characters the site's math font can draw, and which a page asks it for."""

import re
import unicodedata
from collections.abc import Iterator
from html import unescape
from pathlib import Path

from fontTools.ttLib import TTFont

FILE = Path(__file__).parents[2] / "docs/assets/fonts/latin-modern-math-subset.woff2"
_TABLES = TTFont(FILE)
FONT: dict[int, str] = _TABLES.getBestCmap()

_INVISIBLE = {"Cf", "Cc", "Mn", "Zs"}  # operators without a shape, spaces, selectors
_ITALIC = {  # a single letter in <mi> is drawn in mathematical italic
    "h": "ℎ",
    **{chr(0x61 + i): chr(0x1D44E + i) for i in range(26) if i != 7},
    **{chr(0x41 + i): chr(0x1D434 + i) for i in range(26)},
    **{chr(0x3B1 + i): chr(0x1D6FC + i) for i in range(25)},
    **{chr(0x391 + i): chr(0x1D6E2 + i) for i in range(25) if i != 17},
}
# How far an italic letter leans over its advance, in em.
_leans = _TABLES["MATH"].table.MathGlyphInfo.MathItalicsCorrectionInfo
_by_glyph = zip(_leans.Coverage.glyphs, _leans.ItalicsCorrection, strict=True)
_LEAN = {glyph: value.Value / _TABLES["head"].unitsPerEm for glyph, value in _by_glyph}
LEAN: dict[str, float] = {
    letter: _LEAN.get(FONT[ord(italic)], 0.0)
    for letter, italic in _ITALIC.items()
    if letter < "Α" or letter > "Ω"  # TeX sets capital Greek upright
    if ord(italic) in FONT
}


def characters(page: str) -> Iterator[str]:
    """Every character that the formulas of a built page draw."""
    for formula in re.findall(r"<math.*?</math>", page, re.DOTALL):
        for tag, attributes, text in re.findall(r"<(\w+)([^>]*)>([^<]+)", formula):
            drawn = unescape(text).strip()
            if tag == "mi" and len(drawn) == 1 and "normal" not in attributes:
                drawn = _ITALIC.get(drawn, drawn)
            yield from (c for c in drawn if unicodedata.category(c) not in _INVISIBLE)
