"""One KL per action, from torch's own distributions, without a silent square.

Source: PyTorch 2.13.0, `torch/distributions/kl.py`.
"""

from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence


def kl_per_action(p: Distribution, q: Distribution, dims: int) -> Tensor:
    """KL(P || Q) in nats, one number per action, by torch's own rule.

    The last `dims` batch axes of both are the dimensions of one action, and are summed.
    Nothing is stretched: neither the batch nor the number of actions.
    What torch's rule gets wrong, such as the gradient under a mask, stays wrong.

    Args:
        p: The distribution that is averaged over.
        q: The one that it is compared with.
        dims: How many batch axes make up an action: 0 for Categorical, 1 for a Normal
            per dimension, 0 for what is already `Independent`.

    Returns:
        One KL per action, `(*batch)`.

    Raises:
        ValueError: If batches, events or numbers of actions differ, only one of the
            two is `Independent`, or there are fewer than `dims` batch axes.
    """
    if _shapes(p) != _shapes(q):
        raise ValueError(f"P has shapes {_shapes(p)}, Q has {_shapes(q)}")
    if isinstance(p, Independent) != isinstance(q, Independent):
        raise ValueError("one of the two is Independent and the other is not")
    if not 0 <= dims <= len(p.batch_shape):
        raise ValueError(f"dims is {dims}, and the batch is {[*p.batch_shape]}")
    kl = kl_divergence(p, q)  # (*batch, dims)
    return kl.flatten(-dims).sum(-1) if dims else kl


def _shapes(distribution: Distribution) -> list[list[int]]:
    """Of the batch, of an event, and of the logits if there are such."""
    event = distribution.event_shape
    actions = getattr(distribution, "param_shape", event)
    return [[*distribution.batch_shape], [*event], [*actions]]
