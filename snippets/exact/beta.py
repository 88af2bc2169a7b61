"""The KL between Beta policies over bounded actions, exact.

Source: a Beta is a Dirichlet of two shares; see Chou, Maturana and Scherer, Improving
Stochastic Policy Gradients in Continuous Control using the Beta Distribution, ICML
2017, for the policy. The tests derive the KL by quadrature.
"""

import torch
from torch import Tensor

from snippets.exact.dirichlet import kl_dirichlet
from snippets.foundations.contract import check_tensors, widen


def kl_beta(alpha_p: Tensor, beta_p: Tensor, alpha_q: Tensor, beta_q: Tensor) -> Tensor:
    """KL(P || Q) in nats, summed over the independent dimensions of an action.

    The bounds of the action do not matter: a shift and a scale that both policies
    share cancel. An action with a concentration that is not positive and finite is
    `nan`. Digits, sign and the float64 inside are as in `kl_dirichlet`.

    Args:
        alpha_p: First concentrations of P, `(*batch, dims)`.
        beta_p: Second concentrations of P, `(*batch, dims)`.
        alpha_q: First concentrations of Q, `(*batch, dims)`.
        beta_q: Second concentrations of Q, `(*batch, dims)`.

    Returns:
        One KL per action, `(*batch)`. Gradients flow to all arguments.

    Raises:
        ValueError: If the shapes differ, or an argument is an integer tensor.
    """
    check_tensors(1, alpha_p=alpha_p, beta_p=beta_p, alpha_q=alpha_q, beta_q=beta_q)
    dtype, rows = widen(alpha_p, beta_p, alpha_q, beta_q)
    # --8<-- [start:core]
    alpha_p, beta_p, alpha_q, beta_q = (x.double() for x in rows)
    p = torch.stack([alpha_p, beta_p], -1)  # (*batch, dims, 2)
    q = torch.stack([alpha_q, beta_q], -1)  # (*batch, dims, 2)
    kl = kl_dirichlet(p, q).sum(-1)  # (*batch)
    # --8<-- [end:core]
    return kl.to(dtype)
