"""The functions that are not held to the contract, each with its reason."""

# Not functions of tensors that a policy gives.
NOT_TENSORS: dict[str, str] = {
    "lab.enumeration:moments": "its losses must have been computed from its policy",
    "lab.enumeration:prefixes": "integers alone; held to its own tests",
    "lab.enumeration:token_log_probs": "its policy has a row for every prefix",
    "lab.grid:cells": "its policies have a row for every prefix; it names what it finds",
}

# Solvers: they iterate until a condition holds, and say so.
HOST: dict[str, str] = {}

# Values are of second order, or of no sign, by definition.
SIGNED: dict[str, str] = {
    "estimate.variance:best_coefficient": "a coefficient, not a KL",
    "estimate.variance:k3_variance_is_finite": "answers yes or no",
}

# Half precision is not supported: what is computed has no digits left in it.
WIDE_ONLY: dict[str, str] = {}

# The optimum divides by the coefficient, so there is none at 0.
REFUSES_ZERO: dict[str, str] = {
    "optimal_policy": "beta divides the rewards",
    "optimal_value": "beta divides the rewards",
    "regret": "the optimum that it compares with has a beta above 0",
}
