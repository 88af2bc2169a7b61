"""Signs of pages that are told rather than listed. They are counted, not chased.

The bars are what was reached; they hold over all pages together.
"""

import os
import re
from collections import Counter
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^( *)```python([^\n]*)\n(.*?)^\1```\n?", re.MULTILINE | re.DOTALL)
FIXED = re.compile(
    r"(Pitfalls|In practice|Check yourself|Questions|The code|Summary|Example)$"
)
STATED = re.compile(r"(?<![\w.^/])\d+\.\d+(?![\w.]|-\w)")
TYPED = re.compile(r"(?<![\w.])\d[\d_]*\.?\d*(?:e[-+]?\d+)?")
# Of decimals in the text, how many at least a block of the page prints or has typed:
# what the home page promises.
PROMISE = re.compile(r"^held = (\S+)", re.MULTILINE)
HELD = float(PROMISE.findall((DOCS / "index.md").read_text("utf-8"))[0])
# With three digits all of them, but for these, which are quoted.
QUOTED = {
    ("algorithms/language_models/rlhf", "27.8"),  # InstructGPT's pretraining mix
    ("algorithms/trust_region/acer", "0.995"),  # ACER's average, continuous control
    ("practice/growing", "1.76"),  # a reader's log, in baselines#975
}
MONEY = re.compile(
    r"\b(price|priced|prices|pays?|paid|charges?|charged|costs?|spends?|spent|buys?"
    r"|bought|earns?|earned)\b",
    re.IGNORECASE,
)


def body(page):
    """The page without its front matter."""
    return re.sub(r"\A---\n.*?\n---\n", "", page.read_text("utf-8"), flags=re.DOTALL)


def prose(page):
    """The page's own sentences: no code, heading, table or title of a box."""
    bare = FENCE.sub("", body(page))
    return re.sub(
        r"^#+ .*$|^\s*\|.*$|^\s*(!!!|\?\?\?\+?|===) .*$", "", bare, flags=re.MULTILINE
    )


def sentences(page):
    """Cut at full stops, question marks and colons, but not at those inside code.

    Notes at the foot are left out.
    """
    text = re.sub(r"^\[\^\w+\]:.*(?:\n {4}.*)*", "", prose(page), flags=re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "`code`", text)
    found = re.split(r"(?<=[.?!:])\s+", re.sub(r"\s+", " ", text))
    return [s for s in found if re.search("[A-Za-z]", s)]


def decimals(page):
    """The decimals of a page's own text and tables, as they are written."""
    bare = FENCE.sub("", body(page))
    quoted = r"^\[\^\w+\]:.*(?:\n {4}.*)*|`[^`\n]*`|\]\([^)]*\)|\b\d{4}\.\d{4,5}\b"
    return STATED.findall(re.sub(quoted, "", bare, flags=re.MULTILINE))


def unheld(page, printed):
    """The decimals of a page that are neither printed nor typed in its blocks.

    A number is held by another that rounds to it, also as a percentage.
    """
    typed = [code for _, _, code in BLOCK.findall(body(page))]
    found = TYPED.findall("\n".join([*typed, *printed]))
    numbers = [float(x.replace("_", "")) for x in found]
    return [
        stated
        for stated in decimals(page)
        if not any(
            abs(x * unit - float(stated))
            <= 0.5000001 * 10.0 ** -len(stated.partition(".")[2])
            for x in numbers
            for unit in (1, 100)
        )
    ]


def test_most_headings_are_told_once():
    heads = [
        h for page in PAGES
        for h in re.findall(r"^## (.+)$", FENCE.sub("", body(page)), re.MULTILINE)
    ]  # fmt: skip
    once = [h for h, times in Counter(heads).items() if times == 1]
    assert len(once) >= 0.95 * len(heads)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_a_heading_is_no_label_that_fits_every_page(page):
    heads = re.findall(r"^##+ (.+)$", FENCE.sub("", body(page)), re.MULTILINE)
    assert not [h for h in heads if FIXED.match(h)]


def test_most_outputs_are_read_by_a_paragraph():
    printed = read = 0
    for page in PAGES:
        text = body(page)
        for found in BLOCK.finditer(text):
            _, options, code = found.groups()
            hidden = 'source=""' in options or "--8<--" in code
            if hidden or "print(" not in code or 'exec="off"' in options:
                continue
            printed += 1
            after = text[found.end() :].lstrip("\n").split("\n\n", 1)[0].strip()
            read += bool(after) and not after.startswith(
                ("```", "#", "!!!", "???", "$$")
            )
    assert read >= 0.95 * printed


def test_few_sentences_are_fragments():
    every = [s for page in PAGES for s in sentences(page)]
    short = [s for s in every if len(s.split()) <= 6]
    assert len(short) <= 0.08 * len(every)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_no_page_speaks_in_fragments(page):
    """More than a fifth is much; a page of few sentences may have two."""
    every = sentences(page)
    short = [s for s in every if len(s.split()) <= 6]
    assert len(short) <= max(2, 0.2 * len(every)), short


def test_derivations_are_told():
    with_one = [
        page for page in PAGES
        if re.search(r'^ *\?\?\?\+? note ".', body(page), re.MULTILINE)
    ]  # fmt: skip
    assert len(with_one) >= 54


def test_a_kl_is_not_told_in_money():
    found = [
        f"{page.relative_to(DOCS)}: {word}"
        for page in PAGES
        for word in MONEY.findall(prose(page))
    ]
    assert len(found) <= 8, found


def test_every_axis_that_a_docstring_names_is_explained():
    told = (DOCS / "reference/notation.md").read_text("utf-8")
    for file in (DOCS.parent / "snippets").rglob("*.py"):
        for shape in re.findall(r"`\(([^`()]*)\)`", file.read_text("utf-8")):
            for axis in (name.strip(" *") for name in shape.split(",")):
                if axis.isidentifier() and axis.islower():
                    assert f"`{axis}`" in told, (file, axis)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_a_page_is_linked_from_the_prose_of_another(page):
    if page == DOCS / "index.md":
        return
    for other in PAGES:
        if other == page:
            continue
        text = re.sub(
            r"^.*\*\*Next on this path.*$", "", body(other), flags=re.MULTILINE
        )
        for target in re.findall(r"\]\(([^)#\s]+\.md)", FENCE.sub("", text)):
            if Path(os.path.normpath(other.parent / target)) == page:
                return
    raise AssertionError("no other page links it from its text")
