"""What a map of the action does to a KL: nothing if it can be undone, less otherwise.

Source: the data processing inequality, Cover and Thomas, Elements of Information
Theory, 2nd ed., section 2.8.
"""

import torch
from torch import Tensor

from snippets.foundations.chain_rule import marginal_log_prob
from snippets.foundations.contract import check_positive, check_tensors, nan_outside


def pushed_forward(log_probs: Tensor, groups: Tensor, count: int) -> Tensor:
    """Log-probabilities, in nats, of the group that an action falls into.

    A group that is empty, or holds masked actions alone, is `-inf`, and its actions get
    a gradient of 0. If an action's group is not between 0 and `count - 1`, everything
    is `nan`.

    Args:
        log_probs: Log-probabilities of the actions, `(*batch, actions)`.
        groups: The group of each action, `(actions)`, int64, below `count`.
        count: How many groups there are.

    Returns:
        Log-probabilities of the groups, `(*batch, count)`.

    Raises:
        ValueError: If there is not one integer for each action, the count is not
            positive, or log-probabilities are integers.
    """
    check_positive(count=count)
    check_tensors(1, log_probs=log_probs)
    if groups.shape != log_probs.shape[-1:] or groups.is_floating_point():
        of = f"{groups.dtype} {[*groups.shape]}, for {log_probs.shape[-1]} actions"
        raise ValueError(f"groups is {of}: log_probs is {[*log_probs.shape]}")
    # --8<-- [start:core]
    inside = groups == torch.arange(count, device=groups.device)[:, None]
    spread = log_probs[..., None, :].masked_fill(~inside, -torch.inf)
    merged = marginal_log_prob(spread, -1)  # (*batch, count)
    # --8<-- [end:core]
    return nan_outside(merged, ((groups >= 0) & (groups < count)).all())
