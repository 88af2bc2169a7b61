"""Calls every function with tensors of a GPU that is only imagined, in this process.

Prints what went wrong, by function. Python's brackets ask for the driver before they
ask the mode, so they are replaced here, which cannot be undone: hence a process.
"""

import json

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.contract.exceptions import HOST, NOT_TENSORS
from tests.contract.functions import arguments, call, functions, results, tensors


def indexed(x, index):
    """`x[index]` in operations that need no driver."""
    index = index if isinstance(index, tuple) else (index,)
    if any(isinstance(i, Tensor) for i in index):
        return torch.ops.aten.index.Tensor(x, list(index))
    real = sum(i is not None and i is not Ellipsis for i in index)
    rest = (slice(None),) * (x.ndim - real)
    flat = [j for i in index for j in (rest if i is Ellipsis else (i,))]
    dim = 0
    for i in flat:
        if i is None:
            x = x.unsqueeze(dim)
        elif isinstance(i, int):
            x = x.select(dim, i)
            continue
        elif i != slice(None):
            x = torch.ops.aten.slice.Tensor(x, dim, i.start, i.stop, i.step or 1)
        dim += 1
    return x


def fault(function):
    """What went wrong, or nothing."""
    given = arguments(function)
    try:
        with FakeTensorMode():
            fake = {
                k: torch.empty(v.shape, dtype=v.dtype, device="cuda")
                if isinstance(v, Tensor)
                else v
                for k, v in given.items()
            }
            found = results(call(function, fake))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    away = [x for x in found if x.device.type != "cuda"]
    return f"{len(away)} results are not on the GPU" if away else ""


if __name__ == "__main__":
    Tensor.__invert__ = lambda x: torch.bitwise_not(x)
    Tensor.__getitem__ = indexed
    Tensor.contiguous = lambda x, **_: x.clone()
    asked = {
        name: f
        for name, f in functions().items()
        if name not in {**NOT_TENSORS, **HOST} and tensors(f)
    }
    print(json.dumps({name: fault(f) for name, f in asked.items()}))
