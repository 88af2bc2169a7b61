"""The ways through the site, and its look: in both engines, in a browser, on paper."""

import os
import re
import struct
from itertools import pairwise
from pathlib import Path
from xml.etree.ElementTree import tostring

import pytest
import yaml
from playwright.sync_api import Page

from extensions.formulas import LEANS, mathml
from tests.site.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS) for path in DOCS.rglob("*.md"))
HOME = (DOCS / "index.md").read_text("utf-8")
PATHS = yaml.safe_load(HOME.split("---\n")[1])["paths"]
TABS = ["Start here", "Learn", "Compute", "Algorithms", "Practice", "Reference"]


def html(site, page):
    """A built page, by the name of its source without suffix."""
    name = str(page).removesuffix(".md").removesuffix("index")
    return (site / name / "index.html").read_text("utf-8")


# Ways through


def test_a_page_leads_on(sites):
    """Six tabs, a short list beside the page, and the pages before and after it."""
    for page in PAGES:
        text = html(sites["mkdocs"], page)
        tabs = re.findall(r'class="md-tabs__link">\s*([\w ]+?)\s*<', text)
        assert tabs == TABS, page
        beside = text.split("<main")[1].split("<article")[0]
        assert 6 <= len(re.findall(r'<a href="(?!#)', beside)) < 40, page
        ways = re.findall(r"md-footer__link--(prev|next)", text)
        assert ways == ["next"] if page == Path("index.md") else "prev" in ways, page


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path["name"])
def test_each_page_of_a_path_names_the_next(path):
    for name, following in pairwise(path["pages"]):
        text = (DOCS / f"{name}.md").read_text("utf-8")
        foot = re.search(r"^\*\*Next on this path:\*\* .*(?:\n.+)*", text, re.MULTILINE)
        link = f"]({os.path.relpath(following, Path(name).parent)}.md)"
        assert foot, name
        assert link in foot[0], f"{name} does not name {following} at its foot"


def test_the_home_page_lists_each_path_in_order_with_its_minutes(sites):
    for site in sites.values():
        for path, shown in zip(
            PATHS, html(site, "index").split("</ol>")[-5:-1], strict=True
        ):
            listed = re.findall(r'href="([\w/]+)/"', shown.split("<ol>")[1])
            assert listed == path["pages"]
            said = re.sub(r"<[^>]+>", "", shown.split("<ol>")[0])
            assert re.search(rf"{path['name']}, [1-9]\d minutes\.", said)


def test_a_page_that_is_not_there_leads_on_from_any_address(sites):
    """It fetches nothing, and its links are whole, wherever a server shows it."""
    for site in sites.values():
        text = (site / "404.html").read_text("utf-8")
        links = re.findall(r'\b(?:href|src|action)="([^"]*)"', text)
        assert len(links) > 4
        for link in links:
            inside = link.removeprefix("http://127.0.0.1:8000/")
            assert inside != link
            assert (site / inside / "index.html").exists(), link


def test_both_engines_explain_the_same_words(sites):
    words = {}
    for engine, site in sites.items():
        text = html(site, "estimate/estimators").split("<article")[1]
        words[engine] = re.findall(r'<abbr title="([^"]+)">([^<]+)</abbr>', text)
    assert words["mkdocs"] == words["zensical"]
    assert {"P", "Q", "k1", "k3", "nats"} <= {word for _, word in words["mkdocs"]}


CITES = re.compile(r"(?i:arxiv)(?::|\.org/abs/)(\d{4}\.\d{4,5})")


def test_the_bibliography_leads_to_each_paper_and_back_to_the_pages_that_cite_it(sites):
    cited = {}
    for page in PAGES:
        for paper in set(CITES.findall((DOCS / page).read_text("utf-8"))):
            cited[paper] = cited.get(paper, 0) + 1
    for site in sites.values():
        text = html(site, "reference/bibliography").split("<article")[1]
        listed = {}
        for entry in re.findall(r"<li>((?:(?!<li>).)*?arxiv.*?)</li>", text, re.DOTALL):
            back = re.findall(r'href="(?:\.\./)+[\w/]*"', entry)
            listed[CITES.search(entry)[1]] = len(back)
        assert listed == cited


# Identity


def test_the_mark_is_one_drawing():
    files = ["_theme/.icons/kl/mark.svg", "assets/mark.svg", "assets/card.svg"]
    files.append("_theme/404.html")
    drawings = [
        set(re.findall(r' d="([^"]+)"', (DOCS / file).read_text("utf-8")))
        for file in files
    ]
    assert len(drawings[0]) == 2
    assert drawings == drawings[:1] * len(files)


def test_a_shared_link_has_a_title_a_sentence_and_a_picture(sites):
    for page in PAGES:
        text = html(sites["mkdocs"], page)
        for name in ("title", "description", "image", "url"):
            assert re.search(rf'property="og:{name}" content="[^"]+"', text), page
        assert "P over Q" in re.search(r"<title>(.+?)</title>", text)[1]
    picture = (sites["mkdocs"] / "assets/card.png").read_bytes()
    assert struct.unpack(">II", picture[16:24]) == (1200, 630)
    assert len(picture) < 60_000  # what chat programs fetch


@pytest.fixture(scope="module")
def page(browser, address) -> Page:
    """A desktop window of 1280 pixels, on the estimators' page."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{address}estimate/estimators/", wait_until="load")
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    return page


def style(page, selector, name):
    """A computed style of the first element that a selector finds."""
    script = "(e, name) => getComputedStyle(e).getPropertyValue(name)"
    return page.locator(selector).first.evaluate(script, name)


@pytest.mark.parametrize("how", ["hover", "focus"])
def test_a_word_is_explained_where_a_reader_points_or_tabs(page, how):
    word = page.locator("article abbr[tabindex]", has_text="k3").first
    meaning = word.get_attribute("title")
    getattr(word, how)()
    shown = page.locator(".md-tooltip2")
    shown.wait_for()
    assert shown.text_content() == meaning
    assert word.get_attribute("aria-describedby") == shown.get_attribute("id")
    word.blur()
    page.mouse.move(0, 0)
    shown.wait_for(state="detached")


def test_a_word_takes_focus_once_a_page(page):
    told = page.locator("article abbr[tabindex]").all_text_contents()
    assert len(told) == len(set(told)) > 4
    assert len(told) < page.locator("article abbr").count()


COLUMNS = """(code) => {
  const style = getComputedStyle(code), line = document.createElement("span");
  line.textContent = "0".repeat(100);
  code.append(line);
  const width = line.getBoundingClientRect().width / 100;
  line.remove();
  const room = code.clientWidth - parseFloat(style.paddingLeft) * 2;
  return [parseFloat(style.fontSize), Math.floor(room / width)];
}"""


def test_code_is_read_without_scrolling(page):
    """88 columns, which is all that a block may have; 80 in a box. At 13 pixels."""
    for place, most in ((".kl-block", 88), ("details .highlight", 80)):
        code = page.locator(f"article {place} pre > code").first
        size, columns = code.evaluate(COLUMNS)
        assert size == 13
        assert columns >= most, place


def test_tables_use_the_width(page):
    width = page.locator("article").evaluate("e => e.clientWidth")
    for table in page.locator("article table").all():
        assert table.evaluate("e => e.offsetWidth") >= width - 1


def test_a_link_underlines_below_underscores(page):
    assert float(style(page, "article p a", "text-underline-offset")[:-2]) > 3.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_p_and_q_have_their_colours_everywhere(page, scheme):
    page.emulate_media(color_scheme=scheme)
    colours = []
    for letter in "pq":
        seen = {
            style(page, f"article math .kl-{letter}", "color"),
            style(page, f"article abbr.kl-{letter}", "color"),
            style(page, f".md-logo [fill*=kl-{letter}]", "fill"),
        }
        assert len(seen) == 1, seen
        colours += seen
    assert colours[0] != colours[1] != style(page, "article p a", "color")
    page.emulate_media(color_scheme="light")


def light(colour):
    """The mean of a colour's three parts, from 0 to 255."""
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


def test_paper_is_white_under_dark_ink_from_any_scheme(page):
    page.emulate_media(color_scheme="dark")
    assert light(style(page, "article", "color")) > 200
    page.emulate_media(color_scheme="dark", media="print")
    for part in ("article", "article h2", "article pre > code", "article math"):
        assert light(style(page, part, "color")) < 110, part
    assert style(page, "body", "background-color") in (
        "rgb(255, 255, 255)",
        "rgba(0, 0, 0, 0)",
    )
    page.emulate_media(color_scheme="light", media="screen")


def test_what_a_reader_asked_of_the_system_is_done(page):
    page.emulate_media(forced_colors="active", color_scheme="dark")
    assert style(page, ".kl-figure", "forced-color-adjust") == "none"
    page.emulate_media(forced_colors="none", reduced_motion="reduce")
    assert style(page, ".md-header", "transition-duration") == "0s"
    page.emulate_media(reduced_motion="no-preference", color_scheme="light")


def on_paper(browser, url):
    """The sizes of the pages that a page prints, in millimetres."""
    page = browser.new_page(color_scheme="dark")
    page.goto(url, wait_until="load")
    pdf = page.pdf(prefer_css_page_size=True)
    page.close()
    boxes = re.findall(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)\s*\]", pdf)
    return [tuple(round(float(x) * 25.4 / 72) for x in box) for box in boxes]


def test_the_cheat_sheet_is_two_sides_of_a4(browser, address):
    """And nothing leaves its column."""
    url = f"{address}reference/cheat_sheet/"
    assert on_paper(browser, url) == [(210, 297)] * 2
    page = browser.new_page(viewport={"width": 688, "height": 1017})  # 182 mm
    page.emulate_media(media="print")
    page.goto(url, wait_until="load")
    over = """boxes => boxes.filter(e => e.scrollWidth > e.clientWidth + 1)
      .map(e => e.textContent)"""
    parts = ".kl-sheet :is(.md-typeset__scrollwrap, .arithmatex, ul, p)"
    assert page.locator(parts).evaluate_all(over) == []
    page.close()


def test_the_table_of_algorithms_is_printed_across_with_all_its_columns(
    browser, address
):
    url = f"{address}algorithms/"
    assert (297, 210) in on_paper(browser, url)
    page = browser.new_page(viewport={"width": 1054, "height": 700})  # 279 mm
    page.emulate_media(media="print")
    page.goto(url, wait_until="load")
    box = page.locator(".kl-atlas table").bounding_box()
    assert box["width"] <= 1054
    page.close()


# Formulas


def room(page, tex):
    """How far apart two letters of a formula stand, in em of the formula."""
    math = tostring(mathml(tex, False), encoding="unicode")
    return page.evaluate(
        """(math) => {
          const at = document.querySelector("article p");
          at.insertAdjacentHTML("beforebegin", `<p>${math}</p>`);
          const p = at.previousElementSibling, [a, b] = p.querySelectorAll("mi, mo");
          const em = parseFloat(getComputedStyle(p.firstChild).fontSize);
          const gap = b.getBoundingClientRect().left - a.getBoundingClientRect().right;
          p.remove();
          return gap / em;
        }""",
        math,
    )


@pytest.mark.parametrize("letter", ["P", "F", "V", "T"])
def test_a_letter_that_leans_has_its_room(page, letter):
    assert room(page, f"{letter}(x)") == pytest.approx(
        float(LEANS[letter][:-2]), abs=0.02
    )
    assert room(page, "a(x)") == pytest.approx(0, abs=0.02)


def test_the_brace_below_a_formula_is_not_cut(page):
    tex = r"\underbrace{\frac{1}{Z(x)}}_{\text{normaliser}}"
    math = tostring(mathml(tex, True), encoding="unicode")
    over = page.evaluate(
        """(math) => {
          const at = document.querySelector("article p");
          const box = `<div class="arithmatex">${math}</div>`;
          at.insertAdjacentHTML("beforebegin", box);
          const div = at.previousElementSibling;
          const over = div.scrollHeight - div.clientHeight;
          div.remove();
          return over;
        }""",
        math,
    )
    assert over <= 0
