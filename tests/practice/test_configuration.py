"""The record behind the page is whole, and what it names exists.

What the libraries compute is compared with it in `tests/peers`.
"""

import ast
import re
from importlib.metadata import version

import pytest

from tests.peers.moved import digest, failures, report, rows, stands
from tests.peers.records import OPTIONS, RECORD, ROOT

PAGE = (ROOT / "docs/practice/configuration.md").read_text("utf-8")
PLACES = {
    "loss", "reward", "constraint", "diagnostic", "early stop", "learning rate",
    "implicit", "reference point", "metric of the step",
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_called_by_a_test_that_exists_or_says_where_it_was_read(name):
    option = OPTIONS[name]
    assert ("test" in option) != ("source" in option)
    if "test" in option:
        file, _, test = option["test"].partition("::")
        tree = ast.parse((ROOT / "tests/peers" / file).read_text("utf-8"))
        assert test in {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}
    for place in (option[x] for x in ("source", "set") if x in option):
        assert re.fullmatch(r"\d+-\d+", place["lines"])
        assert re.fullmatch(r"[0-9a-f]{12}", place["digest"])


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_says_who_is_compared_where_and_what_follows(name):
    option = OPTIONS[name]
    assert option["library"] in RECORD["library"]
    assert option["place"] in PLACES
    assert option["verdict"].endswith(".")
    assert option["verdict"].count(". ") == 0, "one sentence"


WEIGHTS = {"exp(x − sg(x))": "ρ", "sg(ρ), at most 10, on the gradient": "sg(ρ)"}


@pytest.mark.parametrize("name", [x for x in OPTIONS if "grid" in OPTIONS[x]])
def test_an_option_stands_in_the_grid_where_its_estimator_is_used(name):
    option = OPTIONS[name]
    place, weight, estimator = option["grid"]
    assert place.split(",")[0] == option["place"]
    assert WEIGHTS.get(option["weight"], option["weight"]) == weight
    names = [option["estimator"]]
    if option["estimator"].endswith("gradient of k2"):
        names += ["k2"]  # what is differentiated
    if (option["p"], option["estimator"]) == ("old", "k1"):
        names = ["k1 of old"]
    assert estimator in names
    assert (option["p"] == "old") == (option["place"] == "reward")


@pytest.mark.parametrize(
    "name", [x for x, library in RECORD["library"].items() if "package" in library]
)
def test_the_versions_are_those_that_are_installed(name):
    library = RECORD["library"][name]
    assert version(library["package"]) == library["version"]


def test_each_library_that_is_read_has_its_place_in_a_repository():
    for library in RECORD["library"].values():
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", library["repo"])
        assert ("package" in library) != ("commit" in library)


@pytest.mark.parametrize("name", RECORD["library"])
def test_a_library_is_called_by_tests_or_was_read_at_lines_of_a_commit(name):
    library = RECORD["library"][name]
    places, tests = library.get("read", []), library.get("tests", [])
    assert places or tests
    for pattern in tests:
        assert list((ROOT / "tests/peers").glob(pattern))
    for place in places:
        assert re.fullmatch(r"[\w./-]+\.(py|md|rst)", place["path"])
        assert re.fullmatch(r"\d+-\d+", place["lines"])
        assert place.get("commit") or library["commit"]
        assert ("about" in place) == bool(tests), "else all statements would be read"


def test_the_page_shows_each_option_under_its_own_name():
    shown = re.findall(
        r'^### `(.+)` { #(.+) }\n\n```python source=""\nshow\("(.+)"\)\n```$',
        PAGE,
        re.MULTILINE,
    )
    assert shown == [(o["option"], name, name) for name, o in OPTIONS.items()]


def test_the_errata_concern_the_versions_of_the_record():
    errata = (ROOT / "docs/reference/errata.md").read_text("utf-8")
    for name, library in RECORD["library"].items():
        for found in re.findall(rf"{name} (\d+\.\d+\.\d+)", errata):
            assert found == library["version"]
    assert RECORD["checked"] in errata


# What the weekly job prints.

REPORT = """<testsuites><testsuite><testcase classname="tests.peers.test_verl"
name="test_value[verl-k3-plus]"><failure message="k2 is no k3&#10;more"/></testcase>
<testcase classname="tests.peers.test_rl_games" name="{}"><error message="gone"/>
</testcase><testcase classname="tests.peers.test_skrl" name="test_good"/>
</testsuite></testsuites>"""


@pytest.fixture
def ran(tmp_path):
    """What pytest found: two of three tests failed."""
    path = tmp_path / "peers.xml"
    path.write_text(REPORT.format(OPTIONS["rl-games"]["test"].split("::")[1]))
    return str(path)


def test_a_test_that_failed_names_its_rows(ran):
    (first, message), (second, _) = failures(ran)
    assert message == "k2 is no k3"
    assert rows(first) == ["verl-k3-plus"]
    assert rows(second) == ["rl-games"]
    assert rows("tests/peers/test_trl_grpo.py::test_v[trl-grpo-True]") == ["trl-grpo"]
    by_text = "tests/peers/test_skrl.py::test_trpo_is_that_of_the_record"
    assert rows(by_text) == ["skrl-trpo"]


def test_lines_that_were_read_may_move_but_not_change():
    lines = ["def f(x):", "    return x + 1"]
    known, text = digest(lines), "import a\n\n" + "\n".join(lines) + "\n"
    assert stands(text, "1-2", known)
    assert stands(text.replace("\n    ", "\n        "), "7-8", known)
    assert not stands(text.replace("+ 1", "+ 2"), "1-2", known)
    assert not stands("", "1-2", known)


def test_the_report_has_a_line_for_each_row_that_moved(ran):
    found = report(ran, read=lambda *_: "")
    read = sum(x in o for o in OPTIONS.values() for x in ("source", "set"))
    assert len(found) == 2 + read
    assert found[0].startswith("| verl | `actor.kl_loss_type=k3+` |")
    assert all(line.count("|") == 5 for line in found)
