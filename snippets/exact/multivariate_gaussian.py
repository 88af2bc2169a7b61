"""The KL between Gaussian policies with full covariance, exact, from Cholesky factors.

Source: the closed form from log-densities; see also the multivariate normal in
Kullback, Information Theory and Statistics, chapter 9. The tests derive it by
quadrature and by rotation.
"""

import torch
from torch import Tensor

from snippets.exact.gaussian import kl_gaussian
from snippets.foundations.contract import check_tensors, nan_outside, widen


def kl_multivariate_gaussian(
    mean_p: Tensor, factor_p: Tensor, mean_q: Tensor, factor_q: Tensor
) -> Tensor:
    """KL(P || Q) in nats, from means and lower Cholesky factors of the covariances.

    Never negative, and exactly 0 for equal arguments. Nothing is inverted: one
    triangular solve gives the difference between the factors as Q sees it. A row with
    a factor that is not lower triangular, or whose diagonal is not positive and finite,
    is `nan`. Half precision is computed in float32 and rounded once.

    Args:
        mean_p: Means of P, `(*batch, dims)`.
        factor_p: Lower triangular factors of P's covariance, `(*batch, dims, dims)`.
        mean_q: Means of Q, `(*batch, dims)`.
        factor_q: Lower triangular factors of Q's covariance, `(*batch, dims, dims)`.

    Returns:
        One KL per action, `(*batch)`. Gradients flow to all arguments.

    Raises:
        ValueError: If the shapes do not match, or an argument is an integer tensor.
    """
    check_tensors(1, mean_p=mean_p, mean_q=mean_q)
    check_tensors(2, factor_p=factor_p, factor_q=factor_q)
    if factor_p.shape != (*mean_p.shape, *mean_p.shape[-1:]):
        raise ValueError(f"factor_p is {[*factor_p.shape]}, mean_p {[*mean_p.shape]}")
    dtype, rows = widen(mean_p, factor_p, mean_q, factor_q)
    mean_p, factor_p, mean_q, factor_q = rows
    # --8<-- [start:core]
    sides = torch.cat([factor_p - factor_q, (mean_p - mean_q).unsqueeze(-1)], -1)
    seen = torch.linalg.solve_triangular(factor_q, sides, upper=False)
    # Below the diagonal, and in the last column, is what Q sees of the difference.
    off = seen.tril(-1).square().sum((-2, -1)) + seen.select(-1, -1).square().sum(-1)
    std_p, std_q = (x.diagonal(dim1=-2, dim2=-1) for x in (factor_p, factor_q))
    zero = torch.zeros_like(std_p)
    kl = kl_gaussian(zero, std_p, zero, std_q) + off / 2  # (*batch)
    # --8<-- [end:core]
    lower = [(x.triu(1) == 0).all(-1).all(-1) for x in (factor_p, factor_q)]
    return nan_outside(kl, *lower).to(dtype)
