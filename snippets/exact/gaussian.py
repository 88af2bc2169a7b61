"""The KL between two diagonal Gaussian policies, exact.

Source: Kingma and Welling, arXiv:1312.6114, appendix B, for a standard normal Q; the
general form follows by shifting and scaling both.
"""

import torch
from torch import Tensor

from snippets.exact.bregman import ratio_gap
from snippets.foundations.contract import check_floating, nan_outside, widen


def kl_gaussian(mean_p: Tensor, std_p: Tensor, mean_q: Tensor, std_q: Tensor) -> Tensor:
    """KL(P || Q) in nats, summed over the independent dimensions of an action.

    Never negative, and exactly 0 for equal arguments. A row with a standard deviation
    that is not positive and finite is `nan`. Half precision is computed in float32 and
    rounded once.

    Args:
        mean_p: Means of P, `(*batch, dims)`; `dims` is 1 for an action of one number.
        std_p: Standard deviations of P, `(*batch, dims)` or `(dims,)`.
        mean_q: Means of Q, `(*batch, dims)` or `(dims,)`.
        std_q: Standard deviations of Q, `(*batch, dims)` or `(dims,)`.

    Returns:
        One KL per action, `(*batch)`. Gradients flow to all arguments.

    Raises:
        ValueError: If shapes differ in more than missing batch axes, or an argument
            is an integer tensor.
    """
    check_dims(mean_p=mean_p, std_p=std_p, mean_q=mean_q, std_q=std_q)
    dtype, (mean_p, std_p, mean_q, std_q) = widen(mean_p, std_p, mean_q, std_q)
    # --8<-- [start:core]
    shift = (mean_p - mean_q) / std_q  # (*batch, dims)
    change = (std_p - std_q) / std_q
    # r^2 / 2 - 1 / 2 - log r, as two terms that are not negative; r is 1 + change.
    widths = ratio_gap(std_p, std_q) + change.square() / 2
    kl = (widths + shift.square() / 2).sum(-1)  # (*batch)
    # --8<-- [end:core]
    valid = ((std_p > 0) & (std_q > 0) & std_p.isfinite() & std_q.isfinite()).all(-1)
    return nan_outside(kl, valid).to(dtype)


def check_dims(**arguments: Tensor) -> None:
    """Refuse shapes that broadcasting would turn into something else.

    Args:
        arguments: By the name that the error shows, `(*batch, dims)` or `(dims,)`.

    Raises:
        ValueError: If one has no axes, neither of these two shapes, or is an integer
            tensor.
    """
    check_floating(**arguments)
    longest = torch.Size()
    for x in arguments.values():
        longest = x.shape if x.ndim > len(longest) else longest
    for name, x in arguments.items():
        if x.ndim == 0 or x.shape not in (longest, longest[-1:]):
            raise ValueError(f"{name} is {[*x.shape]}, beside {[*longest]}")
