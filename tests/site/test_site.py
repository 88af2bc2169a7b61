"""The real site: two engines build the same pages, and a browser finds them whole."""

import asyncio
import re
from html import unescape
from pathlib import Path

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.async_api import async_playwright
from playwright.sync_api import sync_playwright

from tests.site.conftest import CHROMIUM, FLAGS, finish, snapshot, start

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT / "docs").with_suffix("").as_posix()
    for path in (ROOT / "docs").rglob("*.md")
)
WIDTH, NARROW, PHONE = 1280, 320, 360
SCHEMES = ("light", "dark")
# Folds are opened: what they hold is read too. Axe takes most of its time to measure
# the contrast of every word of every listing; words whose elements and their ancestors
# all have the same tags, classes and styles look alike, on all pages: one is asked.
COLOURS = """async (seen) => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  const known = new Set(seen), fresh = [], asked = [];
  for (const e of document.querySelectorAll("body *")) {
    const speaks = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!speaks || !e.checkVisibility({visibilityProperty: true})) continue;
    let text = "", kind = 0;
    for (let a = e; a; a = a.parentElement) {
      text += `${a.tagName}.${a.getAttribute("class")}.${a.getAttribute("style")} `;
    }
    for (const letter of text) kind = Math.imul(kind, 31) + letter.codePointAt(0) | 0;
    if (known.has(kind)) continue;
    known.add(kind), fresh.push(kind), asked.push(e);
  }
  const rules = ["color-contrast", "link-in-text-block"];
  const found = asked.length
    ? await axe.run({include: asked}, {resultTypes: ["violations"], runOnly: rules})
    : {violations: []};
  return [fresh, NAMED(found)];
}"""
# Everything else does not ask for the parts of a picture or the colours of code, of
# which there are thousands.
ELSE = """async () => {
  const parts = [...document.querySelectorAll("pre code, figure svg")]
    .map(e => [e, [...e.childNodes], e.textContent]);
  for (const [e, , text] of parts) e.replaceChildren(e.matches("code") ? text : "");
  const off = {enabled: false};
  const rules = {"color-contrast": off, "link-in-text-block": off};
  const found = await axe.run({resultTypes: ["violations"], rules});
  for (const [e, nodes] of parts) e.replaceChildren(...nodes);
  return NAMED(found);
}"""
NAMED = """(found => found.violations.map(
  v => `${v.id}: ${v.help}: ${v.nodes.slice(0, 3).map(n => n.html).join(" | ")}`))"""
SIDEWAYS = "(width) => document.documentElement.scrollWidth - width"
# What stands in the text that is read, and is neither code nor hidden.
TEXT = """() => {
  const article = document.querySelector("article").cloneNode(true);
  article.querySelectorAll("code, [hidden]").forEach(e => e.remove());
  return article.textContent;
}"""
SOURCES = ("$$", "\\(", "\\[", "```", "--8<--", "\\KL", "!!!", "???")


def place(page):
    """Where a site has a page: an `index` is the page of its folder."""
    return page.removesuffix("index").rstrip("/")


def article(site, page):
    html = (site / place(page) / "index.html").read_text("utf-8")
    return html[html.index("<article") : html.index("</article>")]


def words(html):
    """The text of an article, without the links that a theme adds to headings."""
    text = re.sub(r'<a class="headerlink".*?</a>', "", html)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", text)).split())


def printed(html):
    """What the blocks of an article printed: texts and figures."""
    boxes = (
        r'<div [^>]*class="language-text highlight">.*?</div>|<svg role="img".*?</svg>'
    )
    found = re.findall(boxes, html, re.DOTALL)
    return [re.sub(r"^<div [^>]*>", "<div>", box) for box in found]  # attributes vary


@pytest.mark.timeout(1200)  # two cold builds of the whole site
def test_both_engines_build_every_page_and_no_other(sites):
    for site in sites.values():
        built = {path.parent.relative_to(site) for path in site.rglob("index.html")}
        assert built == {Path(place(page)) for page in PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_two_engines_print_the_same_to_the_last_digit(sites, page):
    ours, theirs = (article(site, page) for site in sites.values())
    assert printed(ours) == printed(theirs)
    assert words(ours) == words(theirs)


def test_pages_print_something(sites):
    assert sum(len(printed(article(sites["mkdocs"], page))) for page in PAGES) > 100


def test_the_cached_site_is_the_cold_one_byte_for_byte(sites):
    cold = sites["mkdocs"]
    kept = snapshot(cold.parent / ".cache")
    assert kept
    finish(start("mkdocs", cold.parent, "--strict", "--site-dir", "warm"))
    assert snapshot(cold.parent / "warm") == snapshot(cold)
    assert snapshot(cold.parent / ".cache") == kept  # nothing was executed


def test_no_page_of_either_shows_a_traceback(sites):
    for site in sites.values():
        for page in site.rglob("*.html"):
            if "checks" not in page.parts:
                text = page.read_text("utf-8")
                assert "Traceback (most recent call last)" not in text, page


async def become_a_phone(page, session, width):
    """Narrow, touched, and nothing hovers."""
    metrics = {"width": width, "height": 740, "deviceScaleFactor": 3, "mobile": True}
    await session.send("Emulation.setDeviceMetricsOverride", metrics)
    touch = {"enabled": True, "maxTouchPoints": 1}
    await session.send("Emulation.setTouchEmulationEnabled", touch)
    assert await page.evaluate('matchMedia("(hover: none)").matches')


async def look(context, url, seen):
    """Everything that is wrong with one page, on both devices, in both schemes."""
    page = await context.new_page()
    session = await context.new_cdp_session(page)
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda m: m.type == "error" and faults.append(m.text))
    page.on("requestfailed", lambda request: faults.append(f"no {request.url}"))
    host = "/".join(url.split("/")[:3])
    page.on(
        "request",
        lambda r: r.url.startswith((host, "data:")) or faults.append(f"asks {r.url}"),
    )
    await page.emulate_media(reduced_motion="reduce")
    await page.goto(url, wait_until="load")
    await page.evaluate(AXE_SCRIPT)
    text = await page.evaluate(TEXT)
    faults += [f"{source} is left in the text" for source in SOURCES if source in text]
    for width in (WIDTH, NARROW, PHONE):
        if width != WIDTH:
            await become_a_phone(page, session, width)
        if (over := await page.evaluate(SIDEWAYS, width)) > 0:
            faults.append(f"{width} px: scrolls sideways by {over} px")
        if width == NARROW:
            continue
        for scheme in SCHEMES:
            await page.emulate_media(color_scheme=scheme)
            known = seen.setdefault((width, scheme), {})
            ask = COLOURS.replace("NAMED", NAMED)
            fresh, found = await page.evaluate(ask, list(known))
            known |= dict.fromkeys(fresh)
            faults += [f"{width} px, {scheme}: {fault}" for fault in found]
        found = await page.evaluate(ELSE.replace("NAMED", NAMED))
        faults += [f"{width} px: {fault}" for fault in found]
    await page.close()
    return faults


async def look_at(address, chosen):
    """What is wrong with each page. Two are open at a time, one for each core."""
    waiting, faults, seen = sorted(chosen, reverse=True), {}, {}
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        size = {"width": WIDTH, "height": 900}
        context = await browser.new_context(viewport=size)

        async def walk():
            while waiting:
                page = waiting.pop()
                faults[page] = await look(context, f"{address}{place(page)}/", seen)

        await asyncio.gather(walk(), walk())
        await browser.close()
    return faults


@pytest.fixture(scope="module")
def looks(request, address):
    """What is wrong with the pages that are tested: all, unless some were chosen."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    asking = "test_a_page_is_whole_in_four_looks"
    items = [i for i in request.session.items if i.name.startswith(asking)]
    return asyncio.run(look_at(address, [i.callspec.params["page"] for i in items]))


@pytest.mark.timeout(1200)  # all pages are looked at before the first is judged
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_in_four_looks(looks, page):
    """On a desktop and a phone, light and dark, as `look` sees it.

    Axe finds nothing, nothing scrolls sideways, fails to load or is asked of another
    host, and no TeX, fence, include or macro stands in the text.
    """
    assert looks[page] == []


def test_a_page_is_whole_without_scripts(address):
    """Formulas, outputs and figures are in the HTML."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        small = {"width": PHONE, "height": 740}
        page = browser.new_page(viewport=small, java_script_enabled=False)
        page.goto(f"{address}quick_notes/", wait_until="load")
        assert page.locator("article math").count() > 5
        assert page.locator("article .language-text").first.is_visible()
        browser.close()
