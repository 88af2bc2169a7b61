"""What docs/practice/libraries.toml says of libraries, as code to compare with."""

import ast
import dataclasses
import importlib
import inspect
import textwrap
import tomllib
import warnings
from importlib.metadata import distribution
from pathlib import Path

import torch
import yaml
from torch.testing import assert_close

from snippets.estimate.estimators import k1, k2, k3
from snippets.estimate.gradients import straight_through
from snippets.estimate.off_policy import importance_weight
from snippets.estimate.sequences import token_mean
from snippets.exact.gaussian import kl_gaussian

ROOT = Path(__file__).parents[2]
RECORD = tomllib.loads((ROOT / "docs/practice/libraries.toml").read_text("utf-8"))
OPTIONS = {option["id"]: option for option in RECORD["option"]}
MASK = torch.arange(5) < torch.tensor([[2], [5], [3], [4]])


def options_of(library):
    """The ids of a library's options whose default a test can read."""
    found = OPTIONS.values()
    return [o["id"] for o in found if o["library"] == library and "reads" in o]


def file_of(package, path):
    """The text of a file of an installed package, which need not be importable."""
    return Path(distribution(package).locate_file(path)).read_text("utf-8")


def functions_of(package, path, *names, **known):
    """Functions and classes of a file, without importing what the file imports."""
    found = [
        node
        for node in ast.parse(file_of(package, path)).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names
    ]
    assert len(found) == len(names), f"{path} lacks one of {names}"
    for node in found:
        node.decorator_list = []
        node.returns = None
        for argument in ast.walk(node):
            if isinstance(argument, ast.arg):
                argument.annotation = None
    module = {"torch": torch, **known}
    exec(compile(ast.Module(found, []), path, "exec"), module)
    return [module[name] for name in names]


def assigned(function, *names, **known):
    """Run the statements of a function's source that assign these names, in order."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    every = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    every.sort(key=lambda node: node.lineno)
    for name in names:
        statement = next(x for x in every if ast.unparse(x.targets[0]) == name)
        code = ast.unparse(statement.value)
        known[name] = eval(code, {"torch": torch, "th": torch}, known)
    return known


def default_at(place):
    """The default that a library's own configuration gives."""
    source, _, path = place.partition(":")
    if source.endswith(".yaml"):
        value = yaml.safe_load(file_of(source.split("/")[0], source))
        for key in path.split("."):
            value = value[key]
        return value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a module may move, or is experimental
        name, _, key = path.partition(".")
        owner = getattr(importlib.import_module(source), name)
    if dataclasses.is_dataclass(owner):
        (field,) = (x for x in dataclasses.fields(owner) if x.name == key)
        made = field.default_factory is not dataclasses.MISSING
        value = field.default_factory() if made else field.default
    else:
        value = inspect.signature(owner.__init__).parameters[key].default
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def assert_default(name):
    """The record gives the library's own default; none is written as None."""
    option = OPTIONS[name]
    assert default_at(option["reads"]) == option.get("default")


def sides(option, **policies):
    """P and Q of an option, of policies by name."""
    return policies[option["p"]], policies[option["q"]]


def estimate(name, *, new, old, ref, mask=MASK):
    """The KL of each token as the record says, with its gradient."""
    option = OPTIONS[name]
    p, q = sides(option, new=new, old=old, ref=ref)
    weight = importance_weight(new_log_probs=new, old_log_probs=old)
    if option["weight"] == "sg(ρ), at most 10, on the gradient":
        pull = weight.detach().clamp(max=10) * k2(p, q)
        return straight_through(value=k3(p, q), loss=pull)
    if option["estimator"] == "k3, gradient of k2":
        found = straight_through(value=k3(p, q), loss=k2(p, q))
    else:
        found = {"k1": k1, "k2": k2, "k3": k3}[option["estimator"]](p, q)
    on_policy = importance_weight(new_log_probs=new, old_log_probs=new.detach())
    whole = ((new - old) * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    known = {
        "none": 1,
        "ρ": weight,
        "exp(x − sg(x))": on_policy,
        "the completion's mean ratio": whole.exp(),
    }
    found = known[option["weight"]] * found
    limit = option.get("clamp", torch.inf)
    return found.clamp(-limit, limit)


def policies(far=0.0):
    """Log-probabilities of new, old and ref; `far` takes ref away from one token."""
    generator = torch.Generator().manual_seed(0)
    new, old, ref = -torch.rand(3, 4, 5, dtype=torch.float64, generator=generator)
    ref[0, 0] += far
    return {"new": new.requires_grad_(), "old": old, "ref": ref}


def assert_estimate(name, call, rtol=1e-7):
    """A library's mean over tokens is the record's; in a loss, so is its gradient.

    Args:
        name: The id of the option.
        call: The library's KL of each token, or their mean, of the policies by name.
        rtol: 1e-7, or more where the library works in single precision.
    """
    option, given = OPTIONS[name], policies()
    found, expected = call(**given), estimate(name, **given)
    if option["mean"].startswith("over all positions"):
        expected = (expected * MASK).sum() / MASK.numel()
    else:
        expected = token_mean(expected, MASK)
    found = token_mean(found, MASK) if found.ndim else found
    assert_close(found.double(), expected, rtol=rtol, atol=0.0)
    if option["place"] == "loss":
        assert_close(slope(found, given), slope(expected, given), rtol=rtol, atol=1e-9)


def slope(value, given):
    """The gradient at the new policy; zero where none flows."""
    if not value.requires_grad:
        return torch.zeros_like(given["new"])
    return torch.autograd.grad(value, given["new"], retain_graph=True)[0]


def assert_clamped(name, call):
    """Of a token that drifted beyond the clamp, neither value nor gradient is left."""
    given = policies(far=5.0)
    (found,) = call(**given)[0, :1]
    limit = OPTIONS[name]["clamp"]
    assert found == limit < k3(given["new"], given["ref"])[0, 0]
    assert slope(found, given)[0, 0] == 0


def gaussians(dims=3):
    """Means and deviations of old and new, for five states."""
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(2, 2, 5, dims, dtype=torch.float64, generator=generator)
    return {"old": (old[0], old[1].exp()), "new": (new[0], new[1].exp())}


def assert_exact(name, found, given, **close):
    """A library's number is the mean KL of the record's P and Q over states."""
    option = OPTIONS[name]
    p, q = sides(option, **given)
    expected = kl_gaussian(*p, *q).mean()
    if option["mean"] == "mean over states and over dimensions of the action":
        expected = expected / p[0].shape[-1]
    else:
        assert option["mean"].startswith("summed over dimensions")
    assert_close(found, expected, **close)
    other = kl_gaussian(*q, *p).mean()
    assert (expected / other - 1).abs() > 0.1, "both directions give one number here"
