"""Lets pages leave a built site: as a notebook, as Markdown, and in `/llms.txt`.

Runs after either engine has built: `python -m extensions.export site`. Neither writes
files beside its pages without a plugin, and plugins of ours would not run in both.
"""

import ast
import html
import os
import re
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
import yaml
from mkdocs.config import load_config
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from extensions.cache import Cache
from extensions.formulas import MACROS
from extensions.pages import Block, includes, read_blocks
from extensions.sessions import Session

# owner/name, if its branch `notebooks` has them
REPOSITORY = os.environ.get("REPOSITORY")
FIGURE = re.compile(
    r'<figure class="kl-figure".*?>(<svg.*?aria-label="(.*?)".*?)</figure>', re.DOTALL
)
BOX = re.compile(r'^( *)(?:!!!|\?\?\?\+?|===) *(\w*) *(?:"(.*)")?$', re.MULTILINE)
COLOUR = re.compile(r"^  (--kl-[a-z]+): (#[0-9a-f]+);", re.MULTILINE)


class Part(NamedTuple):
    """A stretch of a page: prose, or a block and what it printed."""

    prose: str
    block: Block | None = None
    printed: str = ""


class Page(NamedTuple):
    """A page of the documentation, executed."""

    path: Path  # below docs/, without suffix
    title: str
    description: str
    parts: list[Part]


def read_page(docs: Path, path: Path) -> Page:
    """Split a page at its blocks, and take what they print from the cache."""
    file = docs / path
    text = file.read_text("utf-8")
    lines = text.split("\n")
    name = os.path.relpath(file)
    cache = Cache(Session(name))
    front = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
    parts, start = [], text.count("\n", 0, text.find("\n---\n", 3)) + 2 if front else 0
    for block in read_blocks(text, name, includes(Path())):
        parts.append(Part(_plain(lines[start : block.line - 1])))
        parts.append(Part("", block, cache.printed(block).rstrip("\n")))
        start = block.end
    parts.append(Part(_plain(lines[start:])))
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    description = front.get("description", "")
    return Page(path.with_suffix(""), title[1] if title else name, description, parts)


def _plain(lines: list[str]) -> str:
    """Prose without what only this site's Markdown knows."""
    text = "\n".join(lines)
    text = BOX.sub(lambda m: f"{m[1]}**{m[3] or m[2].capitalize()}**", text)
    text = re.sub(r"^ {4,8}(?![-*\d ])", "", text, flags=re.MULTILINE)
    return text.strip("\n")


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


def notebook(page: Page, colours: dict[str, str]) -> str:
    """The page as a notebook that runs where only torch is installed."""
    commands = "".join(
        rf"\newcommand{{\{name}}}[{2 if '#2' in body else 0}]{{{body}}}"
        for name, body in MACROS.items()
    )
    cells = [new_markdown_cell(f"${commands}$")]
    if files := _needed(page):
        cells.append(new_code_cell(_WRITE.format(files=_literal(files))))
    for prose, block, printed in page.parts:
        if prose:
            cells.append(new_markdown_cell(prose))
        if block and block.shown:
            output = [new_output("stream", text=f"{printed}\n")] if printed else []
            cells.append(new_code_cell(block.source, outputs=output))
        elif block and printed:
            cells.append(new_markdown_cell(_pictures(printed, colours)))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # the same at every build
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    whole = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    return str(nbformat.writes(whole))


_WRITE = """# The modules that this page imports.
import sys
from pathlib import Path

for name, text in {files}.items():
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, "utf-8")
sys.path.insert(0, "")"""


def _literal(files: dict[str, str]) -> str:
    rows = "".join(f"    {name!r}: {text!r},\n" for name, text in files.items())
    return f"{{\n{rows}}}"


def _needed(page: Page) -> dict[str, str]:
    """Our modules that the shown blocks import, and those that these import."""
    waiting = [block.source for _, block, _ in page.parts if block and block.shown]
    files: dict[str, str] = {}
    while waiting:
        for module in _imported(waiting.pop()):
            path = f"{module.replace('.', '/')}.py"
            if path not in files and Path(path).exists():
                files[path] = Path(path).read_text("utf-8")
                waiting.append(files[path])
    return dict(sorted(files.items()))


def _imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _pictures(printed: str, colours: dict[str, str]) -> str:
    """Figures as images that bring their colours along."""

    def image(match: re.Match[str]) -> str:
        drawn = re.sub(r"var\((--kl-\w+)\)", lambda m: colours[m[1]], match[1])
        data = b64encode(html.unescape(drawn).encode()).decode()
        return f"![{match[2]}](data:image/svg+xml;base64,{data})"

    return FIGURE.sub(image, printed)


def _files(nav: list[object]) -> Iterator[str]:
    """The pages of a nav, in its order."""
    for entry in nav:
        if isinstance(entry, dict):
            for below in entry.values():
                yield from _files(below if isinstance(below, list) else [below])
        else:
            yield str(entry)


def _link(site: Path, page: Page) -> None:
    """Offer the two forms below the title of the built page."""
    built = site / page.path / "index.html"
    if page.path.name == "index":
        built = built.parent.with_suffix(".html")
    up = "" if page.path.name == "index" else "../"
    stem = f"{up}{page.path.name}"
    links = [f'<a href="{stem}.ipynb" download>Notebook</a>']
    if REPOSITORY:
        where = f"{REPOSITORY}/blob/notebooks/{page.path}.ipynb"
        colab = f"https://colab.research.google.com/github/{where}"
        links.append(f'<a href="{colab}">Open in Colab</a>')
    links.append(f'<a href="{stem}.md">Markdown</a>')
    offer = f'<p class="kl-leave" data-search-exclude>{" · ".join(links)}</p>'
    text = built.read_text("utf-8")
    built.write_text(text.replace("</h1>", f"</h1>\n{offer}", 1), "utf-8")


def main(site: Path) -> None:
    """Write every page's other forms into a built site."""
    config = load_config("mkdocs.yml")
    docs, address = Path("docs"), config["site_url"]
    css = (docs / "assets/site.css").read_text("utf-8")
    colours = dict(reversed(COLOUR.findall(css)))  # the light scheme comes first
    pages = [read_page(docs, Path(name)) for name in _files(config["nav"])]
    listing = [f"# {config['site_name']}", "", f"> {config['site_description']}", ""]
    for page in pages:
        (site / page.path).parent.mkdir(parents=True, exist_ok=True)
        site.joinpath(f"{page.path}.md").write_text(markdown(page), "utf-8")
        site.joinpath(f"{page.path}.ipynb").write_text(notebook(page, colours), "utf-8")
        if (site / "index.html").exists():
            _link(site, page)
        listing.append(f"- [{page.title}]({address}{page.path}.md): {page.description}")
    site.joinpath("llms.txt").write_text("\n".join(listing) + "\n", "utf-8")
    whole = "\n\n".join(markdown(page) for page in pages)
    site.joinpath("llms-full.txt").write_text(whole, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
