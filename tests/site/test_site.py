"""The real site: two engines build the same pages, and a browser finds them whole."""

import functools
import http.server
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from html import unescape
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from tests.site.conftest import ENVIRONMENT, snapshot

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCREENS = {"desktop": (1280, 900), "phone": (360, 740)}


def build(engine, folder, *options):
    """Build the site of a folder, which must succeed."""
    run = subprocess.run(
        [sys.executable, "-m", engine, "build", *options],
        cwd=folder,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=1200,
    )
    assert run.returncode == 0, run.stdout


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """The real site, built by both engines from copies of this project."""
    built = {}
    for engine, options in {
        "mkdocs": ["--strict"],
        "zensical": ["-c", "--strict"],
    }.items():
        folder = tmp_path_factory.mktemp(engine)
        for part in ("docs", "snippets"):
            shutil.copytree(ROOT / part, folder / part)
        shutil.copy(ROOT / "mkdocs.yml", folder)
        build(engine, folder, *options)
        built[engine] = folder / "site"
    return built


def pages(site):
    return {path.parent.relative_to(site) for path in site.rglob("index.html")}


def article(page):
    html = page.read_text("utf-8")
    return html[html.index("<article") : html.index("</article>")]


def words(html):
    """The text of an article, without the links that a theme adds to headings."""
    text = re.sub(r'<a class="headerlink".*?</a>', "", html)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", text)).split())


def outputs(html):
    return re.findall(
        r'<div class="language-text highlight">.*?</div>', html, re.DOTALL
    )


@pytest.mark.timeout(2400)  # two cold builds of the whole site
def test_both_engines_build_the_same_pages(sites):
    assert pages(sites["mkdocs"]) == pages(sites["zensical"])
    assert len(pages(sites["mkdocs"])) >= 3


def test_both_engines_print_the_same_text(sites):
    for page in sorted(pages(sites["mkdocs"])):
        ours, theirs = (article(site / page / "index.html") for site in sites.values())
        assert outputs(ours) == outputs(theirs), page
        assert words(ours) == words(theirs), page


def entries(site):
    """What is kept of the build of a site: `rowid` tells when it was written."""
    with closing(sqlite3.connect(site.parent / ".cache/blocks.sqlite")) as table:
        return table.execute("SELECT rowid, key, entry FROM blocks").fetchall()


def printed(site):
    """What each block printed, figures included, while a site was built cold."""
    kept = {key: json.loads(entry) for _, key, entry in entries(site)}
    return {key: entry["printed"] for key, entry in kept.items() if "printed" in entry}


def test_two_cold_builds_print_the_same_to_the_last_digit(sites):
    first, second = map(printed, sites.values())
    assert len(first) > len(pages(sites["mkdocs"]))
    assert first == second


def test_the_cached_site_is_the_cold_one_byte_for_byte(sites):
    cold = sites["mkdocs"]
    kept = entries(cold)
    build("mkdocs", cold.parent, "--strict", "--site-dir", "warm")
    assert entries(cold) == kept  # nothing was executed
    assert snapshot(cold.parent / "warm") == snapshot(cold)


def test_search_reads_less_and_finds_the_same(sites):
    cold = sites["mkdocs"]
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    plain = re.sub(r"\n  - kl-search.*", "", settings)
    assert plain != settings
    (cold.parent / "plain.yml").write_text(plain, "utf-8")
    build("mkdocs", cold.parent, "-f", "plain.yml", "--strict", "--site-dir", "plain")
    assert snapshot(cold.parent / "plain") == snapshot(cold)


def test_no_page_of_either_shows_a_traceback(sites):
    for site in sites.values():
        for page in site.rglob("*.html"):
            if "checks" not in page.parts:
                text = page.read_text("utf-8")
                assert "Traceback (most recent call last)" not in text, page


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def address(sites):
    """Where the site that MkDocs built is served."""
    handler = functools.partial(Quiet, directory=sites["mkdocs"])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def visit(browser, url, screen, scheme, scripts=True):
    """A page as a reader sees it, and everything that went wrong on the way."""
    width, height = SCREENS[screen]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        java_script_enabled=scripts,
        reduced_motion="reduce",
    )
    page = context.new_page()
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda m: m.type == "error" and faults.append(m.text))
    page.on("requestfailed", lambda request: faults.append(request.url))
    host = "/".join(url.split("/")[:3])
    page.on(
        "request",
        lambda r: r.url.startswith((host, "data:")) or faults.append(r.url),
    )
    page.goto(url, wait_until="load")
    return page, faults


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_and_fits(sites, address, browser, screen, scheme):
    """Axe finds nothing, nothing fails to load, nothing is asked of another host."""
    for name in sorted(pages(sites["mkdocs"])):
        page, faults = visit(browser, f"{address}{name}/", screen, scheme)
        width = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        found = Axe().run(page, options={"resultTypes": ["violations"]})
        assert not found.response["violations"], f"{name}: {found.generate_report()}"
        assert width <= 0, f"{name} scrolls sideways by {width} px"
        assert not faults, f"{name}: {faults}"
        page.context.close()


def test_no_source_is_left_in_a_page(sites, address, browser):
    """No TeX, no fence, no include and no macro stands in the text that is read."""
    for name in sorted(pages(sites["mkdocs"])):
        page, _ = visit(browser, f"{address}{name}/", "desktop", "light")
        text = page.evaluate(
            """() => {
              const article = document.querySelector("article").cloneNode(true);
              article.querySelectorAll("code, [hidden]").forEach(e => e.remove());
              return article.textContent;
            }"""
        )
        for source in ("$$", "\\(", "\\[", "```", "--8<--", "\\KL", "!!!", "???"):
            assert source not in text, f"{name}: {source}"
        page.context.close()


def test_a_page_is_whole_without_scripts(address, browser):
    """Formulas, outputs and figures are in the HTML."""
    page, _ = visit(browser, f"{address}quick_notes/", "phone", "light", scripts=False)
    assert page.locator("article math").count() > 5
    assert page.locator("article .language-text").first.is_visible()
    page.context.close()
