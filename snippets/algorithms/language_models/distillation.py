"""A student learns a teacher's next tokens: which KL, on whose completions.

Source: Hinton et al., arXiv:1503.02531 (temperature); Gu et al., arXiv:2306.08543
(MiniLLM); Agarwal et al., arXiv:2306.13649 (GKD).
"""

from torch import Tensor

from snippets.estimate.estimators import k1
from snippets.estimate.sequences import reward_to_go
from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.contract import (
    check_mask,
    check_positive,
    check_tensors,
    widen,
)
from snippets.foundations.neighbours import kl_to_mixture


def forward_kl(
    *, teacher_logits: Tensor, student_logits: Tensor, temperature: float
) -> Tensor:
    """KL(teacher || student) in nats of both softened, times the temperature squared.

    The factor keeps the size of the gradient as the temperature grows. At 1 it is the
    KL itself. Half precision is computed in float32 and rounded once.

    Args:
        teacher_logits: What is learned, `(*batch, vocab)`; gets no gradient.
        student_logits: What learns, `(*batch, vocab)`.
        temperature: What both are divided by.

    Returns:
        One KL per position, `(*batch)`.

    Raises:
        ValueError: If the temperature is not positive, the shapes differ, or one is an
            integer tensor.
    """
    check_positive(temperature=temperature)
    check_tensors(1, teacher_logits=teacher_logits, student_logits=student_logits)
    dtype, (teacher, student) = widen(teacher_logits.detach(), student_logits)
    kl = kl_divergence_logits(teacher / temperature, student / temperature)
    return (temperature**2 * kl).to(dtype)


def generalised_jensen_shannon(
    *, teacher_logits: Tensor, student_logits: Tensor, beta: float
) -> Tensor:
    """GKD: the mean KL in nats to a mixture with the share beta of the teacher.

    beta · KL(teacher || mixture) + (1 - beta) · KL(student || mixture), finite whatever
    either masks. It goes to 0 at both ends of beta; divided by beta, or by 1 - beta, it
    goes to KL(teacher || student), or to KL(student || teacher). Half precision is
    computed in float32 and rounded once.

    Args:
        teacher_logits: What is learned, `(*batch, vocab)`; gets no gradient.
        student_logits: What learns, `(*batch, vocab)`.
        beta: The teacher's share of the mixture.

    Returns:
        One divergence per position, `(*batch)`.

    Raises:
        ValueError: If beta is not between 0 and 1, both excluded, the shapes differ,
            or one is an integer tensor.
    """
    if not 0 < 1 - beta < 1:
        raise ValueError(f"beta is {beta}; at 0 and 1 the divergence is zero")
    check_tensors(1, teacher_logits=teacher_logits, student_logits=student_logits)
    dtype, (teacher, student) = widen(teacher_logits.detach(), student_logits)
    # --8<-- [start:core]
    from_teacher = kl_to_mixture(teacher, student, beta)  # (*batch)
    from_student = kl_to_mixture(student, teacher, 1 - beta)  # (*batch)
    divergence = beta * from_teacher + (1 - beta) * from_student
    # --8<-- [end:core]
    return divergence.to(dtype)


def token_advantages(
    *, student_log_probs: Tensor, teacher_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """On-policy distillation: minus k1 of KL(student || teacher), in nats per token.

    Times the gradient of the log-probability of its own token, and averaged over
    completions of the student, that of minus the summed next-token KLs with the
    prefixes held fixed. What stands under the mask is not read. A token that the
    student gives probability 0, as top-k sampling does, has `inf`; one that only the
    teacher does `-inf`.

    Args:
        student_log_probs: Log-probability of each token under the student, which
            sampled it, `(*batch, time)`.
        teacher_log_probs: Log-probability of each token under the teacher,
            `(*batch, time)`.
        mask: True where a token was sampled, `(*batch, time)`.

    Returns:
        One constant per token, `(*batch, time)`, 0 under the mask.

    Raises:
        ValueError: If the mask is not boolean, or a tensor is an integer one or has
            another shape.
    """
    log_probs = (student_log_probs, teacher_log_probs)
    check_mask(mask, student_log_probs=log_probs[0], teacher_log_probs=log_probs[1])
    return -k1(*(x.detach().masked_fill(~mask, 0.0) for x in log_probs))


def sequence_advantages(
    *, student_log_probs: Tensor, teacher_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """MiniLLM: minus k1 of each token and of all that follow it, in nats.

    Used like the advantages of single tokens, its mean is the whole gradient of minus
    KL(student || teacher) between distributions over completions. What stands under
    the mask is not read. Half precision is computed in float32 and rounded once.

    Args:
        student_log_probs: Log-probability of each token under the student, which
            sampled it, `(*batch, time)`.
        teacher_log_probs: Log-probability of each token under the teacher,
            `(*batch, time)`.
        mask: True where a token was sampled, `(*batch, time)`.

    Returns:
        One constant per token, `(*batch, time)`, 0 under the mask.

    Raises:
        ValueError: If the mask is not boolean, or a tensor is an integer one or has
            another shape.
    """
    check_mask(
        mask, student_log_probs=student_log_probs, teacher_log_probs=teacher_log_probs
    )
    dtype, (student, teacher) = widen(student_log_probs, teacher_log_probs)
    advantages = token_advantages(
        student_log_probs=student, teacher_log_probs=teacher, mask=mask
    )
    return reward_to_go(advantages, mask).masked_fill(~mask, 0.0).to(dtype)
