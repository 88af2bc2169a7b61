"""From tokens to sequences: sums, what comes later, and three means over padding.

Source: Tang and Munos, arXiv:2506.09477, for the gradient of a sequence's KL. The
means have the names of verl's `loss_agg_mode`.
"""

from torch import Tensor

from snippets.estimate.estimators import k1, k2, k3
from snippets.estimate.gradients import weighted_k3_loss
from snippets.foundations.contract import check_mask, check_positive, widen


def sequence_log_prob(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Log-probability in nats of each sequence, from those of its tokens.

    What stands under the mask is not read, `nan` included. An empty sequence has
    log-probability 0.

    Args:
        log_probs: Log-probability of each token, `(*batch, time)`.
        mask: True where a token was sampled from the policy, `(*batch, time)`.

    Returns:
        One log-probability per sequence, `(*batch)`.

    Raises:
        ValueError: If the mask is not boolean, or the shapes differ.
    """
    check_mask(mask, log_probs=log_probs)
    return log_probs.masked_fill(~mask, 0.0).sum(-1)


def reward_to_go(values: Tensor, mask: Tensor) -> Tensor:
    """The sum of the values from each token to the end, in their unit.

    What stands under the mask is not read. Half precision is computed in float32 and
    rounded once.

    Args:
        values: One value per token, `(*batch, time)`.
        mask: True where the token counts, `(*batch, time)`.

    Returns:
        One sum per token, `(*batch, time)`. Its first entry is the whole sequence's.

    Raises:
        ValueError: If the mask is not boolean, or the shapes differ.
    """
    check_mask(mask, values=values)
    dtype, (values,) = widen(values)
    counted = values.masked_fill(~mask, 0.0)
    return counted.flip(-1).cumsum(-1).flip(-1).to(dtype)


def sequence_k3(log_p: Tensor, log_q: Tensor, mask: Tensor) -> Tensor:
    """KL(P || Q) in nats over sequences, from samples of P: the sum of k3 over tokens.

    Unbiased and never negative, like k3 of the whole sequence, and with far less
    variance on long ones. What stands under the mask is not read. A token that Q cannot
    give is `inf`. Half precision is computed in float32 and rounded once.

    Args:
        log_p: Log-probability of each token under P, which drew it, `(*batch, time)`.
        log_q: Log-probability of the same token under Q, `(*batch, time)`.
        mask: True where a token was sampled, `(*batch, time)`.

    Returns:
        One estimate per sequence, `(*batch)`.

    Raises:
        ValueError: If the mask is not boolean, or the shapes differ.
    """
    check_mask(mask, log_p=log_p, log_q=log_q)
    dtype, given = widen(log_p, log_q)
    # --8<-- [start:k3]
    log_p, log_q = (x.masked_fill(~mask, 0.0) for x in given)
    return k3(log_p, log_q).sum(-1).to(dtype)
    # --8<-- [end:k3]


def sequence_gradient_loss(
    *, new_log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """A loss with the gradient of the sequence KL(new || ref), from samples of new.

    Each token is weighted with its own log-ratio and all later ones, which depend on
    it. The value is no KL; only the gradient means something. What stands under the
    mask is not read. Half precision is computed in float32 and rounded once.

    Args:
        new_log_probs: Log-probability of each token under the policy that trains,
            which sampled it, `(*batch, time)`.
        ref_log_probs: Log-probability of each token under the reference,
            `(*batch, time)`; gets no gradient.
        mask: True where a token was sampled, `(*batch, time)`.

    Returns:
        One loss per sequence, `(*batch)`.

    Raises:
        ValueError: If the mask is not boolean, or the shapes differ.
    """
    check_mask(mask, new_log_probs=new_log_probs, ref_log_probs=ref_log_probs)
    dtype, tokens = widen(new_log_probs, ref_log_probs)
    # --8<-- [start:core]
    new, ref = (x.masked_fill(~mask, 0.0) for x in tokens)
    own_and_later = reward_to_go(k1(new, ref).detach(), mask)  # (*batch, time)
    return (own_and_later * new).sum(-1).to(dtype)
    # --8<-- [end:core]


def token_gradient_loss(
    *, new_log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """A loss with part of the gradient of the sequence KL(new || ref).

    The part that each next-token distribution has at the prefixes that were sampled,
    as if the choice of a token had no effect on later prefixes: the sum of k2 over
    tokens. For one token it is the whole gradient. What stands under the mask is not
    read. Half precision is computed in float32 and rounded once.

    Args:
        new_log_probs: Log-probability of each token under the policy that trains,
            which sampled it, `(*batch, time)`.
        ref_log_probs: Log-probability of each token under the reference,
            `(*batch, time)`; gets no gradient.
        mask: True where a token was sampled, `(*batch, time)`.

    Returns:
        One loss per sequence, `(*batch)`.

    Raises:
        ValueError: If the mask is not boolean, or the shapes differ.
    """
    check_mask(mask, new_log_probs=new_log_probs, ref_log_probs=ref_log_probs)
    dtype, tokens = widen(new_log_probs, ref_log_probs.detach())
    new, ref = (x.masked_fill(~mask, 0.0) for x in tokens)
    return k2(new, ref).sum(-1).to(dtype)


def weighted_token_loss(
    *,
    new_log_probs: Tensor,
    old_log_probs: Tensor,
    ref_log_probs: Tensor,
    mask: Tensor,
) -> Tensor:
    """KL(new || ref) in nats of each next token, at prefixes that old sampled: rho k3.

    One weight new / old per token. It corrects the choice of the token, not which
    prefixes were visited, and its gradient is each token's own part, as in
    `token_gradient_loss`. What stands under the mask is not read. Half precision is
    computed in float32 and rounded once.

    Args:
        new_log_probs: Log-probability of each token under the policy that trains,
            `(*batch, time)`.
        old_log_probs: Log-probability of each token under the policy that sampled,
            `(*batch, time)`.
        ref_log_probs: Log-probability of each token under the reference,
            `(*batch, time)`.
        mask: True where a token was sampled, `(*batch, time)`.

    Returns:
        One sum over tokens per sequence, `(*batch)`. Only new gets a gradient.

    Raises:
        ValueError: If the mask is not boolean, or the shapes differ.
    """
    policies = {
        "new_log_probs": new_log_probs,
        "old_log_probs": old_log_probs,
        "ref_log_probs": ref_log_probs,
    }
    check_mask(mask, **policies)
    dtype, tokens = widen(*policies.values())
    filled = [x.masked_fill(~mask, 0.0) for x in tokens]
    losses = weighted_k3_loss(**dict(zip(policies, filled, strict=True)))
    return losses.sum(-1).to(dtype)


def token_mean(
    values: Tensor, mask: Tensor, *, count: float | Tensor | None = None
) -> Tensor:
    """The mean over all tokens of a batch: nats per token.

    A long sequence weighs more than a short one. Without any token it is `nan`. What
    stands under the mask is not read. If the batch comes in several micro-batches, or
    on several devices, give each the `count` of tokens in all of them: then the sum of
    the results is the mean of the whole batch, which a mean of means is not.

    Args:
        values: One value per token, `(samples, time)`.
        mask: True where the token counts, `(samples, time)`.
        count: What to divide by instead of the number of tokens here: a number, or a
            scalar tensor, `()`.

    Returns:
        A scalar, `()`.

    Raises:
        ValueError: If the mask is not boolean, the shapes differ, or count is a number
            that is not positive.
    """
    check_mask(mask, values=values)
    tokens = mask.sum() if count is None else count
    check_positive(count=tokens)
    dtype, (values,) = widen(values)
    # --8<-- [start:mean]
    return (values.masked_fill(~mask, 0.0).sum() / tokens).to(dtype)
    # --8<-- [end:mean]


def seq_mean_token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over sequences of the mean over their tokens: nats per token.

    A sequence weighs the same whatever its length, so a token of a long one weighs
    less. A sequence without tokens makes it `nan`. What stands under the mask is not
    read.

    Args:
        values: One value per token, `(samples, time)`.
        mask: True where the token counts, `(samples, time)`.

    Returns:
        A scalar, `()`.

    Raises:
        ValueError: If the mask is not boolean, or the shapes differ.
    """
    check_mask(mask, values=values)
    dtype, (values,) = widen(values)
    means = values.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1)  # (samples)
    return means.mean().to(dtype)


def seq_mean_token_sum(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over sequences of the sum over their tokens: nats per sequence.

    The only one of the three whose mean is the KL between distributions over
    sequences. A sequence without tokens counts 0. What stands under the mask is not
    read.

    Args:
        values: One value per token, `(samples, time)`.
        mask: True where the token counts, `(samples, time)`.

    Returns:
        A scalar, `()`.

    Raises:
        ValueError: If the mask is not boolean, or the shapes differ.
    """
    check_mask(mask, values=values)
    dtype, (values,) = widen(values)
    return sequence_log_prob(values, mask).mean().to(dtype)
