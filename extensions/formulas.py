"""A Markdown extension that turns TeX into MathML while the site is built.

Arithmatex finds `$…$` and `$$…$$`, math-core converts them. A formula that does not
parse stops the build.
"""

import html
import re
from functools import cache
from xml.etree.ElementTree import Element, SubElement, fromstring

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from markdown.util import AtomicString
from math_core import LatexError, LatexToMathML

from extensions.pages import PageError, page_name

MACROS = {
    "KL": r"D_{\mathrm{KL}}(#1\,\|\,#2)",
    "TV": r"D_{\mathrm{TV}}(#1, #2)",
    "E": r"\mathbb{E}",
    "Var": r"\operatorname{Var}",
    "softmax": r"\operatorname{softmax}",
    "argmax": r"\operatorname*{arg\,max}",
    "argmin": r"\operatorname*{arg\,min}",
    "pitheta": r"\pi_\theta",
    "piref": r"\pi_{\mathrm{ref}}",
    "piold": r"\pi_{\mathrm{old}}",
}

_HTML_ENTITY = re.compile(r"&(?!(amp|lt|gt|quot|apos);)\w+;")  # XML knows five only

_SPACED = "=<>≤≥≠≈∼∝≡∈+−→↦"


@cache
def _converter() -> LatexToMathML:
    return LatexToMathML(macros=MACROS, fancy_error=False)


def mathml(tex: str, display: bool) -> Element:
    """The `<math>` element of a formula.

    Raises:
        LatexError: If the formula does not parse.
    """
    text = _converter().convert_with_local_state(tex, displaystyle=display)
    return fromstring(_HTML_ENTITY.sub(lambda match: html.unescape(match[0]), text))


def spoken(node: Element) -> str:
    """A formula in a line of plain text, which is what search indexes."""
    parts = [spoken(child) for child in node]
    joined = "".join(parts) or (node.text or "").strip()
    match node.tag, parts:
        case "mfrac", [top, bottom]:
            return f"{_grouped(top)}/{_grouped(bottom)}"
        case "msqrt", _:
            return f"√{_grouped(joined)}"
        case "msub" | "munder", [base, below]:
            return f"{base}_{_grouped(below)}"
        case "msup" | "mover", [base, above]:
            return f"{base}^{_grouped(above)}"
        case "msubsup" | "munderover", [base, below, above]:
            return f"{base}_{_grouped(below)}^{_grouped(above)} "
        case "mo", []:
            return f" {joined} " if joined in _SPACED else joined
        case "mspace", _:
            return " " if node.get("width") else ""
        case "mtr", _:
            return f"{joined} "
    return joined.replace("\N{FUNCTION APPLICATION}", " ")


def _grouped(text: str) -> str:
    text = text.strip()
    return text if len(text) == 1 or text.isalnum() else f"({text})"


class Formulas(Treeprocessor):
    """Replaces what Arithmatex marked."""

    def run(self, root: Element) -> None:
        """Convert each formula in place."""
        headings = [node for node in root.iter() if re.fullmatch("h[1-6]", node.tag)]
        titles = {node for heading in headings for node in heading.iter()}
        for node in list(root.iter()):
            if node.get("class") == "arithmatex":
                math = self._convert(node)
                if node not in titles:  # a title's text is that of its elements
                    math.set("data-search-exclude", "")
                    words = SubElement(node, "span", {"hidden": "hidden"})
                    words.text = AtomicString(" ".join(spoken(math).split()))

    def _convert(self, node: Element) -> Element:
        display = node.tag == "div"
        tex = (node.text or "").strip()[2:-2].strip()
        tex = html.unescape(tex) if display else tex
        try:
            math = mathml(tex, display)
        except LatexError as error:
            where = page_name(self.md)
            raise PageError(f"{where}: the formula {tex!r}: {error}") from error
        node.text = None
        node.append(math)
        if display:  # wide formulas scroll inside themselves, by keyboard too
            node.set("tabindex", "0")
            node.set("role", "group")
            node.set("aria-label", "Formula")
        return math


class FormulasExtension(Extension):
    """Registers the conversion."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Run after `attr_list` (8), which reads headings, and before `toc` (5)."""
        md.registerExtension(self)
        md.treeprocessors.register(Formulas(md), "formulas", 7)
