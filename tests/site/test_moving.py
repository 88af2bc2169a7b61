"""Figures that move show what the snippets say: by mouse, touch and keyboard."""

import functools
import http.server
import json
import re
import shutil
import threading

import pytest
import torch
import vl_convert
from torch import tensor

from snippets.algorithms.regularised.optimal_policy import optimal_policy
from snippets.algorithms.trust_region.adaptive_rate import adapt_rate
from snippets.algorithms.trust_region.ppo_clip import clipped_surrogate_loss
from snippets.estimate.estimators import k1
from snippets.exact.categorical import kl_divergence_logits
from snippets.exact.gaussian import kl_gaussian
from snippets.foundations.directions import window_logits
from tests.site.conftest import ROOT, Project, Quiet

PAGES = sorted(
    page.relative_to(ROOT / "docs").as_posix()
    for page in (ROOT / "docs").rglob("*.md")
    if "text, says))" in page.read_text("utf-8")
)
RUNS = re.compile(r'(?:```python source=""\n(?:(?!```).*\n)+```\n\n?)+')


def moving(page):
    """The hidden blocks of a page that draw its figures that move."""
    runs = RUNS.findall((ROOT / "docs" / page).read_text("utf-8") + "\n")
    return "\n".join(run for run in runs if "text, says))" in run)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site of these blocks alone: they need nothing of the rest of their pages."""
    project = Project(tmp_path_factory.mktemp("moving"))
    shutil.rmtree(project.folder / "snippets")
    (project.folder / "snippets").symlink_to(ROOT / "snippets")
    build = project.build({page: f"# Page\n\n{moving(page)}" for page in PAGES})
    assert build.status == 0, build.output
    return build.site


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def tab(browser):
    """A tab in which nothing fails."""
    page = browser.new_page()
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda m: m.type == "error" and faults.append(m.text))
    yield page
    page.close()
    assert faults == []


def place(page):
    return page.removesuffix(".md").removesuffix("index")


def html(site, page):
    return (site / place(page) / "index.html").read_text("utf-8")


def put(figure, label, value):
    """Move a control by keyboard until it says this."""
    control = figure.get_by_role("slider", name=label, exact=True)
    control = control.or_(figure.get_by_role("combobox", name=label, exact=True))
    control.focus()
    if control.evaluate("e => e.tagName") == "SELECT":
        control.select_option(label=value)
        return
    control.press("Home")
    for _ in range(int(control.get_attribute("max"))):
        if control.get_attribute("aria-valuetext") == value:
            break
        control.press("ArrowRight")
    assert control.get_attribute("aria-valuetext") == value
    assert value in control.locator("xpath=ancestor::p").inner_text()


def numbers(text):
    text = re.sub(r"k[123]|(?<=\d),(?=\d{3})", "", text)
    return [float(x) for x in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def of_the_optimal_policy():
    ref, r = tensor([0.8, 0.2]).double().log(), tensor([0.0, 1.0]).double()
    ends = [optimal_policy(ref_logits=ref, rewards=r, beta=b) for b in (1.0, 0.4)]
    kl = kl_divergence_logits(ends[0], ref)
    return [ends[0][1].exp(), kl, -ref[1], 0.4, ends[1][1].exp()]


def of_two_kls():
    r, ref = tensor([[0.0, 0.2, 0.5, 1.0], [1.5, 0.5, 0.0, -1.0]]).double()
    return [None, None, *[kl_divergence_logits(ref + r / 0.5, ref)] * 2]


def of_directions(width):
    """The best forward fit of all lanes and widths on a grid; one mode is log 2."""
    two = window_logits(tensor([6.0, 18.0]).double(), tensor([width] * 2).double(), 25)
    target = two.softmax(-1).mean(0).log()
    lanes = torch.linspace(11, 13, 21).double().repeat_interleave(200)
    widths = torch.linspace(4, 9, 200).double().repeat(21)
    fits = window_logits(lanes, widths, 25)
    ahead = kl_divergence_logits(target.expand_as(fits), fits)
    back = kl_divergence_logits(fits[ahead.argmin()], target)
    one = kl_divergence_logits(target, two[0])
    return [ahead.min(), back, one, tensor(2.0).log()]


def of_ppo(advantage, ratio):
    rho = tensor(ratio, requires_grad=True)
    sizes = {"advantages": tensor(advantage), "clip_low": 0.2, "clip_high": 0.2}
    new = {"new_log_probs": rho.log(), "old_log_probs": tensor(0.0)}
    loss = clipped_surrogate_loss(**new, **sizes)
    return [-loss.detach(), -torch.autograd.grad(loss, rho)[0]]


def of_the_stop():
    """Mean and error of k1 by enumeration, and the normal share above the stop."""
    old = torch.zeros(6).double().log_softmax(-1)
    new = (old + 0.2072 * torch.linspace(1, -1, 6)).log_softmax(-1)
    each, exact = k1(old, new), kl_divergence_logits(old, new)
    error = ((old.exp() @ (each - exact).square()) / 64).sqrt()
    above = 1 - torch.distributions.Normal(exact, error).cdf(tensor(0.015))
    below = torch.distributions.Normal(exact, error).cdf(tensor(0.0))
    return [exact, error, 100 * below, 0.015, 100 * above, 100, 32]


def of_the_rate():
    rate, kls = 3e-4, []
    std, mean = torch.full((8,), 0.1).double(), torch.zeros(8).double()
    for _ in range(50):
        kls.append(kl_gaussian(mean, std, mean + 10 * rate, std).item())
        rate = adapt_rate(rate, kls[-1], 0.008, 1e-6, 1e-2)
    return [20, min(kls[-20:]), max(kls[-20:]), 20, 0.004, 0.016]


def of_off_policy():
    old = tensor([0.6, 0.3, 0.0, -1.0]).double().log_softmax(-1)
    new = (old + 0.2 * tensor([1.0, -1, 1, -1])).log_softmax(-1)
    square = (2 * new - old).exp().sum()
    return [30 * kl_divergence_logits(old, new), 30, 1024, 1024 / square**30]


def of_estimators():
    one, zero = torch.ones(1).double(), torch.zeros(1).double()
    kl = kl_gaussian(zero, one, zero + 1, one * 0.85)
    return [kl, kl, None, None, None, kl, None]


def of_placement():
    """The end of k3 in the loss, β ref / (λ - r), and the optimal policy."""
    ref, r = tensor([0.6, 0.3, 0.1]).double(), tensor([0.0, 0.5, 1.0]).double()
    low, high = 1.0, 3.0
    for _ in range(60):
        middle = (low + high) / 2
        more = (ref / (middle - r)).sum() > 1
        low, high = (middle, high) if more else (low, middle)
    end = ref / (low - r)
    best = optimal_policy(ref_logits=ref.log(), rewards=r, beta=1.0)
    return [*end, *best.exp(), kl_divergence_logits(end.log(), best)]


REGULAR, TRUST = "algorithms/regularised/", "algorithms/trust_region/"
CASES = [  # page, which of its figures, how it is moved, what it then says, how exactly
    (REGULAR + "optimal_policy.md", 0, {"β": "1.0"}, of_the_optimal_policy, 0.006),
    ("foundations/two_kls.md", 0, {"updates": "100"}, of_two_kls, 0.001),
    (
        "foundations/directions.md",
        0,
        {"distance": "12", "width of a mode": "1.0"},
        lambda: of_directions(1.0),
        0.02,
    ),
    (
        "index.md",
        0,
        {"distance of the two good actions": "12"},
        lambda: of_directions(1.5),
        0.03,
    ),
    (
        TRUST + "ppo_clip.md",
        0,
        {"advantage A": "−1", "ratio ρ": "0.5"},
        lambda: of_ppo(-1.0, 0.5),
        0.006,
    ),
    (TRUST + "ppo_clip.md", 1, {"minibatch": "64"}, of_the_stop, 3),
    (
        TRUST + "adaptive_rate.md",
        0,
        {"target": "0.008", "band": "2.0", "delay": "0", "fault at 25": "none"},
        of_the_rate,
        0.0001,
    ),
    (
        "estimate/off_policy.md",
        0,
        {"KL per token": "0.0181", "tokens": "30"},
        of_off_policy,
        0.6,
    ),
    (
        "estimate/estimators.md",
        0,
        {"width of Q / P": "0.85", "shift of Q": "1.0"},
        of_estimators,
        0.1,
    ),
    ("estimate/placement.md", 0, {"β": "1.0"}, of_placement, 0.006),
]


@pytest.mark.parametrize(
    ("page", "which", "moves", "expected", "apart"),
    CASES,
    ids=[f"{case[0]}-{case[1]}" for case in CASES],
)
def test_a_moved_figure_says_the_number_of_the_snippet(
    tab, address, page, which, moves, expected, apart
):
    """Apart is what is printed of it, or the noise of what is sampled."""
    tab.goto(address + place(page))
    figure = tab.locator("figure:has(.kl-moves)").nth(which)
    still = figure.locator("svg").inner_html()
    for label, value in moves.items():
        put(figure, label, value)
    figure.locator(".vega-embed svg").wait_for()
    said = numbers(figure.locator(".kl-says").inner_text())
    right = expected()
    assert len(said) == len(right), said
    for ours, theirs in zip(said, right, strict=True):
        assert theirs is None or abs(ours - float(theirs)) <= apart, (said, right)
    tab.wait_for_timeout(50)
    assert figure.locator("svg").inner_html() != still


def test_nothing_is_fetched_until_a_reader_reaches_for_a_control(tab, address):
    asked = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(address + place(PAGES[0]))
    tab.mouse.wheel(0, 300)
    tab.wait_for_load_state("networkidle")
    assert not [url for url in asked if "vega" in url]
    tab.locator(".kl-moves input").first.hover()
    tab.locator(".vega-embed svg").first.wait_for()
    assert [url for url in asked if "vega" in url] == [f"{address}assets/vega.js"]


def test_a_mouse_and_a_finger_move_it(browser, address):
    for touch in (False, True):
        page = browser.new_page(
            viewport={"width": 360, "height": 740}, has_touch=touch, is_mobile=touch
        )
        page.goto(f"{address}algorithms/regularised/optimal_policy/")
        slider = page.get_by_label("β", exact=True)
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        assert box["height"] >= 24  # what WCAG 2.2 asks of a target
        at = box["x"] + box["width"] - 3, box["y"] + box["height"] / 2
        (page.touchscreen.tap if touch else page.mouse.click)(*at)
        assert slider.get_attribute("aria-valuetext") == "0.01"
        assert "Right 1.0000" in page.locator(".kl-says").inner_text()
        over = "document.documentElement.scrollWidth - innerWidth"
        assert page.evaluate(over) <= 0
        page.close()


def test_numbers_move_where_vega_cannot_be_fetched(browser, address):
    page = browser.new_page()
    page.route("**/vega.js", lambda route: route.abort())
    page.goto(f"{address}algorithms/regularised/optimal_policy/")
    put(page.locator("figure"), "β", "1.0")
    assert "Right 0.4046" in page.locator(".kl-says").inner_text()
    assert page.locator("figure > svg").is_visible()
    page.close()


def test_it_follows_the_scheme_and_is_one_picture(tab, address):
    tab.goto(address + place(PAGES[0]))
    described = tab.locator("figure svg").get_attribute("aria-label")
    tab.locator(".kl-moves input").first.focus()
    tab.locator(".vega-embed svg").wait_for()
    assert tab.locator('figure [role="img"]').get_attribute("aria-label") == described
    ink = "getComputedStyle(document.querySelector('.vega-embed text')).fill"
    light = tab.evaluate(ink)
    tab.evaluate("document.body.dataset.mdColorScheme = 'slate'")
    assert tab.evaluate(ink) != light


def test_without_scripts_a_still_picture_and_its_numbers_remain(browser, address):
    page = browser.new_page(java_script_enabled=False)
    page.goto(f"{address}algorithms/regularised/optimal_policy/")
    assert page.locator("figure > svg").is_visible()
    assert page.locator(".kl-says").is_visible()
    page.close()


@pytest.mark.parametrize("page", PAGES)
def test_a_figure_brings_at_most_30_kilobytes(site, page):
    for data in re.findall(r"<template>(.*?)</template>", html(site, page)):
        assert len(data.encode()) <= 30_720
        assert set(json.loads(data)) == {"moves", "says", "spec"}


def test_eight_figures_move_and_one_on_the_home_page():
    assert {case[0] for case in CASES} == set(PAGES)
    assert "index.md" in PAGES
    assert len(PAGES) > 8


def test_the_runtime_is_the_one_that_drew_the_still_picture():
    """As CONTRIBUTING says how to write it again."""
    runtime = (ROOT / "docs/assets/vega.js").read_text("utf-8")
    assert runtime == vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;")
