"""What the tests of all rooms draw: policies, their samples, and masks.

Everything is float64, so that a tolerance measures the function and not its input.
"""

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor, nan, tensor


def numbers(*shape: int, largest: float = 3.0) -> SearchStrategy[Tensor]:
    """A tensor of this shape, each number between -largest and largest."""
    count = torch.Size(shape).numel()
    row = st.lists(st.floats(-largest, largest), min_size=count, max_size=count)
    return row.map(lambda flat: tensor(flat, dtype=torch.float64).reshape(shape))


logits = numbers  # unnormalised: the last axis lists the actions


def log_probs(*shape: int, largest: float = 3.0) -> SearchStrategy[Tensor]:
    """Log-probabilities over the last axis: `log_probs(3, 4)` has three rows."""
    return logits(*shape, largest=largest).map(lambda x: x.log_softmax(-1))


def positive(
    *shape: int, low: float = -2.0, high: float = 4.0
) -> SearchStrategy[Tensor]:
    """Positive numbers over some orders of magnitude: exp of low to high."""
    middle, half = (low + high) / 2, (high - low) / 2
    return numbers(*shape, largest=half).map(lambda x: (x + middle).exp())


@st.composite
def policies(
    draw: DrawFn, count: int, fewest: int = 1, most: int = 6, largest: float = 5.0
) -> list[Tensor]:
    """Logits of several policies over the same actions, `(actions)` each."""
    actions = draw(st.integers(fewest, most))
    return [draw(logits(actions, largest=largest)) for _ in range(count)]


def two_policies(
    fewest: int = 1, most: int = 6, largest: float = 5.0
) -> SearchStrategy[list[Tensor]]:
    """Logits of P and of Q over the same actions, `(actions)` each."""
    return policies(2, fewest, most, largest)


def two_log_policies(
    fewest: int = 1, most: int = 6, largest: float = 4.0
) -> SearchStrategy[list[Tensor]]:
    """Log-probabilities of P and of Q, listed for every action, `(actions)` each."""
    two = two_policies(fewest, most, largest)
    return two.map(lambda pair: [x.log_softmax(-1) for x in pair])


@st.composite
def two_choices(
    draw: DrawFn, most: int = 4, largest: float = 5.0
) -> list[list[Tensor]]:
    """Logits of a first choice and of a second one given the first, of P and of Q.

    `[[first_p, later_p], [first_q, later_q]]`, `(actions)` and `(actions, vocab)`,
    so that a test that swaps the two axes fails.
    """
    actions, vocab = draw(st.integers(1, most)), draw(st.integers(1, most))
    shapes = [(actions,), (actions, vocab)]
    return [[draw(logits(*shape, largest=largest)) for shape in shapes] for _ in "PQ"]


@st.composite
def two_gaussians(
    draw: DrawFn, most: int = 4, largest: float = 3.0, spread: float = 2.0
) -> list[Tensor]:
    """Mean and standard deviation of P, then of Q, `(dims)` each."""
    dims = draw(st.integers(1, most))
    std = positive(dims, low=-spread, high=spread)
    return [draw(x) for _ in "PQ" for x in (numbers(dims, largest=largest), std)]


def masks(*shape: int, some: bool = False) -> SearchStrategy[Tensor]:
    """Booleans of this shape; with `some`, each row has at least one True."""
    count = torch.Size(shape).numel()
    row = st.lists(st.booleans(), min_size=count, max_size=count)
    drawn = row.map(lambda flags: tensor(flags, dtype=torch.bool).reshape(shape))
    return drawn.filter(lambda mask: bool(mask.any(-1).all())) if some else drawn


@st.composite
def padded(
    draw: DrawFn, sequences: int = 4, longest: int = 5, largest: float = 10.0
) -> tuple[list[list[float]], Tensor, Tensor]:
    """Values of sequences of unequal length: as lists, padded on the right, the mask.

    Under the mask stands `nan`, which no function may read.
    """
    lengths = draw(st.lists(st.integers(1, longest), min_size=1, max_size=sequences))
    number = st.floats(-largest, largest)
    rows = [draw(st.lists(number, min_size=n, max_size=n)) for n in lengths]
    mask = torch.arange(max(lengths)) < tensor(lengths).unsqueeze(-1)
    values = torch.full(mask.shape, nan, dtype=torch.float64)
    values[mask] = tensor([x for row in rows for x in row], dtype=torch.float64)
    return rows, values, mask
