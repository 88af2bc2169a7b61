"""DPO and its relatives: losses of log-ratios to the reference, without a KL term.

Source: Rafailov et al., arXiv:2305.18290 (DPO); Azar et al., arXiv:2310.12036 (IPO);
Ethayarajh et al., arXiv:2402.01306 (KTO); Wang et al., arXiv:2309.16240 (f-DPO).
"""

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import logsigmoid

from snippets.estimate.sequences import sequence_log_prob


def answer_log_ratio(
    new_log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """Log new / ref of whole answers in nats: sums over tokens, and no means.

    What stands under the mask is not read. An empty answer has log-ratio 0.

    Args:
        new_log_probs: Log-probability of each token under the policy that trains,
            `(*batch, time)`.
        ref_log_probs: The same under the reference, likewise; gets no gradient.
        mask: True where a token belongs to the answer, likewise.

    Returns:
        One log-ratio per answer, `(*batch)`.

    Raises:
        ValueError: If the mask is not boolean, or has another shape.
    """
    new = sequence_log_prob(new_log_probs, mask)
    return new - sequence_log_prob(ref_log_probs.detach(), mask)


def _check(beta: float) -> None:
    """Raise unless the price of a nat is positive."""
    if not beta > 0:
        raise ValueError(f"beta is {beta}, not positive")


def dpo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Minus the log-probability that the chosen answer wins, in nats per pair.

    beta times a log-ratio is the answer's reward, up to a constant of the prompt.

    Args:
        chosen: Log-ratio to the reference of the answer that won, `(*batch)`.
        rejected: That of the other answer, likewise.
        beta: The reward that a nat is worth.

    Returns:
        One loss per pair, `(*batch)`, log 2 for a policy that is the reference. It
        has no minimum where one answer always wins.

    Raises:
        ValueError: If beta is not positive.
    """
    _check(beta)
    return -logsigmoid(beta * (chosen - rejected))


def ipo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """The squared distance in nats of the gap of log-ratios from 1 / (2 beta).

    Args:
        chosen: Log-ratio to the reference of the answer that won, `(*batch)`.
        rejected: That of the other answer, likewise.
        beta: The price of a nat; the paper's tau.

    Returns:
        One loss per pair, `(*batch)`, in squared nats, least at a finite gap.

    Raises:
        ValueError: If beta is not positive.
    """
    _check(beta)
    return (chosen - rejected - 1 / (2 * beta)).square()


def kto_reference_point(mismatched: Tensor) -> Tensor:
    """The mean log-ratio of answers to other prompts, at least 0: a constant in nats.

    No estimate of KL(new || ref): the answers are not drawn from new. The lower limit
    is the paper's, and part of the definition.

    Args:
        mismatched: Log-ratio to the reference of each prompt's wrong answer, `(batch)`.

    Returns:
        A scalar without a gradient.
    """
    return mismatched.detach().mean().clamp(min=0)


def kto_loss(
    log_ratio: Tensor, point: Tensor, desirable: Tensor, beta: float
) -> Tensor:
    """One minus the value of an answer, judged against the reference point.

    Good and bad answers count the same: the paper's two weights are 1.

    Args:
        log_ratio: Log-ratio to the reference, `(*batch)`.
        point: The reference point, a scalar.
        desirable: True where the answer is a good one, `(*batch)`.
        beta: How fast the value saturates.

    Returns:
        One loss per answer, `(*batch)`, between 0 and 1.

    Raises:
        ValueError: If beta is not positive.
    """
    _check(beta)
    gain = (log_ratio - point).where(desirable, point - log_ratio)
    return 1 - (beta * gain).sigmoid()


def forward_link(log_ratio: Tensor) -> Tensor:
    """Minus ref / new, the slope of KL(ref || new) in new, for f-DPO.

    It overflows where an answer has become `exp(88)` times rarer in float32, and then
    the loss of a pair has a gradient of `nan`.

    Args:
        log_ratio: log new / ref of an answer, `(*batch)`.

    Returns:
        What replaces the log-ratio in the loss, `(*batch)`.
    """
    return -(-log_ratio).exp()


def jensen_shannon_link(log_ratio: Tensor) -> Tensor:
    """Log 2 new / (new + ref), the slope of the Jensen-Shannon divergence, for f-DPO.

    Of the sum of both KLs to the mean of new and ref, that is; half as much halves it.

    Args:
        log_ratio: log new / ref of an answer, `(*batch)`.

    Returns:
        What replaces the log-ratio in the loss, `(*batch)`, at most log 2.
    """
    return math.log(2) + logsigmoid(log_ratio)


def f_dpo_loss(
    chosen: Tensor, rejected: Tensor, beta: float, link: Callable[[Tensor], Tensor]
) -> Tensor:
    """DPO for another divergence: the link, its f', stands in for the logarithm.

    Args:
        chosen: Log-ratio to the reference of the answer that won, `(*batch)`.
        rejected: That of the other answer, likewise.
        beta: The reward that a unit of the divergence is worth.
        link: What f' of the ratio is, as a function of its logarithm; the identity
            for DPO.

    Returns:
        One loss per pair, `(*batch)`.

    Raises:
        ValueError: If beta is not positive.
    """
    return dpo_loss(link(chosen), link(rejected), beta)
