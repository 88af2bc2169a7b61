"""The atlas, its pages, its code and its tests say the same."""

import ast
import importlib
import inspect
import re
import shutil
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import sync_playwright

import snippets

ROOT = Path(snippets.__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "algorithms").rglob("*.md"))
NAMES = {
    "new", "old", "ref", "average", "target", "optimum", "behaviour", "uniform",
    "prior", "posterior", "teacher", "student", "mixture", "best-of-n",
}  # fmt: skip
ESTIMATES = {
    "exact", "k1", "k2", "k3", "quadratic", "implicit", "bound", "sampled",
}  # fmt: skip
PLACES = {
    "objective", "loss", "reward", "constraint", "projection", "diagnostic",
    "learning rate", "early stop", "target", "none",
}  # fmt: skip
TEXTS = {
    "algorithm", "p", "q", "samples", "estimate", "enters", "sign", "unit", "default",
    "source", "code", "test",
}  # fmt: skip


def matter(page):
    return yaml.safe_load(page.read_text("utf-8").split("---")[1])


ROWS = [(page, row) for page in PAGES for row in matter(page).get("atlas", [])]
FAMILIES = [page for page in PAGES if page.stem != "index"]
each_row = pytest.mark.parametrize(
    ("page", "row"), ROWS, ids=[row["algorithm"] for _, row in ROWS]
)


@pytest.mark.parametrize("page", FAMILIES, ids=lambda page: page.stem)
def test_every_page_has_a_row(page):
    assert matter(page).get("atlas")


def test_no_algorithm_has_two_rows():
    names = [row["algorithm"] for _, row in ROWS]
    assert len(set(names)) == len(names)


@each_row
def test_a_row_is_complete(page, row):
    assert set(row) == TEXTS | {"verified"}, page
    assert all(isinstance(row[key], str) and row[key].strip() for key in TEXTS)
    assert isinstance(row["verified"], bool)


@each_row
def test_a_row_uses_the_known_words(page, row):
    assert {row["p"], row["q"]} <= NAMES, page
    assert row["p"] != row["q"]
    assert re.match(r"[\w]+", row["estimate"])[0] in ESTIMATES
    assert row["enters"] in PLACES


def function_of(row):
    module, name = row["code"].split(":")
    return getattr(importlib.import_module(f"snippets.{module}"), name)


@each_row
def test_the_function_exists_and_its_page_calls_it(page, row):
    assert inspect.isfunction(function_of(row))
    assert row["code"].split(":")[1] in page.read_text("utf-8")


@each_row
def test_a_function_of_two_policies_takes_p_first_or_both_by_name(page, row):
    parameters = inspect.signature(function_of(row)).parameters
    names = list(parameters)
    sides = [[x for x in names if x.startswith(f"{row[side]}_")] for side in "pq"]
    if all(sides):
        kinds = {parameters[x].kind for side in sides for x in side}
        assert kinds == {inspect.Parameter.KEYWORD_ONLY}, page


@each_row
def test_the_test_exists(page, row):
    inside = page.relative_to(ROOT / "docs")
    file = ROOT / "tests" / inside.parent / f"test_{inside.stem}.py"
    tree = ast.parse(file.read_text("utf-8"))
    tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert row["test"] in tests, page


@each_row
def test_what_could_not_be_checked_is_said(page, row):
    said = "unverified here" in page.read_text("utf-8")
    assert row["verified"] or said


def test_every_page_is_in_the_navigation():
    listed = re.findall(
        r"- algorithms/(\S+\.md)", (ROOT / "mkdocs.yml").read_text("utf-8")
    )
    inside = [page.relative_to(ROOT / "docs/algorithms").as_posix() for page in PAGES]
    assert sorted(listed) == sorted(inside)


TABLE = """<title>Atlas</title><div class="kl-atlas"><table>
<thead><tr><th>Algorithm</th><th>P</th><th>Averaged over</th><th>Limit</th></tr></thead>
<tbody>
<tr><td>TRPO</td><td>old</td><td>states of old</td><td>10, in SB3</td></tr>
<tr><td>ACER</td><td>average</td><td>the threshold</td><td>9</td></tr>
<tr><td>PPO</td><td>old</td><td>new states</td><td>100</td></tr>
</tbody></table></div>"""
ADDRESS = "http://atlas.test/"


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a small table at an address, with the script of the atlas."""
    page = browser.new_page()
    page.route("**", lambda route: route.fulfill(body=TABLE, content_type="text/html"))

    def opened(asked=""):
        page.goto(f"{ADDRESS}{asked}")
        page.add_script_tag(content=SCRIPT)
        return page

    yield opened
    page.close()


SCRIPT = (ROOT / "docs" / "assets" / "atlas.js").read_text("utf-8")


def of(page, column):
    """The filter of a column."""
    return page.get_by_role("combobox", name=column, exact=True)


def visible(page):
    return page.locator("tbody tr:visible td:first-child").all_inner_texts()


def test_a_heading_sorts_and_says_so(opened):
    page = opened()
    head = page.locator("th").last
    assert head.get_attribute("aria-sort") == "none"
    button = page.get_by_role("button", name="Limit")
    button.focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert visible(page) == ["ACER", "TRPO", "PPO"]  # 9, 10, 100: as numbers
    button.click()
    assert head.get_attribute("aria-sort") == "descending"
    assert visible(page) == ["PPO", "TRPO", "ACER"]
    page.get_by_role("button", name="Algorithm").click()
    assert head.get_attribute("aria-sort") == "none"


def test_a_filter_of_a_column_hides_rows_and_counts_them(opened):
    page = opened()
    of(page, "P").select_option("old")
    assert visible(page) == ["TRPO", "PPO"]
    assert page.get_by_role("status").inner_text() == "2 of 3 rows"
    of(page, "Sampler").select_option("old")
    assert visible(page) == ["TRPO"]  # "old" is no part of "threshold"
    of(page, "Sampler").select_option("")
    assert visible(page) == ["TRPO", "PPO"]


def test_a_filter_offers_what_occurs_and_is_left_out_if_that_is_one_thing(opened):
    page = opened()
    offered = of(page, "Sampler").locator("option").all_inner_texts()
    assert offered == ["any", "old", "new"]
    assert of(page, "Library").count() == 0


def test_words_anywhere_in_a_row_find_it(opened):
    page = opened()
    field = page.get_by_role("searchbox", name="Show rows with")
    field.fill("10 pp")
    assert visible(page) == ["PPO"]
    field.fill("")
    assert len(visible(page)) == 3


def test_the_address_keeps_filters_and_order(opened):
    page = opened()
    of(page, "P").select_option("old")
    for _ in range(2):
        page.get_by_role("button", name="Algorithm").click()
    assert page.url == f"{ADDRESS}?P=old&sort=-Algorithm"
    again = opened("?P=old&sort=-Algorithm")
    assert visible(again) == ["TRPO", "PPO"]
    assert again.locator("th").first.get_attribute("aria-sort") == "descending"
    assert of(again, "P").input_value() == "old"
    of(again, "P").select_option("")
    assert again.url == f"{ADDRESS}?sort=-Algorithm"


def test_the_script_enhances_a_table_once(opened):
    page = opened()
    page.add_script_tag(content=SCRIPT)
    assert page.get_by_role("searchbox").count() == 1
