"""The actor's loss of A2C and A3C, with its entropy bonus.

Source: Mnih et al., Asynchronous Methods for Deep Reinforcement Learning,
arXiv:1602.01783, section 4.
"""

from torch import Tensor

from snippets.estimate.sampling import log_prob
from snippets.foundations.contract import check_tensors, widen
from snippets.foundations.entropy import entropy


def actor_loss(
    *, new_logits: Tensor, actions: Tensor, advantages: Tensor, coefficient: float
) -> Tensor:
    """-advantage log π(action) - coefficient H(π), H in nats, to be minimised.

    The advantages are constants. A logit of `-inf` masks its action, which must then
    not have been taken. Half precision is computed in float32 and rounded once.

    Args:
        new_logits: Logits of the policy, which sampled and trains, `(*batch, actions)`.
        actions: What it did, integers, `(*batch)`.
        advantages: Advantage of each of them, `(*batch)`.
        coefficient: Of the entropy, at least 0; 0 leaves it out.

    Returns:
        One loss per sample, `(*batch)`.

    Raises:
        ValueError: If the coefficient is negative, the shapes do not fit, or a tensor
            but the actions is an integer one.
    """
    if not coefficient >= 0:
        raise ValueError(f"coefficient is {coefficient}: a negative one ends exploring")
    check_tensors(1, new_logits=new_logits)
    check_tensors(new_logits=new_logits.select(-1, 0), advantages=advantages)
    dtype, (logits, advantages) = widen(new_logits, advantages.detach())
    # --8<-- [start:core]
    log_probs = log_prob(logits, actions=actions, temperature=1.0)
    loss = -advantages * log_probs - coefficient * entropy(logits)
    # --8<-- [end:core]
    return loss.to(dtype)
