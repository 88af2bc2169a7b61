"""A learning rate that follows the KL of the update.

Source: the schedule of rsl_rl, rl_games and skrl, which train legged robots with it.
"""

from snippets.foundations.contract import check_positive


def adapt_rate(
    rate: float,
    kl: float,
    target: float,
    lowest: float,
    highest: float,
    *,
    band: float = 2.0,
) -> float:
    """The next learning rate, from the mean KL(old || new) of the last update, in nats.

    A KL of 0, or of a rounding error below it, says that nothing has moved yet, as in
    the first minibatch after a rollout, and changes nothing.

    Args:
        rate: The learning rate that was used.
        kl: Mean KL of the update, in nats.
        target: The KL that an update should have, in nats.
        lowest: The rate never falls below this.
        highest: The rate never rises above this.
        band: How many times the target, or what part of it, is still left alone. If
            it is below 1.5, the rate may never come to rest.

    Returns:
        The rate, divided by 1.5 above band times the target and multiplied by 1.5
        below the target over band, as far as the two limits allow.

    Raises:
        ValueError: If the KL is nan, a rate or the target is not positive, the limits
            are in the wrong order, or the band is below 1.
    """
    check_positive(rate=rate, target=target, lowest=lowest)
    if not lowest <= highest:
        raise ValueError(f"lowest is {lowest}, highest is {highest}")
    if kl != kl:
        raise ValueError("kl is nan")
    if not band >= 1:
        raise ValueError(f"band is {band}, and must be at least 1")
    # --8<-- [start:core]
    if kl > band * target:
        return max(lowest, rate / 1.5)
    if 0 < kl < target / band:
        return min(highest, rate * 1.5)
    return rate
    # --8<-- [end:core]
