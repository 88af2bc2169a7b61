"""ACER's trust region: a gradient, projected so that the KL cannot grow too fast.

Source: Wang et al., Sample Efficient Actor-Critic with Experience Replay,
arXiv:1611.01224, section 3.3. P is a slow average of past policies.
"""

from torch import Tensor

from snippets.foundations.contract import check_positive, check_tensors, widen


def kl_gradient(*, average_logits: Tensor, new_logits: Tensor) -> Tensor:
    """Gradient of KL(average || new), in nats, with respect to the logits of new.

    An action that both policies mask with `-inf` has a gradient of 0. Half precision is
    computed in float32 and rounded once.

    Args:
        average_logits: Logits of the average policy, `(*batch, actions)`.
        new_logits: Logits of the policy that trains, `(*batch, actions)`.

    Returns:
        new's probabilities less the average's, `(*batch, actions)`.

    Raises:
        ValueError: If the shapes differ, or one is an integer tensor.
    """
    check_tensors(1, average_logits=average_logits, new_logits=new_logits)
    dtype, (average, new) = widen(average_logits, new_logits)
    return (new.softmax(-1) - average.softmax(-1)).to(dtype)


def project_gradient(gradient: Tensor, normal: Tensor, delta: float) -> Tensor:
    """The vector nearest to a gradient along which the KL grows by delta at most.

    The KL grows by the product of the vector and the normal, in nats per unit step.
    Where that is small enough already, or the normal is zero, the gradient comes back
    as it was. The result is a constant. Half precision is computed in float32 and
    rounded once.

    Args:
        gradient: Ascent direction in the policy's statistics, `(*batch, actions)`.
        normal: Gradient of the KL in the same statistics, `(*batch, actions)`.
        delta: How fast the KL may grow along the result, nats per unit step.

    Returns:
        The projected direction, `(*batch, actions)`.

    Raises:
        ValueError: If `delta` is not positive, the shapes differ, or one is an integer
            tensor.
    """
    check_positive(delta=delta)
    check_tensors(1, gradient=gradient, normal=normal)
    dtype, (gradient, normal) = widen(gradient.detach(), normal.detach())
    size = normal.abs().amax(-1, keepdim=True)  # its square may underflow
    size = size.where(size > 0, 1.0)
    # --8<-- [start:core]
    unit = normal / size
    excess = (gradient * unit).sum(-1, keepdim=True) - delta / size
    scale = (excess / unit.square().sum(-1, keepdim=True)).relu()
    projected = gradient - scale * unit
    # --8<-- [end:core]
    return projected.to(dtype)
