"""The KL between Gaussian mixtures: no closed form, two upper bounds, and samples.

Source: Hershey and Olsen, Approximating the Kullback Leibler Divergence between
Gaussian Mixture Models, ICASSP 2007, for the variational bound; the matched bound is
the chain rule over the component. The tests compare both with quadrature.
"""

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from snippets.estimate.variance import Estimate, mean_and_error
from snippets.exact.gaussian import kl_gaussian
from snippets.exact.hybrid import kl_hybrid
from snippets.foundations.contract import check_positive, check_tensors


def mixture(logits: Tensor, mean: Tensor, std: Tensor) -> MixtureSameFamily:
    """A mixture of Gaussians with independent dimensions.

    Its arguments are not validated, so that no value is read: what is out of the domain
    becomes `nan`.

    Args:
        logits: Logits of the components, `(*batch, components)`.
        mean: Their means, `(*batch, components, dims)`.
        std: Their standard deviations, `(*batch, components, dims)`.

    Returns:
        A distribution over actions of `(*batch, dims)`.

    Raises:
        ValueError: If the shapes do not match, or an argument is an integer tensor.
    """
    check_tensors(1, logits=logits)
    check_tensors(2, mean=mean, std=std)
    if mean.shape[:-1] != logits.shape:
        raise ValueError(f"mean is {[*mean.shape]}, logits {[*logits.shape]}")
    parts = Independent(Normal(mean, std, validate_args=False), 1, validate_args=False)
    weights = Categorical(logits=logits, validate_args=False)
    return MixtureSameFamily(weights, parts, validate_args=False)


def kl_mixture_sampled(
    p: MixtureSameFamily, q: MixtureSameFamily, samples: int
) -> Estimate:
    """KL(P || Q) in nats from samples of P, with the error of the estimate.

    Gradients flow to Q alone. The samples do not follow P, so what would flow to P has
    mean zero: P's log-density is detached.

    Args:
        p: The mixture that is sampled, of batch shape `(*batch)`.
        q: The mixture that it is compared with, of batch shape `(*batch)`.
        samples: How many actions to draw per row, at least 2.

    Returns:
        Mean and standard error per row, `(*batch)` each.

    Raises:
        ValueError: If there are fewer than two samples.
    """
    # torch publishes no types for these two.
    drawn = p.sample((samples,))  # type: ignore[no-untyped-call]  # (samples, *batch, dims)
    log_p, log_q = (m.log_prob(drawn) for m in (p, q))  # type: ignore[no-untyped-call]
    return mean_and_error((log_p.detach() - log_q).movedim(0, -1))


def matched_bound(p: MixtureSameFamily, q: MixtureSameFamily) -> Tensor:
    """At least KL(P || Q), in nats: the KL of component and action together.

    Component i of P is compared with component i of Q: order them alike. Never
    negative, and exactly 0 for equal mixtures.

    Args:
        p: A mixture of batch shape `(*batch)`.
        q: A mixture with as many components, of batch shape `(*batch)`.

    Returns:
        One bound per row, `(*batch)`.

    Raises:
        ValueError: If the components are not independent Gaussians.
    """
    logits_p, logits_q = (m.mixture_distribution.logits for m in (p, q))
    pairs = _pairs(p, q).diagonal(dim1=-2, dim2=-1)  # (*batch, components)
    return kl_hybrid(logits_p, logits_q, pairs)


def variational_bound(
    p: MixtureSameFamily, q: MixtureSameFamily, iterations: int
) -> Tensor:
    """At least KL(P || Q), in nats, and not looser than with fewer iterations.

    Every component of P may be explained by every component of Q, in shares that
    each iteration improves. Never negative. A component with a logit of `-inf` takes no
    part.

    Args:
        p: A mixture of batch shape `(*batch)`.
        q: A mixture, of any number of components, of batch shape `(*batch)`.
        iterations: How often to improve both shares.

    Returns:
        One bound per row, `(*batch)`.

    Raises:
        ValueError: If the components are not independent Gaussians, or `iterations` is
            not positive.
    """
    check_positive(iterations=iterations)
    log_p = p.mixture_distribution.logits.log_softmax(-1)[..., :, None]
    log_q = q.mixture_distribution.logits.log_softmax(-1)[..., None, :]
    pairs = _pairs(p, q)  # (*batch, components of P, components of Q)
    # --8<-- [start:core]
    of_p = log_p.expand_as(pairs)  # equal shares: the softmax does not see how many
    for _ in range(iterations):
        of_q = log_q + _shares(of_p, log_q, -2)
        of_p = log_p + _shares(of_q - pairs, log_p, -1)
    of_q = log_q + _shares(of_p, log_q, -2)
    # --8<-- [end:core]
    return kl_hybrid(of_p.flatten(-2), of_q.flatten(-2), pairs.flatten(-2))


def _shares(logits: Tensor, weights: Tensor, axis: int) -> Tensor:
    """How each component is shared out, in logarithms; those without weight equally."""
    return logits.where(weights > -torch.inf, 0.0).log_softmax(axis)


def _pairs(p: MixtureSameFamily, q: MixtureSameFamily) -> Tensor:
    """KL of each component of P to each of Q, `(*batch, components, components)`."""
    one, other = _components(p), _components(q)
    shape = (*one.loc.shape[:-1], other.loc.shape[-2], one.loc.shape[-1])
    rows = [x[..., :, None, :].expand(shape) for x in (one.loc, one.scale)]
    rows += [x[..., None, :, :].expand(shape) for x in (other.loc, other.scale)]
    return kl_gaussian(*rows)


def _components(mixture: MixtureSameFamily) -> Normal:
    independent = mixture.component_distribution
    if isinstance(independent, Independent) and isinstance(
        independent.base_dist, Normal
    ):
        return independent.base_dist
    raise ValueError("the components must be Independent(Normal(mean, std), 1)")
