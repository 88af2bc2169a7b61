"""What a first visit fetches, whether it stands still, and what it may run."""

import base64
import gzip
import hashlib
import re
from urllib.parse import urlparse

import pytest

from tests.trim_theme import OURS, UNUSED, is_used, made, trimmed

HEAVY = 1  # pages with the longest HTML, whichever they are
NAMED = ("", "quick_notes/", "algorithms/", "foundations/directions/")
COMPRESSED, LARGE = 150_000, 400_000  # bytes of a first visit
LARGE_HTML = (
    100_000  # of a page whose listings alone are more than what else it fetches
)
PACKED = (".woff2", ".png")  # compressed as they are
WIDTHS = {"phone": 390, "desktop": 1280}
VISITS = 4  # on a busy machine the first words can be there before their font
SHIFTS = """() => { window.shifted = 0;
  new PerformanceObserver(list => { for (const entry of list.getEntries())
    if (!entry.hadRecentInput) window.shifted += entry.value;
  }).observe({type: "layout-shift", buffered: true}); }"""


@pytest.fixture(scope="module")
def weighed(sites):
    """The named pages, and the heaviest ones."""
    site = sites["mkdocs"]
    by_size = sorted(site.rglob("index.html"), key=lambda page: -page.stat().st_size)
    heavy = [f"{page.parent.relative_to(site).as_posix()}/" for page in by_size[:HEAVY]]
    return list(dict.fromkeys([*NAMED, *heavy]))


def visit(browser, site, address, page, width):
    """What a first visit fetches, as it is and as a server sends it, and what moves."""
    size = {"width": width, "height": 800}
    context = browser.new_context(viewport=size, has_touch=width < 500)
    context.add_init_script(f"({SHIFTS})()")
    tab = context.new_page()
    asked = {}
    context.on("request", lambda request: asked.setdefault(request.url, request))
    tab.goto(address + page, wait_until="networkidle")
    plain = packed = 0
    for url in asked:
        if not url.startswith(address):
            assert url.startswith("data:"), f"{page} asks {url}"
            continue
        file = site / urlparse(url).path.lstrip("/")
        data = (file / "index.html" if file.is_dir() else file).read_bytes()
        plain += len(data)
        packed += len(data if file.suffix in PACKED else gzip.compress(data))
    shifted = tab.evaluate("window.shifted")
    context.close()
    return plain, packed, shifted


@pytest.mark.timeout(1200)  # may have to build the whole site first
@pytest.mark.parametrize("device", WIDTHS)
def test_a_first_visit_is_light_and_still(browser, sites, address, weighed, device):
    site = sites["mkdocs"]
    for page in weighed:
        for _ in range(VISITS):
            plain, packed, moved = visit(browser, site, address, page, WIDTHS[device])
            if not moved:
                break
        html = (site / page / "index.html").stat().st_size
        assert packed <= COMPRESSED, (page, packed)
        assert plain <= LARGE + max(0, html - LARGE_HTML), (page, plain)
        assert moved == 0, (page, moved)


def test_every_script_inside_a_page_is_allowed_by_its_hash(sites):
    site, seen = sites["mkdocs"], set()
    for file in site.rglob("*.html"):
        html = file.read_text("utf-8")
        scripts = re.findall(
            r"<script(?![^>]*(?:src|type)=)[^>]*>(.*?)</script>", html, re.DOTALL
        )
        if file.name == "404.html":
            assert not scripts
            continue
        policy = re.search(r'"Content-Security-Policy" content="([^"]+)"', html)[1]
        allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
        hashes = set(re.findall(r"'sha256-([^']+)'", allowed["script-src"]))
        assert "unsafe" not in allowed["script-src"]
        assert allowed["default-src"] == "'self'"  # Firefox fetches the next page
        found = {
            base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            for script in scripts
        }
        assert found <= hashes, file
        assert not re.search(r"<[^>]+\son\w+=|href=.javascript:", html), file
        seen |= found
    assert seen == hashes  # none is allowed in vain


def test_a_script_that_is_not_ours_does_not_run(browser, address):
    tab = browser.new_page()
    said = []
    tab.on("console", lambda message: said.append(message.text))
    tab.goto(address, wait_until="load")
    tab.evaluate("""() => {
      const script = document.createElement("script");
      script.textContent = "window.ran = true";
      document.body.append(script);
    }""")
    assert tab.evaluate("window.ran") is None
    assert any("Content Security Policy" in text for text in said)
    tab.close()


def test_the_page_for_no_page_leads_to_this_site_from_any_address(sites):
    html = (sites["mkdocs"] / "404.html").read_text("utf-8")
    links = re.findall(r'(?:href|src|action)="([^"]*)"', html)
    assert links
    for link in links:
        assert link.startswith("http://127.0.0.1:8000/"), link  # site_url, by default


def test_no_page_names_a_path_of_the_machine_that_built_it(sites):
    for engine, site in sites.items():
        for file in (*site.rglob("*.html"), *site.rglob("*.json")):
            text = file.read_text("utf-8")
            for place in (str(site), "/site-packages/", "/home/", "/tmp/"):
                assert place not in text, (engine, file, place)


def test_the_stylesheets_are_the_theme_s_less_what_is_left_out():
    assert {path: path.read_text("utf-8") for path in OURS.iterdir()} == made()


def test_no_page_uses_a_style_that_is_left_out(sites):
    for file in sites["mkdocs"].rglob("*.html"):
        used = re.findall(r'class="([^"]*)"', file.read_text("utf-8"))
        classes = {name for names in used for name in names.split()}
        assert not [name for name in classes if UNUSED.fullmatch(name)], file


@pytest.mark.parametrize(
    ("selector", "used"),
    [
        (".md-nav__link", True),
        (".md-grid", True),
        (".md-typeset .grid", False),
        (".md-typeset :is(.note,.bug)>p", True),
        (".md-typeset :is(.bug,.quote)>p", False),
        (".md-search:not(.md-tag)", True),
        ("[dir=rtl] .md-nav", False),
    ],
)
def test_a_selector_is_used_if_something_can_fit_it(selector, used):
    assert is_used(selector) is used


def test_rules_keep_their_order_and_their_conditions():
    css = '@charset "u";a,.bug{b:"}"}@media print{.bug{c:d}}@media x{i{j:url(data:;{)}}'
    assert trimmed(css) == '@charset "u";a{b:"}"}@media x{i{j:url(data:;{)}}'
