"""The schedule holds its band, and is not fooled by a KL that is not one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.distributions import Independent, Normal, kl_divergence
from torch.testing import assert_close

from snippets.algorithms.trust_region.adaptive_rate import adapt_rate
from snippets.exact.gaussian import kl_gaussian
from tests.strategies import two_gaussians

RATES = st.floats(1e-5, 1e-2)


@pytest.mark.parametrize("std", [0.5, 0.1, 0.01, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exact_divergence_of_a_policy_from_itself_changes_nothing(std, dtype):
    mean, std = torch.randn(3, 2, dtype=dtype), torch.full((3, 2), std, dtype=dtype)
    kl = kl_gaussian(mean, std, mean, std).mean().item()
    assert kl == 0
    assert adapt_rate(1e-3, kl, 0.01, 1e-5, 1e-2) == 1e-3


@given(two_gaussians())
def test_the_exact_divergence_is_that_of_torch(policies):
    p, q = (Independent(Normal(*x), 1) for x in (policies[:2], policies[2:]))
    assert_close(kl_gaussian(*policies), kl_divergence(p, q))


@given(RATES, st.floats(0.0051, 0.0199))
def test_inside_the_band_nothing_changes(rate, kl):
    assert adapt_rate(rate, kl, 0.01, 1e-5, 1e-2) == rate


@given(RATES, st.floats(0, 10))
def test_the_rate_stays_between_its_limits(rate, kl):
    assert 1e-5 <= adapt_rate(rate, kl, 0.01, 1e-5, 1e-2) <= 1e-2


def test_it_moves_by_half_as_much_again():
    assert adapt_rate(1e-3, 0.021, 0.01, 1e-5, 1e-2) == 1e-3 / 1.5
    assert adapt_rate(1e-3, 0.0049, 0.01, 1e-5, 1e-2) == 1e-3 * 1.5
    assert adapt_rate(1e-3, inf, 0.01, 1e-5, 1e-2) == 1e-3 / 1.5


def test_the_band_is_what_is_left_alone():
    def moved(kl):
        return adapt_rate(1e-3, kl, 0.01, 1e-5, 1e-2, band=4.0) / 1e-3

    assert [moved(kl) for kl in (0.041, 0.039, 0.0026, 0.0024)] == [1 / 1.5, 1, 1, 1.5]
    with pytest.raises(ValueError, match="must be at least 1"):
        adapt_rate(1e-3, 0.01, 0.01, 1e-5, 1e-2, band=0.5)


@pytest.mark.parametrize("kl", [0.0, -1e-9, -0.045])
def test_nothing_moved_changes_nothing(kl):
    assert adapt_rate(1e-3, kl, 0.01, 1e-5, 1e-2) == 1e-3


def test_refuses_nan():
    with pytest.raises(ValueError, match="kl is nan"):
        adapt_rate(1e-3, nan, 0.01, 1e-5, 1e-2)


@given(st.floats(1e-4, 1e-2))
def test_a_system_whose_divergence_grows_with_the_rate_settles_in_the_band(rate):
    # A step of length proportional to the rate: KL = 10⁴·rate², 0.01 at 0.001.
    for _ in range(40):
        rate = adapt_rate(rate, 1e4 * rate**2, 0.01, 1e-5, 1e-2)
    # The band is a factor of 4 wide, one change of the rate moves the KL by 2.25.
    assert 0.005 <= 1e4 * rate**2 <= 0.02


@pytest.mark.parametrize("std", [0.1, 0.03, 0.01])
def test_a_small_number_under_the_variance_makes_the_divergence_negative(std):
    variance = tensor(std, dtype=torch.float64) ** 2
    small = 1e-5
    log_term = tensor(1 + small, dtype=torch.float64).log()
    fooled = log_term + variance / (2 * (variance + small)) - 0.5
    assert fooled < 0
    # To first order the loss is half of small / variance.
    assert fooled > -small / variance


@pytest.mark.parametrize("target", [0.002, 0.5])
def test_the_band_is_from_half_to_twice_the_target(target):
    for times, factor in ((2.01, 1 / 1.5), (1.99, 1), (0.51, 1), (0.49, 1.5)):
        found = adapt_rate(1e-3, times * target, target, 1e-5, 1e-2)
        assert found == pytest.approx(1e-3 * factor, rel=1e-15)
    for edge in (2 * target, target / 2):
        assert adapt_rate(1e-3, edge, target, 1e-5, 1e-2) == 1e-3


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"rate": 0.0}, "rate"),
        ({"target": -0.01}, "target"),
        ({"lowest": 0.0}, "lowest"),
        ({"lowest": 0.1}, "lowest is 0.1, highest is 0.01"),
    ],
)
def test_refuses_by_name(changed, name):
    usual = {"rate": 1e-3, "kl": 0.1, "target": 0.01, "lowest": 1e-5, "highest": 1e-2}
    with pytest.raises(ValueError, match=name):
        adapt_rate(**(usual | changed))
