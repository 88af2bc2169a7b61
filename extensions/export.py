"""Lets pages leave a built site: as a notebook, as Markdown, as one Python file.

Runs after either engine has built: `python -m extensions.export site`. Neither writes
files beside its pages without a plugin, and plugins of ours would not run in both.
"""

import html
import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from posixpath import join, normpath
from typing import Any, NamedTuple

from mkdocs.config import load_config

from extensions.cache import Cache, closure
from extensions.formulas import MACROS
from extensions.inline import inlined
from extensions.pages import Block, front_matter, includes, read_blocks
from extensions.sessions import Session

# owner/name, if its branch `notebooks` has them
REPOSITORY = os.environ.get("REPOSITORY")
FIGURE = re.compile(
    r'<figure class="kl-figure".*?(<svg.*?aria-label="(.*?)".*?</svg>).*?</figure>',
    re.DOTALL,
)
BOX = re.compile(r'^( *)(?:!!!|\?\?\?\+?|===) *(\w*) *(?:"(.*)")?$', re.MULTILINE)
COLOUR = re.compile(r"^  (--kl-[a-z]+): (#[0-9a-f]+);", re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+:)([^)#]+)\.md(#[^)]*)?\)")
INCLUDE = re.compile(r'--8<-- "snippets/([\w/]+)\.py')


class Part(NamedTuple):
    """A stretch of a page: prose, or a block and what it printed."""

    prose: str
    block: Block | None = None
    printed: str = ""


class Page(NamedTuple):
    """A page of the documentation, executed."""

    path: str  # below docs/, without suffix
    title: str
    description: str
    parts: list[Part]
    modules: dict[str, str]  # our files that it shows or imports, and theirs


def read_page(path: str) -> Page:
    """Split a page at its blocks, and take what they print from the cache."""
    name = f"docs/{path}.md"
    text = Path(name).read_text("utf-8")
    front, lines = front_matter(text, name), text.split("\n")
    session = Session(name)
    kept, blocks = Cache(session), read_blocks(text, name, includes(Path()))
    parts, start = [], lines.index("---", 1) + 1
    for block in blocks:
        parts.append(Part(_plain(lines[start : block.line - 1])))
        parts.append(Part("", block, kept.printed(block).rstrip("\n")))
        start = block.end
    session.close()
    parts.append(Part(_plain(lines[start:])))
    included = [name.replace("/", ".") for name in INCLUDE.findall(text)]
    shown = [f"import snippets.{name}" for name in included]
    sources = [block.source for block in blocks if block.shown]
    modules = closure("\n".join([*shown, *sources]))
    ours = {name: text for name, text in modules.items() if "snippets" in name}
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    return Page(path, title[1] if title else path, front["description"], parts, ours)


def _plain(lines: list[str]) -> str:
    """Prose without what only this site's Markdown knows."""
    text = "\n".join(lines)
    text = BOX.sub(lambda m: f"{m[1]}**{m[3] or m[2].capitalize()}**", text)
    return re.sub(r"^ {4,8}(?![-*\d ])", "", text, flags=re.MULTILINE).strip("\n")


def markdown(page: Page) -> str:
    """The page as Markdown, with what its blocks printed in place."""
    texts = []
    for prose, block, printed in page.parts:
        if block and block.shown:
            texts.append(f"```python\n{block.source}\n```")
        if block and printed:
            figures = FIGURE.sub(lambda m: f"*Figure: {html.unescape(m[2])}*", printed)
            texts.append(f"```text\n{printed}\n```" if block.shown else figures)
        texts += [prose] if prose else []
    return "\n\n".join(texts) + "\n"


def notebook(page: Page, address: str, colours: dict[str, str]) -> str:
    """The page as a notebook that runs where only torch is installed."""
    commands = "".join(
        rf"\newcommand{{\{name}}}[{2 if '#2' in body else 0}]{{{body}}}"
        for name, body in MACROS.items()
    )
    cells: list[dict[str, Any]] = []

    def add(kind: str, source: str, **more: Any) -> None:
        cell = {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}}
        cells.append(cell | {"source": source} | more)

    def elsewhere(match: re.Match[str]) -> str:
        there = normpath(join(page.path, "..", match[1]))
        return f"]({address}{there}/{match[2] or ''})".replace("index/", "")

    add("markdown", f"${commands}$")
    if page.modules:
        rows = "".join(f"    {n!r}: {t!r},\n" for n, t in page.modules.items())
        source = _WRITE.format(files=f"{{\n{rows}}}")
        add("code", source, outputs=[], execution_count=None)
    for prose, block, printed in page.parts:
        if prose:
            add("markdown", LINK.sub(elsewhere, prose))
        if block and block.shown:
            said = {"output_type": "stream", "name": "stdout", "text": f"{printed}\n"}
            outputs = [said] if printed else []
            add("code", block.source, outputs=outputs, execution_count=None)
        elif block and printed:
            add("markdown", LINK.sub(elsewhere, _pictures(printed, colours)))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}}
    return json.dumps(whole | {"nbformat": 4, "nbformat_minor": 5}, ensure_ascii=False)


_WRITE = """# The modules that this page imports.
import sys
from pathlib import Path

for name, text in {files}.items():
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, "utf-8")
sys.path.insert(0, "")"""


def script(page: Page, address: str) -> str:
    """The page's code as one file that runs where only torch is installed."""
    about = f"""The code of the page "{page.title}".

From {address}{page.path}/, version {version("kl-divergence-in-rl")};
one file that needs only torch.
Import from it what the page imports from `snippets`."""
    return inlined(page.modules, about)


def _pictures(printed: str, colours: dict[str, str]) -> str:
    """Figures as images that bring their colours along."""

    def image(match: re.Match[str]) -> str:
        drawn = re.sub(r"var\((--kl-\w+)\)", lambda m: colours[m[1]], match[1])
        data = b64encode(html.unescape(drawn).encode()).decode()
        return f"![{match[2]}](data:image/svg+xml;base64,{data})"

    return FIGURE.sub(image, printed)


def _sections(nav: list[Any], above: str = "") -> Iterator[tuple[str, str]]:
    """The pages of a nav, in its order, each with the titles that it stands below."""
    for entry in nav:
        for title, below in entry.items() if isinstance(entry, dict) else [("", entry)]:
            if isinstance(below, list):
                yield from _sections(below, f"{above} · {title}".strip(" ·"))
            else:
                yield str(below).removesuffix(".md"), above


def _link(site: Path, page: Page) -> None:
    """Offer the other forms below the title of the built page."""
    folder, _, stem = page.path.rpartition("/")
    if stem != "index":
        folder, stem = page.path, f"../{stem}"
    links = [f'<a href="{stem}.ipynb" download>Notebook</a>']
    if REPOSITORY:
        where = f"{REPOSITORY}/blob/notebooks/{page.path}.ipynb"
        colab = f"https://colab.research.google.com/github/{where}"
        links.append(f'<a href="{colab}">Open in Colab</a>')
    links.append(f'<a href="{stem}.md">Markdown</a>')
    if page.modules:
        links.append(f'<a href="{stem}.py" download>Python file</a>')
    offer = f'<p class="kl-leave" data-search-exclude>{" · ".join(links)}</p>'
    if (built := site / folder / "index.html").exists():
        text = built.read_text("utf-8").replace("</h1>", f"</h1>\n{offer}", 1)
        built.write_text(text, "utf-8")


def main(site: Path) -> None:
    """Write every page's other forms into a built site."""
    config = load_config("mkdocs.yml")
    address = str(config["site_url"])
    css = Path("docs/assets/site.css").read_text("utf-8")
    colours = dict(reversed(COLOUR.findall(css)))  # the light scheme comes first
    listing = [f"# {config['site_name']}\n\n> {config['site_description']}\n"]
    whole, files, last = [], [], ""
    for path, section in _sections(config["nav"]):
        page = read_page(path)
        forms = {"md": markdown(page), "ipynb": notebook(page, address, colours)}
        if page.modules:
            forms["py"] = script(page, address)
            files.append(str(site / f"{path}.py"))
        for suffix, text in forms.items():
            file = site / f"{path}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
        _link(site, page)
        listing += [f"\n## {section}\n"] if section != last else []
        listing.append(f"- [{page.title}]({address}{path}.md): {page.description}")
        whole.append(forms["md"])
        last = section
    for rules in (["check", "--fix-only", "--select=I"], ["format"]):
        ruff = [sys.executable, "-m", "ruff", *rules, "--isolated", "--quiet"]
        subprocess.run([*ruff, *files], check=True)
    site.joinpath("llms.txt").write_text("\n".join(listing) + "\n", "utf-8")
    site.joinpath("llms-full.txt").write_text("\n\n".join(whole), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
