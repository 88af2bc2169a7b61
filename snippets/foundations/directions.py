"""A family of policies that is too narrow for most targets: one bump over the actions.

Source: Bishop, Pattern Recognition and Machine Learning, section 10.1.2, fits such a
family by both directions of the KL (unverified here: the tests derive the optima).
"""

import torch
from torch import Tensor

from snippets.foundations.contract import (
    check_positive,
    check_tensors,
    nan_outside,
    widen,
)


def window_logits(center: Tensor, width: Tensor, actions: int) -> Tensor:
    """Logits, in nats, of a policy with one bump over a row of actions.

    A Gaussian of the place of the action, cut to the row. A policy with two parameters
    cannot match every target: that is when the direction of the KL matters. A row with
    a width that is not positive is `nan`. Half precision is computed in float32 and
    rounded once.

    Args:
        center: Where the bump is, in actions, `(*batch)`.
        width: Its standard deviation, in actions, `(*batch)`.
        actions: How many actions there are.

    Returns:
        Logits, `(*batch, actions)`.

    Raises:
        ValueError: If the shapes differ, one is an integer tensor, or there are no
            actions.
    """
    check_positive(actions=actions)
    check_tensors(center=center, width=width)
    dtype, (center, width) = widen(center, width)
    place = torch.arange(actions, dtype=center.dtype, device=center.device)
    distance = (place - center[..., None]) / width[..., None]  # (*batch, actions)
    return nan_outside(-distance.square() / 2, width[..., None] > 0).to(dtype)
