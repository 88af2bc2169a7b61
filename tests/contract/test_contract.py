"""Every public function keeps what `foundations/contract` promises."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from tests.contract.exceptions import HOST, NOT_TENSORS, REFUSES_ZERO, SIGNED, WIDE_ONLY
from tests.contract.functions import (
    HOST as HOST_PHRASE,
)
from tests.contract.functions import (
    arguments,
    call,
    functions,
    results,
    tensors,
)

ROOT = Path(__file__).parents[2]
ALL = {name: f for name, f in functions().items() if name not in NOT_TENSORS}
OF_TENSORS = {name: f for name, f in ALL.items() if tensors(f)}
FREE = {name: f for name, f in OF_TENSORS.items() if name not in HOST}
POLICIES = re.compile(
    r"(new|old|ref|behaviour|teacher|student|posterior|prior|average|optimum)_"
    r"(logits|log_probs?|log_std|mean|std)$"
)


def pairs(function):
    """The names of P's arguments and of Q's, of a divergence."""
    names = list(inspect.signature(function).parameters)
    ps = [x for x in names if x.endswith("_p") or x == "p"]
    qs = [x for x in names if x.endswith("_q") or x == "q"]
    return (ps, qs) if ps and len(ps) == len(qs) else ([], [])


DIVERGENCES = {
    name: f
    for name, f in FREE.items()
    if pairs(f)[0]
    and name not in SIGNED
    and (inspect.getdoc(f) or "").find("KL(") < 120
}


def each(chosen):
    return pytest.mark.parametrize("function", chosen.values(), ids=chosen)


def widely(given, dtype):
    return {k: v.to(dtype) if is_float(v) else v for k, v in given.items()}


def is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def test_the_exceptions_exist():
    for listed in (NOT_TENSORS, HOST, SIGNED, WIDE_ONLY):
        assert set(listed) <= set(functions())
        assert all(reason.strip() for reason in listed.values())


def test_what_reads_values_on_the_host_says_so():
    said = {
        n
        for n, f in OF_TENSORS.items()
        if HOST_PHRASE in " ".join((inspect.getdoc(f) or "").split())
    }
    assert said == set(HOST)


@each(ALL)
def test_the_docstring_says_what_comes_back_and_what_is_refused(function):
    doc = inspect.getdoc(function)
    assert doc, "no docstring"
    assert "Returns:" in doc or "Raises:" in doc
    if tensors(function):
        assert "Raises:" in doc


@each(OF_TENSORS)
def test_each_tensor_states_its_shape(function):
    for parameter in tensors(function):
        assert parameter.axes is not None, f"{parameter.name}: no shape in backticks"


@each(OF_TENSORS)
def test_ordinary_arguments_give_numbers(function):
    for result in results(call(function, arguments(function))):
        assert not result.isnan().any()


@each(OF_TENSORS)
def test_policies_are_given_by_name(function):
    parameters = inspect.signature(function).parameters
    policies = [x for x in parameters if POLICIES.match(x)]
    owners = {x.split("_")[0] for x in policies}
    if len(owners) > 1:
        for name in policies:
            assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY, name


@each(OF_TENSORS)
def test_integers_are_refused_by_name(function):
    for parameter in tensors(function):
        if parameter.boolean or parameter.integer:
            continue
        given = arguments(function)
        given[parameter.name] = given[parameter.name].round().long()
        with pytest.raises(ValueError, match=rf"\b{parameter.name}\b"):
            call(function, given)


@each(OF_TENSORS)
def test_nothing_broadcasts_by_accident(function):
    asked = tensors(function)
    names = "|".join(p.name for p in asked)
    broadcasts = "roadcast" in (inspect.getdoc(function) or "")
    for parameter in asked:
        others = [p for p in asked if p is not parameter]
        given = arguments(function)
        x = given[parameter.name]
        last = parameter.axes[-1] if parameter.axes else None
        if last and "batch" not in last and any(last in p.axes for p in others):
            with pytest.raises(ValueError, match=rf"\b({names})\b"):
                call(function, given | {parameter.name: x[..., :1]})
        batch = [p for p in others if p.axes and p.axes[:1] == ["*batch"]]
        if (
            parameter.axes
            and parameter.axes[0] == "*batch"
            and batch
            and not broadcasts
        ):
            with pytest.raises(ValueError, match=rf"\b({names})\b"):
                call(function, given | {parameter.name: x.unsqueeze(1)})


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a value."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in {
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.equal,
            torch.ops.aten.nonzero,
            torch.ops.aten.is_nonzero,
        }:
            self.found.append(func)
        return func(*args, **(kwargs or {}))


@each(FREE)
def test_no_value_is_read_on_the_host(function):
    given = arguments(function)
    with HostReads() as reads:
        call(function, given)
    assert not reads.found


@pytest.fixture(scope="module")
def imagined():
    """What went wrong on an imagined GPU, by function."""
    script = [sys.executable, "-m", "tests.contract.imagined"]
    found = subprocess.run(script, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(found.stdout)


@pytest.mark.parametrize("name", FREE)
def test_runs_on_a_gpu_that_is_only_imagined(imagined, name):
    assert imagined[name] == ""


class NothingOnTheCpu(TorchDispatchMode):
    """Fails where a tensor is made on the CPU beside those of another device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        made = [x for x in results(found) if x.device.type == "cpu" and x.ndim]
        assert not made, f"{func} makes a tensor on the CPU"
        return found


@each(FREE)
def test_runs_on_meta_tensors(function):
    given = {
        k: v.to("meta") if isinstance(v, Tensor) else v
        for k, v in arguments(function).items()
    }
    with NothingOnTheCpu():
        found = results(call(function, given))
    assert all(x.is_meta for x in found)


@each(FREE)
def test_compiles_as_one_graph(function):
    given = arguments(function)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda **x: call(function, x), fullgraph=True, backend="eager"
    )
    for ours, theirs in zip(
        results(compiled(**given)), results(call(function, given)), strict=True
    ):
        assert_close(ours, theirs)


# log_ndtr has no rule for batches: it is mapped row by row, and right.
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@each(FREE)
def test_maps_over_a_batch(function):
    asked = {p.name: p for p in tensors(function)}
    mapped = [n for n, p in asked.items() if p.axes and p.axes[0] == "*batch"]
    if not mapped:
        return
    given = arguments(function)
    fixed = {k: v for k, v in given.items() if k not in mapped}

    def one(*rows):
        return results(call(function, fixed | dict(zip(mapped, rows, strict=True))))

    rows = [given[name].unsqueeze(1) for name in mapped]
    found = torch.vmap(one, randomness="error")(*rows)
    expected = [
        results(call(function, fixed | {n: given[n][i : i + 1] for n in mapped}))
        for i in range(3)
    ]
    for k, ours in enumerate(found):
        assert_close(ours, torch.stack([row[k] for row in expected]), equal_nan=True)


@each({n: f for n, f in OF_TENSORS.items() if n not in WIDE_ONLY})
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once(function, dtype):
    given = widely(arguments(function), dtype)
    ours = results(call(function, given))
    wide = results(call(function, widely(given, torch.float32)))
    for x, y in zip(ours, wide, strict=True):
        if x.is_floating_point():
            assert x.dtype == dtype
            # One rounding: half of the spacing of the dtype, and twice that for a tie.
            eps = torch.finfo(dtype).eps
            assert_close(
                x.float(),
                y.float(),
                rtol=eps,
                atol=torch.finfo(dtype).tiny,
                equal_nan=True,
            )


@each(DIVERGENCES)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str
)
def test_a_kl_is_never_negative_and_zero_for_equal_arguments(function, dtype):
    ps, qs = pairs(function)
    for seed in range(20):
        given = widely(arguments(function, seed), dtype)
        equal = given | {q: given[p] for p, q in zip(ps, qs, strict=True)}
        for result in results(call(function, equal)):
            assert (result == 0).all()
        noise = torch.Generator().manual_seed(seed)
        near = {
            q: given[p]
            * (
                1
                + 10.0 ** -(1 + seed % 8)
                * torch.rand(given[p].shape, generator=noise, dtype=torch.float64)
            ).to(dtype)
            for p, q in zip(ps, qs, strict=True)
        }
        if function.__name__ == "kl_of_probabilities":
            near = {q: x / x.sum(-1, keepdim=True) for q, x in near.items()}
        for result in results(call(function, given | near)):
            assert (result >= 0).all()


@each(DIVERGENCES)
def test_the_gradient_of_a_kl_is_its_derivative(function):
    given = arguments(function)
    leaves = {k: v.requires_grad_() for k, v in given.items() if is_float(v)}

    def of_leaves(*values):
        rows = dict(zip(leaves, values, strict=True))
        # A step above the diagonal would leave the factors.
        rows |= {k: v.tril() for k, v in rows.items() if "factor" in k}
        return results(call(function, given | rows))[0]

    assert torch.autograd.gradcheck(of_leaves, tuple(leaves.values()), atol=1e-6)


WITH_LOGITS = {
    n: f
    for n, f in FREE.items()
    if any(
        "logits" in p.name and p.axes and p.axes[-1] in {"actions", "vocab"}
        for p in tensors(f)
    )
}


@each(WITH_LOGITS)
@pytest.mark.parametrize(
    "hidden", [-torch.inf, -1e4, -1e8, torch.finfo(torch.float32).min]
)
def test_a_masked_action_leaves_value_and_gradient_without_nan(function, hidden):
    given = widely(arguments(function), torch.float32)
    masked = {p.name for p in tensors(function) if "logits" in p.name}
    leaves = {}
    for name, x in given.items():
        if not is_float(x):
            continue
        leaves[name] = x.clone().requires_grad_()
        if name in masked:
            hide = torch.zeros(x.shape[-1])
            hide[-1] = hidden
            given[name] = leaves[name] + hide
        else:
            given[name] = leaves[name]
    found = [x for x in results(call(function, given)) if x.is_floating_point()]
    assert not any(x.isnan().any() for x in found)
    total = sum(x.where(x.isfinite(), 0.0).sum() for x in found)
    if total.requires_grad:
        total.backward()
        assert all(x.grad is None or not x.grad.isnan().any() for x in leaves.values())


WITH_MASK = {
    n: f
    for n, f in FREE.items()
    if any(p.name in {"mask", "kept"} and p.axes for p in tensors(f))
}


@each(WITH_MASK)
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf])
def test_what_stands_under_a_mask_is_not_read(function, junk):
    given = arguments(function)
    (name,) = [p.name for p in tensors(function) if p.name in {"mask", "kept"}]
    mask, axes = given[name], {p.name: p.axes for p in tensors(function)}

    def outcome(under):
        filled, leaves = dict(given), {}
        for key, x in given.items():
            if is_float(x) and axes[key][: mask.ndim] == axes[name]:
                hide = mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim))
                leaves[key] = x.clone().requires_grad_()
                # Through a product, as a linear head would: 0 * nan would show.
                filled[key] = (leaves[key] * 1.0).where(hide, under)
        found = [x for x in results(call(function, filled)) if x.is_floating_point()]
        found = [x.where(mask, 0.0) if x.shape == mask.shape else x for x in found]
        total = sum(x.sum() for x in found)
        if is_float(total) and total.requires_grad:
            total.backward()
        return found, [x.grad for x in leaves.values()]

    clean, dirty = outcome(-0.3), outcome(junk)
    assert_close(dirty[0], clean[0])
    for ours, theirs in zip(dirty[1], clean[1], strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_close(ours, theirs)


DRIFTING = {
    n: f
    for n, f in FREE.items()
    if sum(bool(re.search(r"log_probs?$|^log_[pq]$", p.name)) for p in tensors(f)) > 1
}


@each(DRIFTING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("drift", [-30.0, 30.0])
def test_drifted_tokens_have_a_value_and_a_gradient(function, dtype, drift):
    names = [
        p.name
        for p in tensors(function)
        if re.search(r"log_probs?$|^log_[pq]$", p.name)
    ]
    for moved in names:
        given = widely(arguments(function), dtype)
        given[moved] = given[moved] + drift
        leaves = {k: given[k].requires_grad_() for k in names}
        found = [x for x in results(call(function, given)) if x.is_floating_point()]
        assert all(x.isfinite().all() for x in found), moved
        total = sum(x.sum() for x in found)
        if total.requires_grad:
            total.backward()
            for x in leaves.values():
                assert x.grad is None or x.grad.isfinite().all(), moved


WITH_BETA = {
    n: f
    for n, f in FREE.items()
    if "beta" in inspect.signature(f).parameters
    and any(p.name.startswith("ref_") for p in tensors(f))
}


@each(WITH_BETA)
def test_a_coefficient_of_zero_is_no_penalty(function):
    given = arguments(function, beta=0.0)
    for name, x in given.items():
        if name.startswith("ref_"):
            given[name] = x.clone()
            given[name][..., 0] = -torch.inf
    if "beta" in REFUSES_ZERO.get(function.__name__, ""):
        with pytest.raises(ValueError, match="beta"):
            call(function, given)
        return
    assert all(x.isfinite().all() for x in results(call(function, given)))
