"""Surrogate losses whose gradient by autograd is the gradient of a KL, on average.

Their arguments are log-probabilities of what was sampled: an action, or a whole
sequence (the sum over its tokens). The weight is rho = new / old throughout.
Source: Tang and Munos, arXiv:2506.09477; Zhang et al., arXiv:2505.17508.
"""

import torch
from torch import Tensor

from snippets.estimate.estimators import k1, k2, k3
from snippets.estimate.off_policy import importance_weight
from snippets.foundations.contract import check_tensors, widen


def score_loss(*, new_log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """A loss with the gradient of KL(new || ref), in nats, from samples of new.

    The value is no KL; only the gradient means something. It is k1, held constant,
    times the log-probability: the gradient that k1 in the reward gives. As a loss, k2
    has the same gradient. Half precision is computed in float32 and rounded once.

    Args:
        new_log_probs: Log-probability under the policy that trains, `(*batch)`.
        ref_log_probs: Log-probability under the reference, `(*batch)`; gets no
            gradient.

    Returns:
        One loss per sample, `(*batch)`.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(new_log_probs=new_log_probs, ref_log_probs=ref_log_probs)
    dtype, (new, ref) = widen(new_log_probs, ref_log_probs)
    return (k1(new, ref).detach() * new).to(dtype)


def weighted_k3_loss(
    *, new_log_probs: Tensor, old_log_probs: Tensor, ref_log_probs: Tensor
) -> Tensor:
    """KL(new || ref) in nats, value and gradient, from samples of old: rho times k3.

    On-policy, give `new_log_probs.detach()` for old: the weight is then 1 and still
    carries its gradient. The gradient is `rho * log(new / ref)` also where k3 itself
    is too large for its digits, or overflows. A sample that old cannot give, which it
    cannot have drawn, is `inf` or `nan`. Half precision is computed in float32 and
    rounded once.

    Args:
        new_log_probs: Log-probability under the policy that trains, `(*batch)`.
        old_log_probs: Log-probability under the policy that sampled, `(*batch)`.
        ref_log_probs: Log-probability under the reference, `(*batch)`.

    Returns:
        One loss per sample, `(*batch)`. Only new gets a gradient.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(
        new_log_probs=new_log_probs,
        old_log_probs=old_log_probs,
        ref_log_probs=ref_log_probs,
    )
    dtype, (new, old, ref) = widen(new_log_probs, old_log_probs, ref_log_probs)
    # --8<-- [start:core]
    rho = importance_weight(new_log_probs=new, old_log_probs=old)
    log_u = ref.detach() - new  # u = ref / new
    near = log_u.abs() < 1
    close = rho * k3(new, torch.where(near, ref.detach(), new.detach()))
    # rho u is ref / old, a constant: without it the gradient of k3 is lost in u.
    far = (ref - old).detach().exp() - rho * (1 + log_u)
    return torch.where(near, close, far).to(dtype)
    # --8<-- [end:core]


def weighted_k2_loss(
    *, new_log_probs: Tensor, old_log_probs: Tensor, ref_log_probs: Tensor
) -> Tensor:
    """A loss with the gradient of KL(new || ref), in nats, from samples of old.

    Sample by sample the same gradient as `weighted_k3_loss`, and no overflow of its
    value, which is a KL to second order only. Half precision is computed in float32
    and rounded once.

    Args:
        new_log_probs: Log-probability under the policy that trains, `(*batch)`.
        old_log_probs: Log-probability under the policy that sampled, `(*batch)`.
        ref_log_probs: Log-probability under the reference, `(*batch)`.

    Returns:
        One loss per sample, `(*batch)`. Only new gets a gradient.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(
        new_log_probs=new_log_probs,
        old_log_probs=old_log_probs,
        ref_log_probs=ref_log_probs,
    )
    dtype, (new, old, ref) = widen(new_log_probs, old_log_probs, ref_log_probs)
    rho = importance_weight(new_log_probs=new, old_log_probs=old).detach()
    return (rho * k2(new, ref.detach())).to(dtype)


def straight_through(*, value: Tensor, loss: Tensor) -> Tensor:
    """The value of one tensor with the gradient of another, in their common unit.

    Where the loss is infinite the result is `nan`.

    Args:
        value: What to report, `(*batch)`. Its own gradient is dropped.
        loss: What to differentiate, `(*batch)`.

    Returns:
        `value`, `(*batch)`, exactly.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(value=value, loss=loss)
    return value.detach() + (loss - loss.detach())
