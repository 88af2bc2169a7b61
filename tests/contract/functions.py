"""Every public function of `snippets/`, with arguments made from its docstring."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from functools import cache
from typing import Any, get_type_hints

import torch
from torch import Tensor

import snippets

HOST = "reads values on the host"
VARIABLE = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
SIZES = {
    "*batch": (3,), "batch": (3,), "actions": (4,), "dims": (2,), "vocab": (5,),
    "time": (6,), "samples": (7,), "states": (3,), "components": (2,), "points": (8,),
    "betas": (4,), "count": (2,), "prompts": (2,), "latents": (2,),
    "classes": (3,), "others": (5,), "features": (4,), "head": (4,), "boundaries": (3,),
}  # fmt: skip
# What a number is, where a function asks for one by this name.
NUMBERS: dict[str, Any] = {
    "alpha": 0.7, "balance": 0.8, "beta": 0.5, "ceiling": 2.0, "clip_high": 0.3,
    "clip_low": 0.2, "coefficient": 0.3, "count": 2, "damping": 0.1, "decay": 0.9,
    "delta": 0.1, "discount": 0.9, "epsilon": 0.05, "free": 0.1, "high": 0.8,
    "largest": 1.0, "limit": 2.0, "low": -0.5, "n": 3, "order": 0.5, "samples": 7,
    "share": 0.3, "sigma": 1.5, "target_entropy": -1.0, "temperature": 1.5, "kl": 0.1,
    "actions": 4, "steps": 3, "axis": -1, "iterations": 3, "tries": 4, "target": 0.01,
    "divergence": 0.02, "rate": 1e-3, "lowest": 1e-5, "highest": 1e-2, "horizon": 100,
    "completions": 8, "chunk": 2, "seed": 0, "link": torch.tanh, "eta": 0.7,
    "floor": 0.5, "ranks": 2,
}  # fmt: skip
CHOICES = {"choices": [1, 3]}


class Parameter:
    """A tensor that a function asks for, and the shapes that its docstring gives it."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        shapes = re.findall(r"`\(([^`]*)\)`", text)
        self.axes = (
            [x.strip() for x in shapes[0].split(",") if x.strip()] if shapes else None
        )
        self.integer = "int64" in text or "integer" in text
        self.boolean = bool(re.search(r"\bTrue\b|[Bb]oolean", text)) or name == "kept"

    @property
    def shape(self) -> tuple[int, ...]:
        assert self.axes is not None
        return tuple(size for axis in self.axes for size in SIZES[axis])


def described(function: Callable[..., Any]) -> dict[str, str]:
    """What the docstring says of each argument."""
    doc = inspect.getdoc(function) or ""
    found = re.search(r"^Args:\n((?:    .*\n|\n)*)", doc + "\n", re.MULTILINE)
    if not found:
        return {}
    entries = re.findall(
        r"^    (\w+): ((?:.*\n)(?:     +.*\n)*)", found[1], re.MULTILINE
    )
    return {name: " ".join(text.split()) for name, text in entries}


@cache
def functions() -> dict[str, Callable[..., Any]]:
    """All of them, by `room.module:name`."""
    found = {}
    for info in pkgutil.walk_packages(snippets.__path__, "snippets."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            ours = inspect.isfunction(value) and value.__module__ == info.name
            if ours and not name.startswith("_"):
                found[f"{info.name.removeprefix('snippets.')}:{name}"] = value
    return found


def tensors(function: Callable[..., Any]) -> list[Parameter]:
    """The arguments that are tensors, and not a number as well."""
    hints, texts = get_type_hints(function), described(function)
    return [
        Parameter(name, texts.get(name, ""))
        for name, parameter in inspect.signature(function).parameters.items()
        if hints[name] is Tensor and parameter.kind not in VARIABLE
    ]


def value(
    parameter: Parameter, generator: torch.Generator, shape: tuple[int, ...]
) -> Tensor:
    """An ordinary tensor for an argument: float64, a mask, or an index."""
    name = parameter.name

    def uniform(low: float, high: float) -> Tensor:
        rand = torch.rand(shape, generator=generator, dtype=torch.float64)
        return low + (high - low) * rand

    if parameter.boolean:
        mask = uniform(0, 1) < 0.7
        if mask.ndim:
            mask[..., 0], mask[..., -1] = True, False
        return mask
    if name == "cu_seqlens":
        return torch.tensor([0, 2, 7])
    if name == "groups":
        return torch.arange(shape[-1]) % NUMBERS["count"]
    if parameter.integer:
        return torch.zeros(shape, dtype=torch.int64)
    if "log_joint" in name:
        return uniform(-1, 1).flatten(-2).log_softmax(-1).reshape(shape)
    if name == "joint":
        return uniform(-1, 1).flatten().log_softmax(-1).reshape(shape)
    if name in {"p", "q", "transitions", "weights", "policy_probabilities"}:
        return uniform(-1, 1).softmax(-1)
    if re.search(r"log_prob|^log_[pq]$|log_weights", name):
        return -uniform(0.1, 2)
    if re.search(r"logits|log_std|log_eta|log_alpha|log_ratio", name):
        return uniform(-1.5, 1.5)
    if re.search(r"factor", name) and len(shape) >= 2 and shape[-1] == shape[-2]:
        identity = torch.eye(shape[-1], dtype=torch.float64)
        return (0.3 * uniform(-1, 1)).tril(-1) + identity * uniform(0.7, 1.5)
    if re.search(
        r"std|scale|concentration|shape_|rate|^alpha_|^beta_|^df_|^x$|^y$|eta|length|largest|kl$|quadratic|multiplier|betas",
        name,
    ):
        return uniform(0.5, 1.5)
    return uniform(-1, 1)


def arguments(
    function: Callable[..., Any], seed: int = 0, **changed: Any
) -> dict[str, Any]:
    """Ordinary arguments of a function.

    Raises:
        LookupError: If nothing here says what an argument is.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = {parameter.name: parameter for parameter in tensors(function)}
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name in changed:
            found[name] = changed[name]
        elif name in wanted:
            found[name] = value(wanted[name], generator, wanted[name].shape)
        elif name in NUMBERS:
            found[name] = NUMBERS[name]
        elif name in CHOICES:
            found[name] = CHOICES[name]
        elif parameter.default is inspect.Parameter.empty:
            raise LookupError(f"tests/contract/functions.py does not know {name!r}")
    return found


def call(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """The result for arguments by name, whatever their kind."""
    positional, named = [], {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in given:
            continue
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            named[name] = given[name]
        else:
            positional.append(given[name])
    return function(*positional, **named)


def results(result: Any) -> list[Tensor]:
    """The tensors of a result."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, tuple | list):
        return [x for part in result for x in results(part)]
    return []
