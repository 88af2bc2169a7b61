"""Which function gives the KL of which pair of policies.

Source: the modules that it names.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributions as d

from snippets.exact.bernoulli import kl_bernoulli, kl_multibinary
from snippets.exact.beta import kl_beta
from snippets.exact.categorical import kl_divergence_logits
from snippets.exact.dirichlet import kl_dirichlet
from snippets.exact.exponential_families import (
    kl_exponential,
    kl_gamma,
    kl_geometric,
    kl_laplace,
    kl_poisson,
)
from snippets.exact.gaussian import kl_gaussian
from snippets.exact.hybrid import kl_autoregressive, kl_hybrid
from snippets.exact.mixtures import (
    kl_mixture_sampled,
    matched_bound,
    variational_bound,
)
from snippets.exact.multidiscrete import kl_multidiscrete
from snippets.exact.multivariate_gaussian import kl_multivariate_gaussian
from snippets.exact.student import kl_student
from snippets.exact.tanh_gaussian import kl_clipped_gaussian
from snippets.exact.von_mises import kl_von_mises


class Pair(NamedTuple):
    """A family, our function, torch's distribution and two settings of it."""

    family: str
    function: Callable[..., Tensor]
    build: Callable[..., d.Distribution]
    p: tuple[Tensor, ...]
    q: tuple[Tensor, ...]


def _row(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _independent(
    kind: Callable[..., d.Distribution],
) -> Callable[..., d.Distribution]:
    return lambda *x: d.Independent(kind(*x), 1)


_ANGLE = (_row(0.0)[0], _row(2.0)[0])
_TAIL = (_row(3.0)[0], _row(0.0)[0], _row(1.0)[0])
_FACTOR = torch.tensor([[1.0, 0.0], [0.5, 0.8]], dtype=torch.float64)

PAIRS = [
    Pair(
        "Categorical",
        kl_divergence_logits,
        lambda x: d.Categorical(logits=x),
        (_row(2, 0, -1),),
        (_row(1, 0.5, -1),),
    ),
    Pair(
        "Bernoulli",
        kl_bernoulli,
        lambda x: d.Bernoulli(logits=x),
        (_row(0.5),),
        (_row(-1),),
    ),
    Pair(
        "Gaussian, diagonal",
        kl_gaussian,
        _independent(d.Normal),
        (_row(0, 1), _row(1, 2)),
        (_row(0.5, 0), _row(2, 1)),
    ),
    Pair(
        "Gaussian, full covariance",
        kl_multivariate_gaussian,
        lambda m, f: d.MultivariateNormal(m, scale_tril=f),
        (_row(0, 1), _FACTOR),
        (_row(1, 1), 2 * _FACTOR),
    ),
    Pair(
        "Beta",
        kl_beta,
        _independent(d.Beta),
        (_row(2), _row(3)),
        (_row(1.5), _row(1)),
    ),
    Pair("Dirichlet", kl_dirichlet, d.Dirichlet, (_row(2, 3, 1),), (_row(1, 1, 2),)),
    Pair("Exponential", kl_exponential, d.Exponential, (_row(2),), (_row(3),)),
    Pair("Gamma", kl_gamma, d.Gamma, (_row(2), _row(1)), (_row(3), _row(2))),
    Pair("Laplace", kl_laplace, d.Laplace, (_row(0), _row(1)), (_row(1), _row(2))),
    Pair("Poisson", kl_poisson, d.Poisson, (_row(3),), (_row(5),)),
    Pair(
        "Geometric",
        kl_geometric,
        lambda x: d.Geometric(logits=x),
        (_row(0.5),),
        (_row(-1),),
    ),
    Pair("von Mises", kl_von_mises, d.VonMises, _ANGLE, (_ANGLE[1], _TAIL[0])),
    Pair("Student-t", kl_student, d.StudentT, _TAIL, (_TAIL[0], _TAIL[2], _TAIL[0])),
]


COMPOSED: dict[str, tuple[Callable[..., object], str]] = {
    "MultiBinary": (kl_multibinary, "sum over the switches"),
    "MultiDiscrete": (kl_multidiscrete, "sum over the choices"),
    "Gaussian, squashed by tanh": (kl_gaussian, "that of the Gaussian"),
    "Gaussian, clipped": (kl_clipped_gaussian, "inside, and an atom at each end"),
    "Choice with parameters": (kl_hybrid, "the chain rule"),
    "Choice after choice": (kl_autoregressive, "the chain rule"),
    "Mixture, measured": (kl_mixture_sampled, "none: samples, with an error"),
    "Mixture, bounded": (variational_bound, "none: an upper bound"),
    "Mixture, component by component": (matched_bound, "none: an upper bound"),
}


# torch's distributions of one number, away from every edge.
UNIVARIATE: dict[str, d.Distribution] = {
    "Normal": d.Normal(_row(0.5), _row(1)),
    "Laplace": d.Laplace(_row(0.5), _row(1)),
    "Gumbel": d.Gumbel(_row(0.5), _row(1)),
    "Cauchy": d.Cauchy(_row(0.5), _row(1)),
    "Student-t": d.StudentT(_row(3)),
    "Exponential": d.Exponential(_row(2)),
    "Gamma": d.Gamma(_row(2), _row(1)),
    "Uniform": d.Uniform(_row(0.1), _row(0.9)),
    "Beta": d.Beta(_row(2), _row(3)),
    "von Mises": d.VonMises(_row(0), _row(2)),
    "Bernoulli": d.Bernoulli(_row(0.3)),
    "Binomial": d.Binomial(2, _row(0.3)),
    "Poisson": d.Poisson(_row(3)),
    "Geometric": d.Geometric(_row(0.3)),
    "Negative binomial": d.NegativeBinomial(_row(2), _row(0.3)),
}


def status(p: d.Distribution, q: d.Distribution) -> str:
    """What torch does for a pair: "finite", "inf" or "no rule".

    Args:
        p: A distribution.
        q: Another.

    Returns:
        One of the three words.
    """
    try:
        return "finite" if d.kl_divergence(p, q).isfinite().all() else "inf"
    except NotImplementedError:
        return "no rule"


def disagreement(pair: Pair) -> float | None:
    """The largest relative difference of torch's KL from ours, or None without a rule.

    Over all different pairs of five settings, evenly from P's to Q's.

    Args:
        pair: A row of the table.

    Returns:
        The largest difference, as a share of our result.
    """
    shares = [(i / 4, j / 4) for i in range(5) for j in range(5) if i != j]
    largest = 0.0
    for i, j in shares:
        one, other = (
            [x.lerp(y, share) for x, y in zip(pair.p, pair.q, strict=True)]
            for share in (i, j)
        )
        try:
            theirs = d.kl_divergence(pair.build(*one), pair.build(*other))
        except NotImplementedError:
            return None
        ours = pair.function(*one, *other)
        largest = max(largest, float(((ours - theirs) / ours).abs().max()))
    return largest
