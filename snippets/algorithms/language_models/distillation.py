"""A student learns a teacher's next-token distributions: which KL, on whose answers.

Source: Hinton et al., arXiv:1503.02531 (temperature); Gu et al., arXiv:2306.08543
(MiniLLM); Agarwal et al., arXiv:2306.13649 (GKD).
"""

import math

import torch
from torch import Tensor

from snippets.estimate.estimators import k1
from snippets.estimate.sequences import to_go
from snippets.exact.categorical import kl_divergence_logits


def forward_divergence(
    teacher_logits: Tensor, student_logits: Tensor, temperature: float
) -> Tensor:
    """KL(teacher || student) in nats of both softened, times the temperature squared.

    The factor keeps the size of the gradient as the temperature grows. At 1 it is the
    KL itself.

    Args:
        teacher_logits: What is learned, `(*batch, vocab)`; gets no gradient.
        student_logits: What learns, likewise.
        temperature: What both are divided by.

    Returns:
        One divergence per position, `(*batch)`.

    Raises:
        ValueError: If the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, not positive")
    teacher, student = (
        teacher_logits.detach() / temperature,
        student_logits / temperature,
    )
    return temperature**2 * kl_divergence_logits(teacher, student)


def generalised_jensen_shannon(
    teacher_logits: Tensor, student_logits: Tensor, beta: float
) -> Tensor:
    """GKD: the mean KL in nats to a mixture with the share beta of the teacher.

    beta · KL(teacher || mixture) + (1 - beta) · KL(student || mixture), finite whatever
    either masks. It goes to 0 at both ends of beta; divided by beta, or by 1 - beta, it
    goes to KL(teacher || student), or to KL(student || teacher).

    Args:
        teacher_logits: What is learned, `(*batch, vocab)`; gets no gradient.
        student_logits: What learns, likewise.
        beta: The teacher's share of the mixture.

    Returns:
        One divergence per position, `(*batch)`.

    Raises:
        ValueError: If beta is not between 0 and 1, both excluded.
    """
    if not 0 < 1 - beta < 1:
        raise ValueError(f"beta is {beta}; at 0 and 1 the divergence is zero")
    wide = torch.promote_types(student_logits.dtype, torch.float32)
    teacher = teacher_logits.detach().log_softmax(-1, wide)  # (*batch, vocab)
    student = student_logits.log_softmax(-1, wide)  # (*batch, vocab)
    from_teacher = _kl_to_mixture(teacher, student, beta)  # (*batch)
    from_student = _kl_to_mixture(student, teacher, 1 - beta)  # (*batch)
    divergence = beta * from_teacher + (1 - beta) * from_student
    return divergence.to(student_logits.dtype)


def _kl_to_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """KL(P || share·P + (1 - share)·Q) in nats, from log-probabilities."""
    p = log_p.exp()
    log_ratio = (log_q - log_p).where(p.bool(), 0.0)
    near = log_ratio.abs() < 1
    # log(share + (1 - share)·Q/P), exactly 0 for equal P and Q and with no digits lost
    # to a share near 0 or 1, nor to a ratio that overflows.
    inner = ((1 - share) * log_ratio.where(near, 0.0).expm1()).log1p()
    log_share = log_ratio.new_tensor(math.log(share))
    outer = torch.logaddexp(log_share, log_ratio + math.log1p(-share))
    return (p * -inner.where(near, outer)).sum(-1)


def token_advantages(
    student_log_probs: Tensor, teacher_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """On-policy distillation: minus k1 of KL(student || teacher), in nats per token.

    Times the gradient of the log-probability of its own token, and averaged over
    answers of the student, that of minus the summed next-token KLs with the prefixes
    held fixed.

    Args:
        student_log_probs: Log-probability of each token under the student, which
            sampled it, `(*batch, time)`.
        teacher_log_probs: The same under the teacher, likewise.
        mask: True where a token was sampled, likewise.

    Returns:
        One constant per token, `(*batch, time)`, 0 under the mask.

    Raises:
        ValueError: If the mask is not boolean, or has another shape.
    """
    if mask.dtype != torch.bool or mask.shape != student_log_probs.shape:
        raise ValueError("mask must be boolean, with the shape of student_log_probs")
    student = student_log_probs.detach().masked_fill(~mask, 0.0)
    return -k1(student, teacher_log_probs.detach().masked_fill(~mask, 0.0))


def sequence_advantages(
    student_log_probs: Tensor, teacher_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """MiniLLM: minus k1 of each token and of all that follow it, in nats.

    Used like the advantages of single tokens, its mean is the whole gradient of minus
    KL(student || teacher) between distributions over answers.

    Args:
        student_log_probs: Log-probability of each token under the student, which
            sampled it, `(*batch, time)`.
        teacher_log_probs: The same under the teacher, likewise.
        mask: True where a token was sampled, likewise.

    Returns:
        One constant per token, `(*batch, time)`, 0 under the mask.

    Raises:
        ValueError: If the mask is not boolean, or has another shape.
    """
    return to_go(token_advantages(student_log_probs, teacher_log_probs, mask), mask)
