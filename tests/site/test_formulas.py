"""TeX becomes MathML wherever it stands, and text where markup cannot go."""

import json
import re
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest
from math_core import LatexError

from extensions.formulas import LEANS, MACROS, mathml
from tests.site.fonts import FONT, LEAN, characters

ROOT = Path(__file__).parents[2]
STRESS = (ROOT / "tests/site/pages/math_stress.md").read_text("utf-8")


@pytest.fixture(scope="module")
def stress(tmp_path_factory):
    """The page of everything that math must survive, built."""
    from tests.site.conftest import Project

    build = Project(tmp_path_factory.mktemp("stress")).build(STRESS)
    assert build.status == 0, build.output
    return build


def test_every_formula_becomes_one_element(stress):
    formulas = re.sub(r"```.*?```", "", STRESS, flags=re.DOTALL)
    formulas = re.findall(r"\$\$.+?\$\$|\$(?!5|10).+?\$", formulas, re.DOTALL)
    # One stands in a heading of the contents beside the page, and in a tab's label.
    assert stress.article().count('class="arithmatex"') == len(formulas)


def test_no_tex_is_left(stress):
    text = re.sub(r"<code>.*?</code>", "", stress.article(), flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", "", text)
    assert re.findall(r"\$\S*", text) == ["$5", "$10"]


def test_code_that_looks_like_math_stays_code(stress):
    assert "$not math$" in re.sub(r"<[^>]+>", "", stress.article())


def test_titles_and_contents_carry_text(stress):
    page = (stress.site / "index.html").read_text("utf-8")
    heading = "Stress: DKL(p‖q) in a heading"
    assert re.search(rf"md-nav[^§]*?\s{re.escape(heading)}\s", page)
    assert 'id="display-k3-estimator"' in page
    assert "Display k3 estimator" in page


def test_search_reads_the_formulas_of_a_line(stress):
    index = json.loads((stress.site / "search/search_index.json").read_text("utf-8"))
    text = " ".join(entry["title"] + entry["text"] for entry in index["docs"])
    assert "<m" not in text
    assert "π" in text


@pytest.mark.parametrize("name", MACROS)
def test_every_macro_converts(name):
    arguments = "{p}{q}" * (MACROS[name].count("#") // 2)
    assert mathml(f"\\{name}{arguments}", True).tag == "math"


@pytest.mark.parametrize("tex", [r"\frac{a", r"\absent", r"\begin{cases} x"])
def test_refuses_what_does_not_parse(tex):
    with pytest.raises(LatexError):
        mathml(tex, False)


def test_a_formula_is_well_formed_beside_markup_characters():
    from xml.etree.ElementTree import tostring

    text = tostring(mathml(r"a < b \;\&\; c > d~e", False))
    assert fromstring(text).tag == "math"


def test_every_character_of_a_formula_is_in_the_font(stress):
    missing = {c for c in characters(stress.article()) if ord(c) not in FONT}
    assert not missing


def test_a_character_that_the_font_lacks_is_noticed():
    assert ord(set(characters("<math><mi>ж</mi></math>")).pop()) not in FONT


def test_a_line_may_end_after_an_operator_of_an_inline_formula(project):
    text = "# Page\n\nHere $P(x = 1) = -2 + y < 3$ and\n\n$$\nx = 1\n$$\n"
    spans = re.findall(r"<math.*?</math>", project.build(text).article())
    parts = ["".join(re.sub(r"<[^>]*>", "", span).split()) for span in spans]
    assert parts == ["P(x=1)=", "−2+", "y&lt;", "3", "x=1"]


def test_wide_formulas_can_be_scrolled_by_keyboard(stress):
    displays = re.findall(r"<div[^>]*arithmatex[^>]*>", stress.article())
    assert displays
    assert all('tabindex="0"' in display for display in displays)


def test_a_letter_gets_the_room_that_the_font_says_it_leans_over():
    leaning = {letter for letter, lean in LEAN.items() if lean >= 0.06}
    assert leaning - {"ς"} <= LEANS.keys()  # the final sigma is in no formula
    for letter, room in LEANS.items():
        assert abs(float(room.removesuffix("em")) - LEAN[letter]) <= 0.006, letter


def test_a_letter_that_leans_keeps_the_next_away_but_not_its_index():
    spaces = [
        len(mathml(f"P{after}", False).findall("mspace")) for after in ("(x)", "_i")
    ]
    assert spaces == [1, 0]
    assert len(mathml("a(x)", False).findall("mspace")) == 0


def classes(tex):
    """The letters of a formula that have a colour, and which."""
    return [(node.text, node.get("class")) for node in mathml(tex, False).iter("mi")]


def test_p_and_q_have_their_colours_by_name():
    assert classes("P + Q + p") == [("P", "kl-p"), ("Q", "kl-q"), ("p", None)]
    assert classes(r"\Qval") == [("𝑄", None)]  # an action value is no distribution


def test_the_sides_of_a_kl_have_the_colours_of_p_and_q():
    sides = {
        "".join(row.itertext()): row.get("class")
        for row in mathml(r"\KL{\piold}{\pitheta}", False).iter("mrow")
        if row.get("class")
    }
    assert sides == {"πold": "kl-p", "πθ": "kl-q"}


def test_a_small_letter_has_the_colour_of_its_side_in_the_whole_formula():
    assert dict(classes(r"\KL{q}{p} + \E_q"))["q"] == "kl-p"
