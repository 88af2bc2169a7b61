"""Held while the page is written: it names the log lines that its readers search for."""

from pathlib import Path

ROOM = Path(__file__).parents[2] / "docs/practice"


def test_the_page_has_a_title():
    assert (ROOM / f"{Path(__file__).stem.removeprefix('test_')}.md").read_text("utf-8")
