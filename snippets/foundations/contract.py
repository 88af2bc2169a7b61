"""What every function asks of its arguments: shapes and dtypes, never a value.

A shape is known without waiting for a GPU, and under `torch.compile`; a value is not.
So a wrong shape raises, and a row whose values make no sense becomes `nan`.
Source: rlax, which asserts ranks and types on the first line of every function.
"""

from functools import reduce

import torch
from torch import Tensor


def check_tensors(axes: int = 0, **tensors: Tensor) -> None:
    """Refuse tensors that differ in shape, lack axes, or are not floating point.

    Args:
        axes: How many axes, at the end, belong to one event: 1 for logits.
        tensors: By the name that the error shows. The first gives the shape.

    Raises:
        ValueError: If one of them does; the message names it.
    """
    first, shape = next((name, x.shape) for name, x in tensors.items())
    for name, x in tensors.items():
        if x.ndim < axes:
            raise ValueError(f"{name} is {[*x.shape]}, and needs {axes} axes or more")
        if x.shape != shape:
            raise ValueError(f"{name} is {[*x.shape]}, {first} is {[*shape]}")
        check_floating(**{name: x})


def check_floating(**tensors: Tensor) -> None:
    """Refuse integers and booleans, whose logarithm would be rounded.

    Args:
        tensors: By the name that the error shows, of any shape.

    Raises:
        ValueError: If one of them is not floating point; the message names it.
    """
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, not {x.dtype}")


def check_mask(mask: Tensor, **tensors: Tensor) -> None:
    """Refuse a mask that is not boolean, and tensors that have another shape.

    Args:
        mask: True where a token or sample counts, `(*batch, time)`.
        tensors: What it belongs to, by the name that the error shows.

    Raises:
        ValueError: If the mask is not boolean or has no axis, or a tensor has another
            shape or is not floating point.
    """
    if mask.dtype != torch.bool or not mask.ndim:
        raise ValueError(f"mask must be boolean, not {mask.dtype} {[*mask.shape]}")
    for name, x in tensors.items():
        if x.shape != mask.shape:
            raise ValueError(f"mask is {[*mask.shape]}, {name} is {[*x.shape]}")
        check_floating(**{name: x})


def check_rows(mask: Tensor, **tensors: Tensor) -> None:
    """Refuse tensors that do not have one number for each sequence of a mask.

    Args:
        mask: True where a token counts, `(*batch, time)`; checked elsewhere.
        tensors: One number per sequence, by the name that the error shows.

    Raises:
        ValueError: If a tensor has another shape or is not floating point; the
            message names it.
    """
    for name, x in tensors.items():
        if x.shape != mask.shape[:-1]:
            wanted = f"not {[*mask.shape[:-1]]}, one per sequence"
            raise ValueError(f"{name} is {[*x.shape]}, {wanted}")
        check_floating(**{name: x})


def check_positive(**numbers: float | Tensor) -> None:
    """Refuse a number that is not positive. A tensor's value is not looked at.

    Args:
        numbers: By the name that the error shows.

    Raises:
        ValueError: If a Python number is zero, negative or nan; the message names it.
    """
    for name, number in numbers.items():
        if not isinstance(number, Tensor) and not number > 0:
            raise ValueError(f"{name} is {number}, and must be positive")


def widen(*tensors: Tensor) -> tuple[torch.dtype, list[Tensor]]:
    """The dtype that a result should have, and the tensors in float32 or wider.

    Args:
        tensors: Of any shape, floating point.

    Returns:
        The common dtype, to round to once at the end, and the tensors.
    """
    dtype = reduce(torch.promote_types, [x.dtype for x in tensors])
    wide = torch.promote_types(dtype, torch.float32)
    return dtype, [x.to(wide) for x in tensors]


def nan_outside(values: Tensor, *inside: Tensor) -> Tensor:
    """The values, `nan` where a condition on the arguments does not hold.

    Args:
        values: What was computed, `(*batch)`.
        inside: Conditions, True where the arguments make sense, `(*batch)`.

    Returns:
        `(*batch)`. The gradient of a row that became `nan` is 0 or `nan`.
    """
    return values.where(reduce(torch.logical_and, inside), torch.nan)
