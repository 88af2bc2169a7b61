"""Figures: an Altair chart, drawn while the page is built, as inline SVG.

Colours are the custom properties of `docs/assets/site.css`. They pass through into
the SVG, so one drawing follows the light and the dark scheme.
"""

import re
from html import escape

import altair as alt
import vl_convert

P = "var(--kl-p)"
Q = "var(--kl-q)"
SERIES = [P, Q, *(f"var(--kl-{c})" for c in ("teal", "violet", "rose", "olive"))]
INK = "var(--kl-ink)"
MUTED = "var(--kl-muted)"
GRID = "var(--kl-grid)"
GOOD = "var(--kl-good)"
BAD = "var(--kl-bad)"
WIDTH = 300  # of the plotting area: with its axis a chart stays under 380

_TEXT = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12}
_CONFIG = {
    "background": None,
    "font": "system-ui, sans-serif",
    "padding": 4,
    "view": {"continuousWidth": WIDTH, "continuousHeight": 190, "stroke": None},
    "axis": _TEXT
    | {
        "domainColor": MUTED,
        "tickColor": MUTED,
        "gridColor": GRID,
        "titleFontWeight": "normal",
    },
    "legend": _TEXT | {"orient": "bottom", "title": None, "columns": 3},
    "header": _TEXT,
    "title": {
        "color": INK,
        "fontSize": 13,
        "anchor": "start",
        "offset": 10,
        "subtitleColor": MUTED,
        "subtitleFontSize": 12,
    },
    "range": {"category": SERIES},
    "line": {"strokeWidth": 2},
    "mark": {"color": P},
    "text": {"color": INK, "fontSize": 12},
    "rule": {"color": MUTED},
}


def figure(chart: alt.TopLevelMixin, description: str) -> str:
    """An HTML figure that shows a chart, with a description for who cannot see it.

    Args:
        chart: Any Altair chart. Its title says the finding.
        description: What the chart shows, in a sentence or two.

    Raises:
        ValueError: If the chart has no title, or the description is empty.
    """
    spec = chart.to_dict()
    if not spec.get("title"):
        raise ValueError("a figure needs a title that says the finding")
    if not description.strip():
        raise ValueError("a figure needs a description")
    spec["config"] = _CONFIG
    svg = vl_convert.vegalite_to_svg(spec, show_warnings=False)
    # One picture with one description: its marks are not pictures of their own.
    svg = re.sub(r' (?:role|aria-[a-z]+)="[^"]*"', "", svg)
    label = escape(description, quote=True)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return f'<figure class="kl-figure" data-search-exclude>{svg}</figure>'
