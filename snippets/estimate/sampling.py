"""The log-probabilities that every estimator starts from.

Source: Sutton and Barto, Reinforcement Learning, 2nd ed., section 13.1 (softmax in
action preferences).
"""

import torch
from torch import Tensor

from snippets.foundations.contract import check_floating, check_positive, widen


def log_prob(logits: Tensor, *, actions: Tensor, temperature: float) -> Tensor:
    """Log-probability in nats of each action that was taken, from logits.

    The policy is `softmax(logits / temperature)`: the sampler's own temperature, and
    the same one for every policy that is compared with it. An action whose logit is
    `-inf` has log-probability `-inf`. A number that is no action, such as the label
    -100 of padding, is an error of torch's `gather`: fill it before. Half precision is
    computed in float32 and rounded once.

    Args:
        logits: Logits of the policy, `(*batch, actions)`, normalised or not.
        actions: What was sampled, `(*batch)`, integers.
        temperature: What the sampler divided its logits by. 1 leaves them as is.

    Returns:
        One log-probability per action taken, `(*batch)`.

    Raises:
        ValueError: If the temperature is not positive, the shapes disagree, logits are
            integers or actions are not.
    """
    check_positive(temperature=temperature)
    check_floating(logits=logits)
    if logits.shape[:-1] != actions.shape or not logits.ndim:
        of_logits, of_actions = [*logits.shape], [*actions.shape]
        raise ValueError(f"logits is {of_logits}, actions is {of_actions}")
    if actions.is_floating_point() or actions.dtype == torch.bool:
        raise ValueError(f"actions must be integers, not {actions.dtype}")
    dtype, (logits,) = widen(logits)
    # --8<-- [start:core]
    log_probs = (logits / temperature).log_softmax(-1)  # (*batch, actions)
    chosen = log_probs.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)  # (*batch)
    # --8<-- [end:core]
    return chosen.to(dtype)
