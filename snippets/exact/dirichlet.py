"""The KL between Dirichlet policies over the simplex, exact.

Source: the exponential-family form, taken apart on the page; the Beta is the case of
two shares, which the tests derive by quadrature.
"""

from torch import Tensor

from snippets.exact.bregman import entropy_gap, gamma_gap
from snippets.foundations.contract import check_tensors, nan_outside, widen


def kl_dirichlet(concentration_p: Tensor, concentration_q: Tensor) -> Tensor:
    """KL(P || Q) in nats of an action that is a share per component.

    It is s KL(mean of Q || mean of P), with the total s of Q, plus what a change of
    the concentrations adds while the mean stays. That part is a difference: exactly 0
    for equal arguments, else rounded at 1e-15 of its terms, so that the KL of rows
    that differ in their last bits only may round below zero. Computed in float64 for
    that reason, and rounded once. A row with a concentration that is not positive and
    finite is `nan`.

    Args:
        concentration_p: Concentrations of P, `(*batch, dims)`.
        concentration_q: Concentrations of Q, `(*batch, dims)`.

    Returns:
        One KL per action, `(*batch)`. Gradients flow to both arguments.

    Raises:
        ValueError: If the shapes differ, or an argument is an integer tensor.
    """
    check_tensors(1, concentration_p=concentration_p, concentration_q=concentration_q)
    dtype, rows = widen(concentration_p, concentration_q)
    p, q = (x.double() for x in rows)
    # --8<-- [start:core]
    total_p, total_q = p.sum(-1), q.sum(-1)  # (*batch)
    mean_p, mean_q = p / total_p.unsqueeze(-1), q / total_q.unsqueeze(-1)
    moved = total_q * entropy_gap(mean_q, mean_p).sum(-1)  # the KL of the means
    kl = moved + gamma_gap(q, p).sum(-1) - gamma_gap(total_q, total_p)  # (*batch)
    # --8<-- [end:core]
    valid = ((p > 0) & (q > 0) & p.isfinite() & q.isfinite()).all(-1)
    return nan_outside(kl, valid).to(dtype)
