"""The search box finds what people ask, in their words; until then it costs nothing."""

from pathlib import Path

import pytest

QUESTIONS = dict(
    line.split(" => ")
    for line in (Path(__file__).parent / "questions.txt").read_text("utf-8").split("\n")
    if line and not line.startswith("#")
)
INDEX = "search/search_index.json"
# Puts a question into the box, and reads the list once it was written again.
ASK = """async (question) => {
  const box = document.querySelector(".md-search__input");
  const list = document.querySelector(".md-search-result__list");
  const shown = () => [...list.querySelectorAll(".md-search-result__item")].map(
    item => [...item.querySelectorAll("a.md-search-result__link")].map(a => a.href));
  const answered = new Promise(done => {
    new MutationObserver((_, observer) => {
      if (!list.children.length) return;
      observer.disconnect();
      setTimeout(() => done(shown()));
    }).observe(list, {childList: true});
  });
  list.replaceChildren();
  box.value = question;
  box.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}));
  return answered;
}"""


@pytest.fixture(scope="module")
def page(browser, address):
    """The home page in a browser, and what it asked the server for."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address, wait_until="networkidle")
    yield page
    context.close()


def hits(page, text):
    """What the box lists, if this stands in it."""
    return page.locator("a.md-search-result__link:visible").filter(has_text=text)


@pytest.mark.timeout(1200)  # may have to build the whole site first
def test_the_index_is_fetched_when_somebody_types_and_not_before(page):
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "query"
    assert not any(INDEX in url for url in page.asked)
    with page.expect_request(lambda request: INDEX in request.url):
        page.keyboard.type("neg")
    hits(page, "negative").first.wait_for()


def test_a_hit_shows_a_sentence_and_marks_the_words(page):
    page.keyboard.press("Control+A")
    page.keyboard.type("conjugate gradient negative curvature nan")
    hit = hits(page, "Without damping, conjugate gradients").first
    hit.wait_for()
    assert hit.locator("mark").count() >= 2
    assert hit.locator("article > p").inner_text().endswith((".", "…"))
    assert hit.locator("pre, code").count() == 0


def test_enter_opens_the_first_hit(page):
    first = page.locator(".md-search-result__item a").nth(1).get_attribute("href")
    page.keyboard.press("Enter")
    page.wait_for_url(first)
    page.go_back()


def places(found, address):
    """The pages, and below each the headings, that the first three results link."""
    for hit in found[:3]:
        for url in hit:
            place, _, heading = url.removeprefix(address).partition("#")
            place = place.strip("/") or "index"
            yield from (place, f"{place}#{heading}")


def test_an_address_with_a_question_is_answered(page, address):
    """As the page that says that there is no page sends it."""
    other = page.context.new_page()
    other.goto(f"{address}?q=Rao-Blackwell")
    hits(other, "Rao").first.wait_for()
    other.close()


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_finds_its_page_among_the_first_three(page, address, question):
    found = list(places(page.evaluate(ASK, question), address))
    assert set(QUESTIONS[question].split()) & set(found), found


def test_every_answer_is_there(sites):
    for answer in sorted(
        {a for answers in QUESTIONS.values() for a in answers.split()}
    ):
        place, _, heading = answer.partition("#")
        page = sites["mkdocs"] / place.removesuffix("index") / "index.html"
        assert not heading or f'id="{heading}"' in page.read_text("utf-8"), answer
        assert page.exists(), answer
