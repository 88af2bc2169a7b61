"""The catalogue names every function of the room, and torch agrees where it can."""

import importlib
import inspect
from pathlib import Path

import pytest
import torch
from torch import distributions as d

from snippets.lab.catalogue import COMPOSED, PAIRS, UNIVARIATE, disagreement, status

ROOM = Path(__file__).parents[2] / "snippets/exact"


def test_every_divergence_of_the_room_is_listed():
    listed = {pair.function.__name__ for pair in PAIRS}
    listed |= {function.__name__ for function, _ in COMPOSED.values()}
    for file in ROOM.glob("[!_]*.py"):
        module = importlib.import_module(f"snippets.exact.{file.stem}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            own = function.__module__ == module.__name__
            if own and (name.startswith("kl_") or name.endswith("_bound")):
                assert name in listed, name


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.family)
def test_torch_agrees_or_has_no_rule(pair):
    found = disagreement(pair)
    if pair.family in {"von Mises", "Student-t"}:
        assert found is None
    else:
        assert found is not None
        assert 0 <= found < 1e-12  # float64, settings away from every edge


def test_a_disagreement_is_found():
    pair = next(pair for pair in PAIRS if pair.family == "Gamma")
    swapped = pair._replace(function=lambda a, u, c, v: pair.function(c, v, a, u))
    assert disagreement(swapped) > 0.01
    # Right at both ends, wrong between them.
    ends = {(2.0, 3.0), (3.0, 2.0)}

    def right_at_the_ends(a, u, c, v):
        off = 0 if (a.item(), c.item()) in ends else 1e-3
        return pair.function(a, u, c, v) * (1 + off)

    assert disagreement(pair._replace(function=right_at_the_ends)) > 9e-4


@pytest.mark.parametrize("off", [1e-3, -1e-3])
def test_a_disagreement_of_one_row_counts_whole_in_either_direction(off):
    pair = next(pair for pair in PAIRS if pair.family == "Bernoulli")
    p, q = (torch.cat([x, x + 1]) for x in (*pair.p, *pair.q))
    wrong = torch.tensor([0, off], dtype=torch.float64)

    def function(p, q):
        return pair.function(p, q) / (1 - wrong)

    found = disagreement(pair._replace(function=function, p=(p,), q=(q,)))
    assert found == pytest.approx(1e-3)


def test_a_pair_of_families_has_one_of_three_states():
    normal, uniform = UNIVARIATE["Normal"], UNIVARIATE["Uniform"]
    assert status(normal, normal) == "finite"
    assert status(normal, uniform) == "inf"
    assert status(uniform, normal) == "finite"
    assert status(normal, UNIVARIATE["Student-t"]) == "no rule"


@pytest.mark.parametrize("one", UNIVARIATE.values(), ids=list(UNIVARIATE))
def test_a_family_without_a_rule_for_itself_is_known(one):
    missing = {"StudentT", "VonMises", "NegativeBinomial"}
    assert (status(one, one) == "no rule") == (type(one).__name__ in missing)


def test_a_wrapper_has_no_rule_with_what_it_wraps():
    normal = d.Normal(torch.zeros(2), torch.ones(2))
    wrapped = d.Independent(normal, 1)
    assert status(wrapped, normal) == status(normal, wrapped) == "no rule"
    assert d.kl_divergence(wrapped, wrapped).shape == ()
    assert d.kl_divergence(normal, normal).shape == (2,)


def test_torch_squares_the_batch_in_silence():
    flat, tall = d.Poisson(torch.ones(4)), d.Poisson(torch.ones(4, 1))
    assert d.kl_divergence(flat, tall).shape == (4, 4)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.family)
def test_the_settings_differ_and_have_a_direction(pair):
    forward = pair.function(*pair.p, *pair.q)
    reverse = pair.function(*pair.q, *pair.p)
    assert (forward > 0).all()
    assert not forward.isclose(reverse).any()
