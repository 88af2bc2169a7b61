"""Leaves out of the theme's stylesheets what no page of this site uses.

`python -m tests.trim_theme` writes them again into `docs/_theme`, where they take the
place of the theme's own; a test says when that is needed.
"""

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import material

THEME = Path(material.__file__).parent / "templates/assets/stylesheets"
OURS = Path(__file__).parents[1] / "docs/_theme/assets/stylesheets"
# Classes, by their whole name or by what they begin with.
UNUSED = re.compile(
    r"(md-(?:author|banner|button|clipboard|consent|content--post|content__button|draft"
    r"|feedback|header--lifted|header__source|input|meta|nav--integrated|nav__source"
    r"|pagination|path|pin|post|progress|select|sidebar--post|social|source|status"
    r"|tag|version)"
    r"|annotate|bug|critic|emojione|example|failure|gemoji|grid|highlighttable|info"
    r"|linenos|lg|middle|quote|task-list|twemoji|warning|xl|xxl"
    r")(?![a-z])[\w-]*"
)
ICONS = (
    r"--md-(?:admonition-icon--(?:bug|example|failure|info|quote|warning)"
    r"|annotation|clipboard|path|post-pin|source-\w+|status-?|tag|tasklist"
    r"|version)[\w-]*:"
)
LICENCE = "/*! Of Material for MkDocs, less what this site leaves out: LICENSE.txt */\n"


def rules(css: str) -> Iterator[tuple[str, str | None]]:
    """The rules of a stylesheet: what stands before the braces, and in them."""
    start = depth = body = 0
    quoted = r""""(?:\\.|[^"])*"|'(?:\\.|[^'])*'|\([^()"']*\)"""
    for sign in re.finditer(rf"{quoted}|[{{}};]", css):
        at, what = sign.start(), sign[0]
        if what == "{":
            depth += 1
            body = at if depth == 1 else body
        elif what == "}":
            depth -= 1
            if depth == 0:
                yield css[start:body], css[body + 1 : at]
                start = at + 1
        elif what == ";" and depth == 0:
            yield css[start:at], None
            start = at + 1


def is_used(selector: str) -> bool:
    """Whether it can fit something on a page, which is read from left to right."""
    if "dir=rtl" in selector:
        return False
    asked = re.sub(r":not\([^()]*\)", "", selector)
    for choice in re.findall(r":(?:is|where|has)\(([^()]*)\)", asked):
        if not any(is_used(one) for one in choice.split(",")):
            return False
    asked = re.sub(r":(?:is|where|has)\([^()]*\)", "", asked)
    return not any(map(UNUSED.fullmatch, re.findall(r"\.([\w-]+)", asked)))


def trimmed(css: str) -> str:
    """A stylesheet without the rules that fit nothing, and without their icons."""
    out = []
    for head, body in rules(css):
        if body is None:
            out.append(f"{head};")
        elif head.startswith(("@media", "@supports")):
            inside = trimmed(body)
            out.append(f"{head}{{{inside}}}" if inside else "")
        elif head.startswith("@"):
            out.append(f"{head}{{{body}}}")
        else:
            heads = [one for one in re.split(r",(?![^(]*\))", head) if is_used(one)]
            kept = re.sub(ICONS + r'(?:url\("[^"]*"\)|[^;]*)(?:;|$)', "", body)
            out.append(f"{','.join(heads)}{{{kept}}}" if heads and kept else "")
    return "".join(out)


def palette(css: str) -> str:
    """The palette without the colours that have a name: this site has its own."""
    out = [
        f"{head}{{{palette(body) if head.startswith('@') else body}}}"
        for head, body in rules(css)
        if body and not re.search(r"data-md-color-(?:primary|accent)=(?!custom)", head)
    ]
    return "".join(rule for rule in out if not rule.endswith("{}"))


def made() -> dict[Path, str]:
    """The files that should stand in `docs/_theme`, and what in them."""
    sheets = {}
    for name, trim in (("main", trimmed), ("palette", palette)):
        (theirs,) = THEME.glob(f"{name}.*.min.css")
        sheets[OURS / theirs.name] = trim(theirs.read_text("utf-8")) + LICENCE
    text = metadata.distribution("mkdocs-material").read_text("licenses/LICENSE")
    assert text
    return sheets | {OURS / "LICENSE.txt": text}


if __name__ == "__main__":
    OURS.mkdir(parents=True, exist_ok=True)
    for old in OURS.iterdir():
        old.unlink()
    for path, text in made().items():
        path.write_text(text, "utf-8")
        print(f"{path.name}: {len(text):,} characters")
