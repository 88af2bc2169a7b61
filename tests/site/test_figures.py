"""A figure is one described picture, in the site's colours, and is not searched."""

import json
import re

import altair as alt
import pytest

from extensions.figures import Q, figure

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
