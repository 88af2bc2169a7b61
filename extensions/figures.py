"""Figures: an Altair chart, drawn while the page is built, as inline SVG.

Colours are the custom properties of `docs/assets/site.css`. They pass through into
the SVG, so one drawing follows the light and the dark scheme.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import product
from textwrap import wrap
from typing import Any

import altair as alt

from extensions.sessions import draw

SERIES = [f"var(--kl-{c})" for c in ("p", "q", "teal", "violet", "rose", "olive")]
P, Q = SERIES[:2]
INK, MUTED, GRID = (f"var(--kl-{c})" for c in ("ink", "muted", "grid"))
GOOD, BAD = "var(--kl-good)", "var(--kl-bad)"
WIDTH, HEIGHT = 300, 190  # of the plotting area: with its axis a chart is under 380

_LINE = 14  # the height of a line of text
_TEXT = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12}
_AXIS = {"domainColor": MUTED, "tickColor": MUTED, "gridColor": GRID}
_TITLE = {"color": INK, "fontSize": 13, "anchor": "start", "offset": 10}
_CONFIG = {
    "background": None,
    "font": "system-ui, sans-serif",
    "padding": 4,
    "view": {"continuousWidth": WIDTH, "continuousHeight": HEIGHT, "stroke": None},
    "axis": _TEXT | _AXIS | {"titleFontWeight": "normal"},
    "legend": _TEXT | {"orient": "bottom", "title": None, "columns": 3},
    "header": _TEXT,
    "title": _TITLE | {"subtitleColor": MUTED, "subtitleFontSize": 12},
    "range": {"category": SERIES},
    "line": {"strokeWidth": 2},
    "mark": {"color": P},
    "text": {"color": INK, "fontSize": 12, "lineHeight": _LINE},
    "rule": {"color": MUTED},
}


def figure(
    chart: alt.TopLevelMixin, description: str, says: Callable[..., str] | None = None
) -> str:
    """An HTML figure that shows a chart, with a description for who cannot see it.

    Args:
        chart: Any Altair chart. Its title says the finding. A parameter that is bound
            to options is a control: a slider for "radio", a list for "select".
        description: What the chart shows, in a sentence or two.
        says: The numbers of a setting in words, from the values of the parameters.

    Raises:
        ValueError: If the chart has no title, or the description is empty.
    """
    spec = chart.to_dict()
    if not spec.get("title"):
        raise ValueError("a figure needs a title that says the finding")
    if not description.strip():
        raise ValueError("a figure needs a description")
    spec["config"] = _CONFIG
    spec["title"] = _wrapped(spec["title"])
    controls = _controls(spec, says) if says else ""
    label = escape(description, quote=True)
    # One picture with one description: its marks are not pictures of their own.
    svg = re.sub(r' (?:role|aria-[a-z]+)="[^"]*"', "", draw(spec))
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return f'<figure class="kl-figure" data-search-exclude>{svg}{controls}</figure>'


def _wrapped(title: Any) -> Any:
    """A title, and its subtitle, in lines that a phone shows."""
    if isinstance(title, dict):
        words = {"text", "subtitle"}
        return {k: _wrapped(x) if k in words else x for k, x in title.items()}
    texts = [title] if isinstance(title, str) else title
    return texts if max(map(len, texts)) <= 42 else wrap(" ".join(texts), 42)


def _controls(spec: dict[str, Any], says: Callable[..., str]) -> str:
    """The controls of a chart, what it says, and what `moving.js` needs of it."""
    html, moves, start = "", [], [parameter["value"] for parameter in spec["params"]]
    for parameter in spec["params"]:
        bind = parameter.pop("bind")
        labels = [str(x) for x in bind.get("labels") or bind["options"]]
        moves.append((parameter["name"], bind["options"], labels))
        at = bind["options"].index(parameter["value"])
        now = escape(labels[at])
        control = (
            f'<input type="range" max="{len(labels) - 1}" value="{at}" '
            f'aria-valuetext="{now}"></label><output aria-live="off">{now}</output>'
        )
        if bind["input"] == "select":
            shown = "".join(f"<option>{escape(x)}</option>" for x in labels)
            shown = shown.replace(f"<option>{now}<", f"<option selected>{now}<")
            control = f"<select>{shown}</select></label>"
        html += f"<p><label>{bind['name']} {control}</p>"
    texts = [says(*setting) for setting in product(*(move[1] for move in moves))]
    data = {"moves": moves, "says": texts, "spec": spec}
    known = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    known = known.replace("<", r"\u003c").replace("&", r"\u0026")
    return (
        f'<div class="kl-moves">{html}</div>'
        f'<output class="kl-says">{escape(says(*start))}</output>'
        f"<template>{known}</template>"  # a script would be run where pages are swapped
    )


def lines(
    rows: Iterable[Mapping[str, Any]],
    *,
    x: str,
    y: str,
    title: str | list[str],
    description: str,
    series: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
    colours: Sequence[str] = SERIES,
) -> str:
    """A figure of lines, each with its name at its right end: `print` it.

    Each row is a point; `x`, `y` and `series` are its keys, the first two also the
    titles of the axes. `title` is the finding, `description` says what is to be seen.
    """
    points: list[dict[str, Any]] = [
        {"x": _short(row[x]), "y": _short(row[y]), "of": row[series] if series else ""}
        for row in rows
    ]
    ends = {point["of"]: point for point in points}
    names = {name: wrap(name, 16) or [""] for name in ends}
    longest = max(len(line) for name in names.values() for line in name)
    across, _ = _axis(alt.X, "x", x, points, log_x)
    up, height = _axis(alt.Y, "y", y, points, log_y)
    colour = alt.Scale(domain=list(ends), range=list(colours)[: len(ends)])
    chart = alt.Chart(alt.InlineData(values=points)).encode(
        across, up, alt.Color("of:N", scale=colour, legend=None)
    )
    layers = [chart.mark_line()]
    for name, top in _apart(ends, names, height).items():
        end = alt.Chart(alt.InlineData(values=[ends[name]])).encode(
            alt.X("x:Q"), alt.Y(value=top), alt.Color("of:N", legend=None)
        )
        style: Any = {"align": "left", "baseline": "top", "dx": 6}
        layers.append(end.mark_text(text=names[name], **style))
    width = min(WIDTH, 350 - 8 * longest)  # 12 pixels high, in a wide font
    return figure(alt.layer(*layers).properties(title=title, width=width), description)


def _short(number: Any) -> float:
    return float(f"{float(number):.4g}")


def _axis(channel: Any, key: str, title: str, points: list[Any], log: bool) -> Any:
    """A channel with its axis, and how far up it a value stands."""
    values = [point[key] for point in points]
    low, high, axis = min(values), max(values), alt.Axis(tickCount=5)
    if not log:
        margin = 0.04 * (high - low or 1)
        low, high = 0 if 0 <= low < 0.3 * high else low - margin, high + margin
    elif high / low > 100:
        first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
        powers = [10.0**k for k in range(first, last + 1, 1 + (last - first) // 5)]
        plain = "datum.value >= 0.001 && datum.value < 1e5 ? datum.label"
        label = f"{plain} : format(datum.value, '.0e')"
        axis = alt.Axis(values=powers, format="~g", labelExpr=label)
    scale = alt.Scale(type="log" if log else "linear", domain=[low, high], nice=False)
    at = math.log if log else float
    where = lambda value: (at(value) - at(low)) / (at(high) - at(low))  # noqa: E731
    return channel(f"{key}:Q", title=title, scale=scale, axis=axis), where


def _apart(ends: dict[str, Any], names: dict[str, Any], height: Any) -> dict[str, Any]:
    """How far below the top the names stand, so that none covers another."""
    free, tops = 0.0, {}
    for name in sorted(ends, key=lambda name: -ends[name]["y"]):
        size = _LINE * len(names[name])
        tops[name] = max(HEIGHT * (1 - height(ends[name]["y"])) - size / 2, free)
        free = tops[name] + size
    free = HEIGHT + _LINE
    for name in reversed(list(tops)):
        free = tops[name] = min(tops[name], free - _LINE * len(names[name]))
    return tops
