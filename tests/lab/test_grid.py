"""Every cell of the grid, derived by hand, holds for every policy that is tried."""

import pytest
import torch
from torch.testing import assert_close

from snippets.lab.grid import (
    PLACES,
    SAMPLERS,
    WEIGHTS,
    Lab,
    cells,
    three_policies,
)

# A gradient per weight (none, sg(ρ), ρ), first from samples of new, then of old.
# "off" has no name: the test below computes it another way.
GRADIENTS = {
    ("loss, sequence", "k1"): "zero zero right / away zero right",
    ("loss, sequence", "k2"): "right right off / off right off",
    ("loss, sequence", "k3"): "other other right / off other right",
    ("loss, sequence", "k3, gradient of k2"): "right right off / off right off",
    ("loss, sequence", "Rao–Blackwell"): "own own right / own off right",
    ("loss, token", "k1"): "zero zero own / away zero own",
    ("loss, token", "k2"): "own own off / off own off",
    ("loss, token", "k3"): "other other own / off other own",
    ("loss, token", "k3, gradient of k2"): "own own off / off own off",
    ("loss, token", "Rao–Blackwell"): "own own own / own own own",
    # In the reward the weights are none and ρ.
    ("reward, sequence", "k1"): "right right / off right",
    ("reward, sequence", "k2"): "off off / off off",
    ("reward, sequence", "k3"): "right-other right-other / off right-other",
    ("reward, sequence", "k1 of old"): "right right / off right-new-old",
    ("reward, sequence", "Rao–Blackwell"): "right-own right-own / off off",
    ("reward, token to go", "k1"): "right right / off off",
    ("reward, token to go", "k2"): "off off / off off",
    ("reward, token to go", "k3"): "right-other right-other / off off",
    ("reward, token to go", "k1 of old"): "right right / off off",
    ("reward, token to go", "Rao–Blackwell"): "right-own right-own / off off",
    ("reward, own token", "k1"): "own own / off own",
    ("reward, own token", "k2"): "off off / off off",
    ("reward, own token", "k3"): "own-other own-other / off own-other",
    ("reward, own token", "k1 of old"): "own own / off off",
    ("reward, own token", "Rao–Blackwell"): "zero zero / off zero",
}
NAMES = {
    "zero": "zero",
    "right": "right",
    "own": "own token",
    "other": "other direction",
    "away": "away from old",
    "right-other": "right − other",
    "right-own": "right − own token",
    "own-other": "own token − other",
    "right-new-old": "right − KL(new ‖ old)",
}


def expected_value(cell):
    """The KL that the mean is, or None for a bias."""
    tokens = not cell.place.endswith("sequence")
    if cell.estimator == "k2":
        return None
    if cell.sampler == "new":
        return "KL"
    if cell.estimator == "Rao–Blackwell":
        return "KL, prefixes of old" if tokens or cell.weight == "none" else "KL"
    if cell.weight == "none" or cell.estimator == "k1 of old":
        return None
    return "KL, prefixes of old" if tokens else "KL"


def expected_gradient(cell):
    """The gradient that the mean is, or None for one without a name."""
    both = GRADIENTS[cell.place, cell.estimator].split(" / ")
    row = both[SAMPLERS.index(cell.sampler)].split()
    weights = WEIGHTS if cell.place.startswith("loss") else ("none", "ρ")
    return NAMES.get(row[weights.index(cell.weight)])


@pytest.fixture(scope="module", params=[0, 1, 2])
def policies(request):
    return three_policies(request.param)


@pytest.fixture(scope="module")
def found(policies):
    return cells(*policies, 3)


def test_every_cell_is_there_once(found):
    assert len({cell[:4] for cell in found}) == len(found) == 120
    assert {cell[::3][0] for cell in found} == set(PLACES)


def test_every_value_is_the_one_derived(found):
    for cell in found:
        expected = expected_value(cell)
        if expected is None:
            float(cell.value)  # a bias in nats: no name, further than 1e-10
        else:
            assert cell.value == expected, cell


def test_every_gradient_is_the_one_derived(found):
    for cell in found:
        expected = expected_gradient(cell)
        if expected is None:
            assert float(cell.gradient.removesuffix(" % off")) > 1, cell
        else:
            assert cell.gradient == expected, cell


def test_every_gradient_without_a_name_is_its_two_term_expectation(policies):
    """E[∇(w k)] written out by hand, for the cells that no named gradient fits."""
    new, old, ref = policies
    for sampler in (new, old):
        lab = Lab(new, sampler, ref, 3)
        p, q, s = (x.sum(-1) for x in (lab.new, lab.ref, lab.old))
        log_ratio, rho = p - q, (p - s).exp()
        score = [torch.autograd.grad(x, lab.policy, retain_graph=True)[0] for x in p]
        score = torch.stack(score)  # (samples, states, actions)
        k2, slope_2 = log_ratio**2 / 2, log_ratio
        k3, slope_3 = (-log_ratio).exp() - 1 + log_ratio, 1 - (-log_ratio).exp()
        factors = {
            ("k1", "none"): torch.ones_like(p),
            ("k1", "ρ"): rho * (log_ratio + 1),
            ("k2", "none"): slope_2,
            ("k2", "ρ"): rho * (k2 + slope_2),
            ("k3", "none"): slope_3,
            ("k3", "sg(ρ)"): rho * slope_3,
            ("k3", "ρ"): rho * (k3 + slope_3),
            ("k3, gradient of k2", "ρ"): rho * (k3 + slope_2),
        }
        for (name, weight), factor in factors.items():
            expected = torch.einsum("s,sij->ij", s.exp() * factor, score).detach()
            gradient = lab.moments(lab.in_loss(name, weight, False)).gradient
            assert_close(gradient, expected, rtol=0, atol=1e-10)
        for name, cost in (("k1", log_ratio), ("k2", k2), ("k3", k3)):
            expected = torch.einsum("s,sij->ij", s.exp() * rho * cost, score).detach()
            losses = lab.in_reward(name, "ρ", "reward, sequence")
            assert_close(lab.moments(losses).gradient, expected, rtol=0, atol=1e-10)


def test_the_exact_kl_obeys_the_chain_rule(policies):
    new, old, ref = policies
    lab = Lab(new, new, ref, 3)
    by_sequence = lab.new.sum(-1).exp() @ (lab.new - lab.ref).sum(-1)
    by_token = lab.new.sum(-1).exp() @ lab.exact.sum(-1)
    assert_close(by_sequence, by_token)
    right = lab.targets(False)["right"]
    (chained,) = torch.autograd.grad(by_token, lab.policy)
    assert_close(right, chained, rtol=0, atol=1e-10)
    assert not torch.equal(new, old)


def test_a_token_cell_adds_up_over_tokens_what_a_sequence_cell_sees_at_once(policies):
    lab = Lab(*policies, 3)
    tokens, whole = (lab.in_loss("k1", "none", tokens) for tokens in (True, False))
    assert_close(tokens, whole)
    tokens, whole = (lab.in_loss("k3", "none", tokens) for tokens in (True, False))
    assert (tokens - whole).abs().max() > 0.1


def test_gradient_variances_are_what_the_page_says(found):
    spread = {cell[:4]: cell.gradient_variance for cell in found}
    place = "loss, sequence"
    for sampler in SAMPLERS:
        k3, k2 = (place, sampler, "ρ", "k3"), (place, sampler, "sg(ρ)", "k2")
        assert spread[k3] == pytest.approx(spread[k2], rel=1e-12)
        assert spread[place, sampler, "ρ", "Rao–Blackwell"] < spread[k2]


def test_a_weight_is_that_of_the_token_the_sequence_or_the_prefix(policies):
    lab = Lab(*policies, 3)
    ratio = (lab.new - lab.old).exp()
    assert_close(lab.weight("ρ", "k3", True), ratio)
    assert_close(lab.weight("ρ", "k3", False), ratio.prod(-1, keepdim=True))
    prefix = lab.weight("ρ", "Rao–Blackwell", False)
    assert_close(prefix[:, 0], torch.ones_like(prefix[:, 0]))
    assert_close(prefix[:, 1:], ratio.cumprod(-1)[:, :-1])


def test_an_unknown_estimator_is_refused(policies):
    with pytest.raises(ValueError, match="no estimator is called 'k4'"):
        Lab(*policies, 3).estimate("k4", True)


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    three_policies(0)
    assert torch.equal(torch.get_rng_state(), before)
