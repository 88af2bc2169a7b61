"""A Markdown extension that turns TeX into MathML while the site is built.

Arithmatex finds `$…$` and `$$…$$`, math-core converts them. A formula that does not
parse stops the build.
"""

import html
import re
from functools import cache
from xml.etree.ElementTree import Element, fromstring

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from math_core import LatexError, LatexToMathML

from extensions.pages import PageError, place

MACROS = {
    "KL": r"D_{\mathrm{KL}}(\textcolor{blue}{#1}\,\|\,\textcolor{orange}{#2})",
    "TV": r"D_{\mathrm{TV}}(#1, #2)",
    "Qval": r"\mathit{Q}",
    "E": r"\mathbb{E}",
    "Var": r"\operatorname{Var}",
    "softmax": r"\operatorname{softmax}",
    "argmax": r"\operatorname*{arg\,max}",
    "argmin": r"\operatorname*{arg\,min}",
    "pitheta": r"\pi_\theta",
    "piref": r"\pi_{\mathrm{ref}}",
    "piold": r"\pi_{\mathrm{old}}",
}
_SIDES = {"color:#0000FF;": "kl-p", "color:#FF8001;": "kl-q"}  # of a KL, as colours
# Hundredths of an em that a letter leans over the next: Chromium leaves that out.
_LEANS = "P14 F13 T15 V21 Y21 W13 N11 M10 U11 J11 I09 f09 τ10 H08 C07 K07 Z07 S06 ζ06"
LEANS = {letter[0]: f"0.{letter[1:]}em" for letter in _LEANS.split()}
_HTML_ENTITY = re.compile(r"&(?!(amp|lt|gt|quot|apos);)\w+;")  # XML knows five only


@cache
def _converter() -> LatexToMathML:
    return LatexToMathML(macros=MACROS, fancy_error=False)


def mathml(tex: str, display: bool) -> Element:
    """The `<math>` element of a formula, or a LatexError if it does not parse."""
    text = _converter().convert_with_local_state(tex, displaystyle=display)
    math = fromstring(_HTML_ENTITY.sub(lambda match: html.unescape(match[0]), text))
    roles = {"P": "kl-p", "Q": "kl-q"}
    for row in math.iter("mrow"):
        if role := _SIDES.get(row.get("style", "")):
            row.attrib = {"class": role}
            if (name := "".join(row.itertext())) in {"p", "q"}:
                roles.setdefault(name, role)
    for node in list(math.iter()):
        for at, child in reversed(list(enumerate(node))):
            letter = child.text or ""
            if child.tag == "mi" and letter in roles:
                child.set("class", roles[letter])
            if node.tag in {"math", "mrow", "mtd"} and letter in LEANS:
                space = {"class": "kl-lean", "width": LEANS[letter]}
                node.insert(at + 1, Element("mspace", space))
    return math


def _breakable(math: Element) -> list[Element]:
    """An inline formula in parts: a line may end after a relation, or a + or −."""
    parts, depth = [Element("math", math.attrib)], 0
    for node in math:
        parts[-1].append(node)
        text = node.text or " "
        depth += (text in "([{") - (text in ")]}")
        between = "lspace" not in node.attrib and len(parts[-1]) > 1  # no sign
        if depth == 0 and (text in "=≈≠≡≤≥<>→⇒∝" or (text in "+−" and between)):
            node.set("form", "infix")
            parts.append(Element("math", math.attrib))
    return parts


class Formulas(Treeprocessor):
    """Replaces what Arithmatex marked."""

    def run(self, root: Element) -> None:
        """Convert each formula in place."""
        for node in root.iter():
            if node.get("class") == "arithmatex":
                display = node.tag == "div"
                tex = (node.text or "").strip()[2:-2].strip()
                tex = html.unescape(tex) if display else tex
                try:
                    math = mathml(tex, display)
                except LatexError as error:
                    where = place(self.md, f"${tex}$", tex)
                    raise PageError(f"{where}: the formula {tex!r}: {error}") from error
                node.text = None
                node.extend([math] if display else _breakable(math))
                if display:  # wide formulas scroll inside themselves, by keyboard too
                    named = {"role": "group", "aria-label": "Formula"}
                    node.attrib |= {"tabindex": "0", "data-search-exclude": ""} | named


class FormulasExtension(Extension):
    """Registers the conversion."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Run after `attr_list` (8), which reads headings, and before `toc` (5)."""
        md.registerExtension(self)
        md.treeprocessors.register(Formulas(md), "formulas", 7)
