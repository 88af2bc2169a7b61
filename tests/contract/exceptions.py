"""The functions that are not held to the contract, each with its reason."""

# Not functions of tensors that a policy gives.
NOT_TENSORS: dict[str, str] = {
    "algorithms.regularised.reps:solve_joint": "its joint must be its transitions' own",
    "algorithms.trust_region.trpo:conjugate_gradient": "takes a function",
    "algorithms.trust_region.trpo:fisher_product": "takes a function, not tensors",
    "algorithms.trust_region.trpo:full_step": "takes a function, not tensors",
    "algorithms.trust_region.trpo:line_search": "takes a function, not tensors",
    "exact.bregman:near_gap": "takes a function; held through those that call it",
    "foundations.contract:check_mask": "what the contract is made of",
    "foundations.contract:check_rows": "what the contract is made of",
    "foundations.contract:nan_outside": "what the contract is made of",
    "lab.enumeration:moments": "its losses must have been computed from its policy",
    "lab.enumeration:prefixes": "integers alone; held to its own tests",
    "lab.enumeration:token_log_probs": "its policy has a row for every prefix",
    "lab.grid:cells": "its policies have a row for every prefix",
    "lab.mdp:action_values": "takes a problem; held to the same in its own tests",
    "lab.mdp:advantages": "takes a problem; held to the same in its own tests",
    "lab.mdp:expected_return": "takes a problem; held to the same in its own tests",
    "lab.mdp:occupancy": "takes a problem; held to the same in its own tests",
    "lab.mdp:path_log_policy": "takes a problem; held to the same in its own tests",
    "lab.mdp:state_chain": "takes a problem; held to the same in its own tests",
    "lab.mdp:state_values": "takes a problem; held to the same in its own tests",
    "lab.mdp:stationary": "takes a problem; held to the same in its own tests",
    "lab.mdp:target_advantages": "takes a target; held to the same in its tests",
    "lab.mdp:target_return": "takes a problem; held to the same in its own tests",
    "scale.token_means:sequence_parallel_sum": "asks other processes; the same there",
    "scale.vocab_parallel:all_gather": "asks other processes; held to its own tests",
    "scale.vocab_parallel:vocab_parallel_chunked_kl": "asks other processes, as above",
    "scale.vocab_parallel:vocab_parallel_kl": "asks other processes; the same there",
}

# Solvers: they iterate until a condition holds, and say so.
HOST: dict[str, str] = {
    "practice.doctor:examine": "puts the numbers that it finds into sentences",
    "algorithms.regularised.mpo:solve_temperature": "bisects until the KL is epsilon",
}

# Values are of second order, or of no sign, by definition.
SIGNED: dict[str, str] = {
    "exact.hybrid:kl_hybrid": "adds KLs that it is given, of any sign in this test",
    "estimate.variance:best_coefficient": "a coefficient, not a KL",
    "scale.chunked:chunked_kl_sum": "its weights may be negative",
    "scale.chunked:part_of_kl": "two of its three numbers are log-sum-exps",
    "scale.top_k:raw_head_kl": "some terms of a KL, which may be negative",
    "estimate.variance:k3_variance_is_finite": "answers yes or no",
}

# Half precision is not supported: what is computed has no digits left in it.
WIDE_ONLY: dict[str, str] = {
    "scale.chunked:part_of_kl": "it is rounded where the parts are joined",
    "algorithms.regularised.mpo:solve_temperature": "a rounded one misses epsilon",
    "algorithms.regularised.vmpo:kept_logits": "it takes booleans alone",
}

# The optimum divides by the coefficient, so there is none at 0.
REFUSES_ZERO: dict[str, str] = {
    "optimal_policy": "beta divides the rewards",
    "optimal_value": "beta divides the rewards",
    "soft_backup": "beta divides the rewards",
    "regret": "the optimum that it compares with has a beta above 0",
}
