"""How fast the exact divergences are, and how much memory they take, beside torch.

An alternative counts as correct when it is right at the edges that are listed with its
family, in value and in gradient: the script tries them. Prints a Markdown table: times
are medians of processor time, ratios are within this run, where all candidates take
turns. On Linux only.
"""

import argparse
import ctypes
import gc
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import torch.distributions as d
from torch import Tensor, inf, tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from torch.nn.functional import kl_div

from snippets.exact.bernoulli import kl_bernoulli
from snippets.exact.categorical import kl_divergence_logits
from snippets.exact.gaussian import kl_gaussian
from snippets.exact.multidiscrete import kl_multidiscrete
from snippets.exact.multivariate_gaussian import kl_multivariate_gaussian
from snippets.exact.tanh_gaussian import kl_clipped_gaussian
from snippets.lab.catalogue import PAIRS

Divergence = Callable[..., Tensor]
Inputs = tuple[Tensor, ...]

CHOICES = [3] * 6
SECONDS = 3.0  # small shapes have as many rounds as fit


@dataclass
class Edge:
    """Inputs, and what is right for them."""

    inputs: Inputs
    value: float
    gradient: bool = True  # whether it has to be finite


@dataclass
class Family:
    """A function, what else computes the same, and where that is tried."""

    function: Divergence
    others: dict[str, Divergence]
    edges: list[Edge]
    inputs: dict[str, Callable[[], Inputs]]


def right_at_the_edges(function: Divergence, edges: Iterable[Edge]) -> bool:
    """Whether value and gradient are what they should be."""
    for edge in edges:
        leaves = [x.clone().requires_grad_() for x in edge.inputs]
        try:
            value = function(*leaves)
        except (RuntimeError, ValueError):
            return False
        if not torch.isclose(value.double(), tensor(edge.value).double(), 1e-3, 0):
            return False
        value.backward()
        if edge.gradient and not all(x.grad.isfinite().all() for x in leaves):
            return False
    return True


def by_distribution(build: Callable[..., d.Distribution]) -> Divergence:
    """What torch.distributions says, for parameters of P and then of Q."""

    def divergence(*rows: Tensor) -> Tensor:
        half = len(rows) // 2
        return d.kl_divergence(build(*rows[:half]), build(*rows[half:]))

    return divergence


def guarded(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """The formula with a guard around the difference, and no check of the inputs."""
    log_p, log_q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    return (log_p.exp() * torch.where(log_p.isneginf(), 0.0, log_p - log_q)).sum(-1)


def guarded_by_p(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """The same with a guard that looks at the probability."""
    log_p, log_q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    p = log_p.exp()
    return (p * torch.where(p > 0, log_p - log_q, 0.0)).sum(-1)


def filled_kl_div(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """F.kl_div with what it cannot take filled before, and again behind."""
    log_p, log_q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    mask = log_p.isneginf()
    log_p, log_q = log_p.masked_fill(mask, 0.0), log_q.masked_fill(mask, 0.0)
    rows = kl_div(log_q, log_p, reduction="none", log_target=True)
    return rows.masked_fill(mask, 0.0).sum(-1)


def plain(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """The formula as it stands."""
    log_p, log_q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def plain_kl_div(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """F.kl_div with a log target."""
    log_p, log_q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    return kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def two_actions(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """A switch as a categorical."""
    rows = (torch.stack([x, torch.zeros_like(x)], -1) for x in (logits_p, logits_q))
    return guarded(*rows)


def two_entropies(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """A switch as cross-entropy minus entropy."""
    p = logits_p.sigmoid()
    costs = (cross_entropy(x, p, reduction="none") for x in (logits_q, logits_p))
    return next(costs) - next(costs)


def each_choice(divergence: Divergence) -> Divergence:
    """The sum over the choices of one action."""

    def summed(logits_p: Tensor, logits_q: Tensor) -> Tensor:
        choices = (x.split(CHOICES, -1) for x in (logits_p, logits_q))
        rows = zip(*choices, strict=True)
        return torch.stack([divergence(p, q) for p, q in rows]).sum(0)

    return summed


def drawn(*shape: int, rows: int = 2, positive: tuple[int, ...] = ()) -> Inputs:
    """Inputs of one shape; some of them deviations."""
    torch.manual_seed(0)
    found = [torch.randn(shape) for _ in range(rows)]
    return tuple(x.exp() if i in positive else x for i, x in enumerate(found))


def factors(batch: int, dims: int) -> Inputs:
    """Means and Cholesky factors of P and Q."""
    torch.manual_seed(0)
    eye, rows = torch.eye(dims), []
    for _ in "PQ":
        rows += [torch.randn(batch, dims)]
        rows += [0.1 * torch.randn(batch, dims, dims).tril(-1) + eye]
    return tuple(rows)


def sized(draw: Callable[..., Inputs], *shapes: tuple[int, ...], **named: object):
    """What draws the inputs, by a name for the table."""
    return {
        f"[{', '.join(f'{x:,}' for x in shape)}]": lambda s=shape: draw(*s, **named)
        for shape in shapes
    }


def categorical_edges(more: list[float]) -> list[Edge]:
    """Masks and underflow; `more` fills the row up to its length."""

    def rows(p: list[float], q: list[float]) -> Inputs:
        return tensor(p + more), tensor(q + more)

    return [
        Edge(rows([0.0, 0.0, -inf], [0.0, 0.0, -inf]), 0.0),
        Edge(rows([0.0, 0.0, -inf], [0.0, 0.0, 0.0]), math.log(3 / 2)),
        Edge(rows([0.0, 0.0, 0.0], [0.0, 0.0, -inf]), inf, gradient=False),
        Edge(rows([0.0, 0.0, -inf], [0.0, -120.0, -inf]), 60 - math.log(2)),
        Edge(rows([0.0, 0.0, -200.0], [0.0, 0.0, -inf]), 0.0),
        near_policies(more),
    ]


def near_policies(more: list[float]) -> Edge:
    """One logit moved by 2^-10: the terms of the plain formula cancel."""
    p = [0.0, 0.0, 0.0, *more]
    step = 2.0**-10
    q = [step, *p[1:]]
    choice = p if not more else p[:3]  # the other choices do not move
    exact = math.log1p(math.expm1(step) / len(choice)) - step / len(choice)
    return Edge((tensor(p), tensor(q)), exact)


def families(quick: bool) -> list[Family]:
    """Everything that is measured."""
    independent = by_distribution(lambda m, s: d.Independent(d.Normal(m, s), 1))
    squashed = by_distribution(
        lambda m, s: d.TransformedDistribution(
            d.Independent(d.Normal(m, s), 1), d.TanhTransform()
        )
    )
    shapes = [(64, 8), (4096, 18), (256, 1024), (8, 128, 32000), (8, 1024, 32000)]
    categoricals = by_distribution(lambda x: d.Categorical(logits=x))
    same = tuple(tensor([x]) for x in (0.3, 0.7, 0.3, 0.7))
    apart = tuple(tensor([x]) for x in (0.0, 1.0, 1.0, 2.0))
    growth = 2.0**-8
    narrow = tuple(tensor([x]) for x in (0.0, 1e-30, 0.0, 1e30))
    near = tuple(tensor([x]) for x in (0.0, 1 + growth, 0.0, 1.0))
    gaussian = [
        Edge(same, 0.0),
        Edge(apart, math.log(2) + 2 / 8 - 1 / 2),
        Edge(narrow, 60 * math.log(10) - 1 / 2),
        Edge(near, growth**2 / 2 + growth - math.log1p(growth)),
    ]
    one, two = torch.ones(1, 1), 2 * torch.ones(1, 1)
    flat = (torch.zeros(1), one, torch.ones(1), two)
    return [
        Family(
            kl_divergence_logits,
            {
                "where around the difference": guarded,
                "where on p": guarded_by_p,
                "F.kl_div, filled twice": filled_kl_div,
                "the formula": plain,
                "F.kl_div": plain_kl_div,
                "Categorical": categoricals,
            },
            categorical_edges([]),
            sized(drawn, *shapes[: 3 if quick else None]),
        ),
        Family(
            of_six,
            {
                "where on p, a choice at a time": each_choice(guarded_by_p),
                "where, a choice at a time": each_choice(guarded),
                "Categorical, a choice at a time": each_choice(categoricals),
            },
            categorical_edges([0.0] * 15),
            sized(drawn, (4096, 18)),
        ),
        Family(
            kl_bernoulli,
            {
                "Categorical of two, where": two_actions,
                "two cross-entropies": two_entropies,
                "Bernoulli": by_distribution(lambda x: d.Bernoulli(logits=x)),
            },
            [
                Edge((tensor(0.0), tensor(120.0)), 60 - math.log(2)),
                Edge((tensor(-inf), tensor(0.0)), math.log(2)),
            ],
            sized(drawn, (64, 8), (4096, 64), (4096, 1024)),
        ),
        Family(
            kl_gaussian,
            {"Independent(Normal)": independent},
            gaussian,
            sized(drawn, (64, 6), (4096, 6), (4096, 1024), rows=4, positive=(1, 3)),
        ),
        Family(
            kl_gaussian,
            {"TransformedDistribution": squashed},
            gaussian,
            sized(drawn, (4096, 6), rows=4, positive=(1, 3)),
        ),
        Family(
            clipped,
            {},
            [],
            sized(drawn, (4096, 6), rows=4, positive=(1, 3)),
        ),
        Family(
            kl_multivariate_gaussian,
            {
                "MultivariateNormal": by_distribution(
                    lambda m, f: d.MultivariateNormal(m, scale_tril=f)
                )
            },
            [Edge(flat, math.log(2) + 2 / 8 - 1 / 2)],
            sized(factors, (64, 6), (4096, 6), (64, 64)),
        ),
        *catalogued(),
    ]


def of_six(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """Six choices of three."""
    return kl_multidiscrete(logits_p, logits_q, CHOICES)


def clipped(*rows: Tensor) -> Tensor:
    """Actions between -1 and 1."""
    return kl_clipped_gaussian(*rows, -1.0, 1.0)


def catalogued() -> list[Family]:
    """The catalogue's other pairs, each as a batch of 4,096 rows."""
    measured = (kl_divergence_logits, kl_bernoulli, kl_gaussian)
    found = []
    for pair in PAIRS:
        if pair.function in (*measured, kl_multivariate_gaussian):
            continue
        rows = tuple(x.float() for x in (*pair.p, *pair.q))
        near = tuple(x.float() for x in (*pair.p, *[x * (1 + 2**-12) for x in pair.p]))
        exact = pair.function(*(x.double() for x in near)).item()
        alternative = by_distribution(pair.build)
        try:
            alternative(*rows)
        except NotImplementedError:
            others: dict[str, Divergence] = {}
        else:
            others = {"torch.distributions": alternative}
        label = ", ".join(f"{x:,}" for x in (4096, *rows[0].shape))
        batch = tuple(x.expand(4096, *x.shape).clone() for x in rows)
        shapes = {f"[{label}]": lambda b=batch: b}
        found.append(Family(pair.function, others, [Edge(near, exact)], shapes))
    return found


def seconds(function: Divergence, inputs: Inputs, backward: bool) -> float:
    """Processor time of one call, with or without the way back."""
    for x in inputs:
        x.grad = None
    with torch.set_grad_enabled(backward):
        start = time.process_time()
        value = function(*inputs)
        if backward:
            value.sum().backward()
        return time.process_time() - start


def peak(function: Divergence, inputs: Inputs) -> float:
    """Peak memory of forward and backward beyond the inputs, in bytes, on Linux."""
    for x in inputs:
        x.grad = None

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return 1024 * int(next(x for x in lines if x.startswith(key)).split()[1])

    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # forget the last peak
    before = status("VmRSS")
    function(*inputs).sum().backward()
    return status("VmHWM") - before


def medians(
    functions: dict[str, Divergence], inputs: Inputs, backward: bool, runs: int
) -> dict[str, float]:
    """The median of each; they take turns, in an order that changes every round."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    names, order = list(functions), random.Random(0)
    start = time.perf_counter()
    for name in names:
        seconds(functions[name], inputs, backward)  # warm up
    while time.perf_counter() - start < SECONDS or len(times[names[0]]) < runs:
        for name in names:
            times[name].append(seconds(functions[name], inputs, backward))
        order.shuffle(names)
    return {name: statistics.median(values) for name, values in times.items()}


def keep_small_blocks() -> None:
    """Let the allocator keep blocks below 32 MB, as that of a GPU does.

    Otherwise, whether a candidate pays for fresh pages depends on its neighbours.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def available() -> int:
    """How much memory is free, in bytes."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def best(values: dict[str, float], names: Iterable[str]) -> str:
    """Our ratio to the best of the named, and its name."""
    found = {name: values[name] for name in names if name in values}
    if not found:
        return "–"
    name = min(found, key=found.__getitem__)
    return f"{values['ours'] / found[name]:.2f} ({name})"


def rows_of(family: Family, runs: int) -> Iterable[list[str]]:
    """One row of the table for each shape."""
    others = family.others
    right = [n for n, f in others.items() if right_at_the_edges(f, family.edges)]
    wrong = [n for n in others if n not in right]
    for shape, draw in family.inputs.items():
        inputs = tuple(x.requires_grad_() for x in draw())
        size = inputs[0].nbytes
        functions = {"ours": family.function} | others
        if size > 2**29:  # leave out what is wrong in any case
            functions = {n: f for n, f in functions.items() if n not in wrong}
        if 15 * size > available():
            yield [name_of(family), shape, "not enough memory here", *[""] * 4]
            continue
        forward = medians(functions, inputs, False, runs)
        both = medians(functions, inputs, True, runs)
        memory = {}
        if size >= 2**26:
            for _ in range(2):  # the first call warms up
                memory = {name: peak(f, inputs) for name, f in functions.items()}
        yield [
            name_of(family),
            shape,
            f"{1000 * forward['ours']:.3g}",
            best(forward, right),
            best(both, right),
            best(memory, right),
            best(both, wrong),
        ]


def against_the_past(runs: int) -> None:
    """What digits near equality cost: ours beside the plain sum with a guard."""
    print("The categorical KL beside the plain sum with a guard on p:\n")
    print("| shape | forward and backward | bound | peak memory | bound |")
    print("| --- | --- | --- | --- | --- |")
    functions = {"ours": kl_divergence_logits, "plain": guarded_by_p}
    for shape in ((1, 4), (100_000, 4), (4096, 64), (512, 32_000)):
        inputs = tuple(x.requires_grad_() for x in drawn(*shape))
        both = medians(functions, inputs, True, runs)
        memory = {}
        if inputs[0].nbytes >= 2**25:
            for _ in range(2):
                memory = {name: peak(f, inputs) for name, f in functions.items()}
        times = f"{both['ours'] / both['plain']:.2f}"
        peaks = f"{memory['ours'] / memory['plain']:.2f}" if memory else "–"
        print(f"| {[*shape]} | {times} | 1.80 | {peaks} | 1.30 |", flush=True)


def name_of(family: Family) -> str:
    """The function as the table calls it."""
    names = {of_six: "kl_multidiscrete", clipped: "kl_clipped_gaussian"}
    return f"`{names.get(family.function, family.function.__name__)}`"


def main() -> None:
    """Measure everything, or less of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no large shapes")
    parser.add_argument("--runs", type=int, default=5, help="rounds at least")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_small_blocks()
    gc.disable()  # all candidates leave their garbage to reference counts
    print(f"# The exact divergences beside torch, measured on {date.today()}\n")
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{versions}, {system}, one thread, float32.\n")
    header = [
        "function",
        "shape",
        "forward, ms",
        "forward",
        "forward and backward",
        "peak memory",
        "both, beside the fastest that is wrong",
    ]
    against_the_past(options.runs)
    print()
    for row in (header, ["---"] * len(header)):
        print(f"| {' | '.join(row)} |")
    for family in families(options.quick):
        assert right_at_the_edges(family.function, family.edges), name_of(family)
        for row in rows_of(family, options.runs):
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
