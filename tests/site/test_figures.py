"""A figure is one described picture, in the site's colours, and is not searched."""

import json
import re

import altair as alt
import pytest

from extensions.figures import Q, figure, lines

POINTS = alt.Data(values=[{"x": 0.25, "y": 1}, {"x": 0.75, "y": 2}])
CHART = alt.Chart(POINTS, title="It rises").mark_line(color=Q).encode(x="x:Q", y="y:Q")

PAGE = """# Page

Words before.

```python source=""
import altair as alt
from extensions.figures import figure

points = alt.Data(values=[{"x": 0.25, "y": 1}, {"x": 0.75, "y": 2}])
chart = alt.Chart(points, title="It rises").mark_line().encode(x="x:Q", y="y:Q")
print(figure(chart, "A line that rises."))
```

Words after.
"""


def test_it_is_one_picture_with_one_description():
    html = figure(CHART, 'A "line" & more')
    assert re.findall(r'role="(\w+)"', html) == ["img"]
    labels = re.findall(r'aria-label="([^"]*)"', html)
    assert labels == ["A &quot;line&quot; &amp; more"]


def test_colours_follow_the_scheme():
    html = figure(CHART, "A line.")
    assert 'stroke="var(--kl-q)"' in html
    assert "var(--kl-ink)" in html
    assert not re.search(r'(?:stroke|fill)="(?:#|black|white|rgb)', html)


def test_it_says_the_finding_and_is_described():
    with pytest.raises(ValueError, match="needs a title that says the finding"):
        figure(alt.Chart(POINTS).mark_line().encode(x="x:Q"), "A line.")
    with pytest.raises(ValueError, match="needs a description"):
        figure(CHART, " ")


def test_its_labels_are_not_searched(project):
    build = project.build(PAGE)
    assert "It rises" in build.article()
    index = json.loads((build.site / "search/search_index.json").read_text("utf-8"))
    texts = " ".join(entry["text"] for entry in index["docs"])
    assert "Words before." in texts
    assert "Words after." in texts
    assert "It rises" not in texts


ROWS = [
    {"step": 10.0**k, "nats": value * 10.0 ** (2 * k), "of": name}
    for name, value in {"KL(old ‖ new)": 1.0, "the other direction": 1.02}.items()
    for k in range(-3, 1)
]


def drawn(rows, **options):
    """A figure of lines of these rows."""
    named = {"x": "step", "y": "nats", "title": "Slope two", "description": "Lines."}
    return lines(rows, **named, **options)


def test_lines_are_named_at_their_ends_in_their_colours():
    html = drawn(ROWS, series="of", log_x=True, log_y=True, colours=[Q, "var(--kl-p)"])
    assert re.findall(r'<path[^>]*stroke="(var[^"]*)"', html)[-2:] == [
        "var(--kl-q)",
        "var(--kl-p)",
    ]
    first = html[: html.index("KL(old ‖ new)")].rindex("<text")
    assert 'fill="var(--kl-q)"' in html[first:]
    assert "the other" in html
    assert "direction" in html
    assert ">step<" in html
    assert ">nats<" in html


def test_names_of_lines_do_not_cover_each_other():
    html = drawn(ROWS, series="of", log_x=True, log_y=True)
    moved = r"translate\([-\d.]+,([-\d.]+)\)"
    at = [
        float(re.findall(moved, html[: html.index(name)])[-1])
        for name in ("the other", "KL(old ‖ new)")
    ]
    assert abs(at[1] - at[0]) >= 14


def test_one_line_needs_no_name():
    assert "Slope two" in drawn(ROWS[:4])


@pytest.mark.parametrize("kind", [str, list, dict])
def test_a_title_is_no_wider_than_a_phone(kind):
    words = "A finding stands alone, and may have more words than a phone has room for"
    parts = [words[:47], words[48:]]
    title = {str: words, list: parts, dict: {"text": words, "subtitle": words}}[kind]
    html = figure(CHART.properties(title=title), "A line.")
    texts = [line for line in re.findall(r">([^<>]+)<", html) if len(line) > 12]
    assert " ".join(texts).count(words) == (2 if kind is dict else 1)
    assert max(map(len, texts)) <= 42


def moved(bind, value=2, says=str):
    """A figure with one control."""
    k = alt.param("k", value, bind)
    chart = CHART.transform_filter("datum.y <= k").add_params(k)
    return figure(chart, "A line.", says)


def test_options_become_a_slider_or_a_list_and_what_they_say_is_kept():
    options = {"options": [1, 2], "labels": ["one", "two < 3"], "name": "how many"}
    slider, choice = (
        moved(bind(**options), says=lambda k: f"{k} & more")
        for bind in (alt.binding_radio, alt.binding_select)
    )
    assert '<label>how many <input type="range" max="1" value="1"' in slider
    assert 'aria-valuetext="two &lt; 3"' in slider
    assert "<option>one</option><option selected>two &lt; 3</option>" in choice
    assert '<output class="kl-says">2 &amp; more</output>' in slider
    data = json.loads(re.search(r"<template>(.*)</template>", slider)[1])
    assert data["says"] == ["1 & more", "2 & more"]
    assert data["moves"] == [["k", [1, 2], ["one", "two < 3"]]]
    assert data["spec"]["params"] == [{"name": "k", "value": 2}]


def test_a_value_that_is_none_of_the_options_or_no_number_is_refused():
    with pytest.raises(ValueError, match="3 is not in list"):
        moved(alt.binding_radio(options=[1, 2], name="k"), value=3)
    with pytest.raises(ValueError, match="not JSON compliant"):
        moved(alt.binding_radio(options=[2, float("inf")], name="k"))
