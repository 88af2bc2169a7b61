"""DPO and its relatives: losses of log-ratios to the reference, without a KL term.

Source: Rafailov et al., arXiv:2305.18290 (DPO); Azar et al., arXiv:2310.12036 (IPO);
Ethayarajh et al., arXiv:2402.01306 (KTO); Wang et al., arXiv:2309.16240 (f-DPO).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from snippets.estimate.sequences import sequence_log_prob
from snippets.foundations.contract import (
    check_floating,
    check_mask,
    check_positive,
    check_tensors,
    widen,
)


def completion_log_ratio(
    *, new_log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """Log new / ref of whole completions in nats: sums over tokens, and no means.

    What stands under the mask is not read. An empty completion has log-ratio 0. Half
    precision is computed in float32 and rounded once.

    Args:
        new_log_probs: Log-probability of each token under the policy that trains,
            `(*batch, time)`.
        ref_log_probs: Log-probability of each token under the reference,
            `(*batch, time)`; gets no gradient.
        mask: True where a token belongs to the completion, `(*batch, time)`.

    Returns:
        One log-ratio per completion, `(*batch)`.

    Raises:
        ValueError: If the mask is not boolean, or a tensor is an integer one or has
            another shape.
    """
    check_mask(mask, new_log_probs=new_log_probs, ref_log_probs=ref_log_probs)
    dtype, (new, ref) = widen(new_log_probs, ref_log_probs)
    return sequence_log_prob(new - ref.detach(), mask).to(dtype)


def dpo_loss(*, chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Minus the log-probability that the chosen completion wins, in nats per pair.

    beta times a log-ratio is the completion's reward, up to a constant of the prompt.
    Half precision is computed in float32 and rounded once.

    Args:
        chosen: Log-ratio new / ref of the completion that won, `(*batch)`.
        rejected: Log-ratio new / ref of the completion that lost, `(*batch)`.
        beta: The KL coefficient: how much reward a nat is worth.

    Returns:
        One loss per pair, `(*batch)`, log 2 for a policy that is the reference. It
        has no minimum where one completion always wins.

    Raises:
        ValueError: If beta is not positive, the shapes differ, or one is an integer
            tensor.
    """
    check_positive(beta=beta)
    check_tensors(chosen=chosen, rejected=rejected)
    dtype, (chosen, rejected) = widen(chosen, rejected)
    # --8<-- [start:dpo]
    margin = beta * (chosen - rejected)
    loss = -logsigmoid(margin)
    # --8<-- [end:dpo]
    return loss.to(dtype)


def ipo_loss(*, chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """The squared distance in nats of the gap of log-ratios from 1 / (2 beta).

    Half precision is computed in float32 and rounded once.

    Args:
        chosen: Log-ratio new / ref of the completion that won, `(*batch)`.
        rejected: Log-ratio new / ref of the completion that lost, `(*batch)`.
        beta: The KL coefficient; the paper's tau.

    Returns:
        One loss per pair, `(*batch)`, in squared nats, least at a finite gap.

    Raises:
        ValueError: If beta is not positive, the shapes differ, or one is an integer
            tensor.
    """
    check_positive(beta=beta)
    check_tensors(chosen=chosen, rejected=rejected)
    dtype, (chosen, rejected) = widen(chosen, rejected)
    # --8<-- [start:ipo]
    loss = (chosen - rejected - 1 / (2 * beta)).square()
    # --8<-- [end:ipo]
    return loss.to(dtype)


def kto_reference_point(mismatched: Tensor) -> Tensor:
    """The mean log-ratio of completions of other prompts, at least 0, in nats.

    A constant. No estimate of KL(new || ref): the completions are not drawn from new.
    The lower limit is the paper's, and part of the definition. Half precision is
    computed in float32 and rounded once.

    Args:
        mismatched: Log-ratio new / ref of a completion of another prompt, one for
            each prompt, `(prompts)`.

    Returns:
        A scalar without a gradient, `nan` for no prompts.

    Raises:
        ValueError: If the log-ratios are integers.
    """
    check_floating(mismatched=mismatched)
    dtype, (log_ratios,) = widen(mismatched.detach())
    return log_ratios.mean().clamp(min=0).to(dtype)


def kto_loss(
    *, log_ratios: Tensor, reference_point: Tensor, desirable: Tensor, beta: float
) -> Tensor:
    """One minus the value of a completion, judged against the reference point.

    Without unit, between 0 and 1. Good and bad completions count the same: the paper's
    two weights are 1. Half precision is computed in float32 and rounded once.

    Args:
        log_ratios: Log-ratio new / ref of each completion, `(*batch)`.
        reference_point: What `kto_reference_point` gives, a scalar, `()`.
        desirable: True where the completion is a good one, `(*batch)`.
        beta: How fast the value saturates.

    Returns:
        One loss per completion, `(*batch)`.

    Raises:
        ValueError: If beta is not positive, the reference point is no scalar,
            `desirable` is not boolean or has another shape, or one of the others is an
            integer tensor.
    """
    check_positive(beta=beta)
    check_floating(log_ratios=log_ratios, reference_point=reference_point)
    if reference_point.ndim:
        raise ValueError(f"reference_point is {[*reference_point.shape]}, no scalar")
    if desirable.dtype != torch.bool or desirable.shape != log_ratios.shape:
        given = f"desirable is {desirable.dtype} {[*desirable.shape]}"
        raise ValueError(f"{given}, not boolean {[*log_ratios.shape]}")
    dtype, (log_ratios, point) = widen(log_ratios, reference_point)
    # --8<-- [start:kto]
    above = log_ratios - point
    value = (beta * above.where(desirable, -above)).sigmoid()
    # --8<-- [end:kto]
    return (1 - value).to(dtype)


def alpha_link(log_ratios: Tensor, alpha: float) -> Tensor:
    """What f-DPO has for the log-ratio, with the alpha-divergence: its f'.

    It is (1 - u^-alpha) / alpha, with u = new / ref, and has no unit. At alpha = 1 it
    is that of KL(ref || new), 1 - ref / new; as alpha goes to 0 it goes to the
    log-ratio, as in DPO. It overflows to `-inf` where a completion has become
    `exp(88 / alpha)` times rarer in float32. Half precision is computed in float32
    and rounded once.

    Args:
        log_ratios: Log-ratio new / ref of each completion, `(*batch)`.
        alpha: Above 0, and at most 1 in the paper. TRL's coefficient is 1 - alpha.

    Returns:
        What replaces the log-ratio in the loss, `(*batch)`.

    Raises:
        ValueError: If alpha is not positive, or the log-ratios are integers.
    """
    check_positive(alpha=alpha)
    check_floating(log_ratios=log_ratios)
    dtype, (log_ratios,) = widen(log_ratios)
    return (-(-alpha * log_ratios).expm1() / alpha).to(dtype)


def jensen_shannon_link(log_ratios: Tensor) -> Tensor:
    """What f-DPO has for the log-ratio, with Jensen-Shannon: its f', in nats.

    It is log 2 u / (1 + u), with u = new / ref: the slope of the sum of both KLs to
    the mean of new and ref; half of that sum has half the slope. Half precision is
    computed in float32 and rounded once.

    Args:
        log_ratios: Log-ratio new / ref of each completion, `(*batch)`.

    Returns:
        What replaces the log-ratio in the loss, `(*batch)`, at most log 2.

    Raises:
        ValueError: If the log-ratios are integers.
    """
    check_floating(log_ratios=log_ratios)
    dtype, (log_ratios,) = widen(log_ratios)
    return (math.log(2) + logsigmoid(log_ratios)).to(dtype)


def f_dpo_loss(
    *, chosen: Tensor, rejected: Tensor, beta: float, link: Callable[[Tensor], Tensor]
) -> Tensor:
    """DPO for another divergence, in nats: the link, its f', stands in for the log.

    A pair whose rejected completion is so rare that its link overflows is decided: its
    loss and its gradient are 0. Where the chosen one's does, the loss is `inf`; where
    both do, `nan`. Half precision is computed in float32 and rounded once.

    Args:
        chosen: Log-ratio new / ref of the completion that won, `(*batch)`.
        rejected: Log-ratio new / ref of the completion that lost, `(*batch)`.
        beta: The reward that a unit of the divergence is worth.
        link: What f' of the ratio is, as a function of its logarithm; the identity
            for DPO.

    Returns:
        One loss per pair, `(*batch)`.

    Raises:
        ValueError: If beta is not positive, the shapes differ, or one is an integer
            tensor.
    """
    check_tensors(chosen=chosen, rejected=rejected)
    dtype, pair = widen(chosen, rejected)
    with torch.no_grad():
        decided = (link(pair[0]) - link(pair[1])).isposinf()
    won, lost = (link(x.masked_fill(decided, 0.0)) for x in pair)
    loss = dpo_loss(chosen=won, rejected=lost, beta=beta)
    return loss.masked_fill(decided, 0.0).to(dtype)
