"""What a KL says about total variation and about the return, and where it says nothing.

Source: Cover and Thomas, Elements of Information Theory, 2nd ed., lemma 11.6.1
(Pinsker); Bretagnolle and Huber 1979 (unverified here: tested as a property); Schulman
et al., Trust Region Policy Optimization, arXiv:1502.05477, theorem 1, for the return.
"""

from torch import Tensor

from snippets.foundations.contract import (
    check_floating,
    check_tensors,
    nan_outside,
    widen,
)


def pinsker(kl: Tensor) -> Tensor:
    """The largest total variation that a KL allows: the root of half of it, no unit.

    It passes 1, and says nothing, beyond 2 nats. An estimate below 0 counts as 0; at 0
    the bound has no slope, and its gradient is 0. Half precision is computed in float32
    and rounded once.

    Args:
        kl: KL(P || Q) in nats, `(*batch)`.

    Returns:
        One bound per row, `(*batch)`.

    Raises:
        ValueError: If the KL is an integer tensor.
    """
    check_floating(kl=kl)
    dtype, (kl,) = widen(kl)
    return (kl.relu() / 2).sqrt().to(dtype)


def bretagnolle_huber(kl: Tensor) -> Tensor:
    """The largest total variation that a KL allows: at most 1 for any KL, no unit.

    An estimate below 0 counts as 0; at 0 the bound has no slope, and its gradient is 0.
    Half precision is computed in float32 and rounded once.

    Args:
        kl: KL(P || Q) in nats, `(*batch)`.

    Returns:
        One bound per row, `(*batch)`.

    Raises:
        ValueError: If the KL is an integer tensor.
    """
    check_floating(kl=kl)
    dtype, (kl,) = widen(kl)
    return (-(-kl.relu()).expm1()).relu().sqrt().to(dtype)


def return_bound(
    *,
    surrogate: Tensor,
    largest_kl: Tensor,
    largest_advantage: Tensor,
    discount: float,
) -> Tensor:
    """The smallest return that a new policy can have, by TRPO's theorem 1.

    Without a discount, or without an advantage, the KL does not matter, even where it
    is `inf`. A row with a negative largest advantage is `nan`. Half precision is
    computed in float32 and rounded once.

    Args:
        surrogate: Return of the old policy, plus the new policy's mean advantage over
            the old states divided by `1 - discount`, `(*batch)`.
        largest_kl: Largest KL(old || new) of any state, in nats, `(*batch)`.
        largest_advantage: Largest absolute advantage of any state and action,
            `(*batch)`.
        discount: At least 0 and below 1.

    Returns:
        One lower bound per row, in units of the return, `(*batch)`.

    Raises:
        ValueError: If the discount is not between 0 and 1, the shapes differ, or one is
            an integer tensor.
    """
    if not 0 <= discount < 1:
        raise ValueError(f"discount is {discount}; it must be at least 0 and below 1")
    check_tensors(
        surrogate=surrogate,
        largest_kl=largest_kl,
        largest_advantage=largest_advantage,
    )
    dtype, (surrogate, kl, largest) = widen(surrogate, largest_kl, largest_advantage)
    # --8<-- [start:core]
    weight = 4 * largest * discount / (1 - discount) ** 2
    bound = surrogate - weight * kl.where(weight != 0, 0.0)
    # --8<-- [end:core]
    return nan_outside(bound, largest >= 0).to(dtype)
