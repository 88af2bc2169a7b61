"""The schedule holds its band, and is not fooled by a KL that is not one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, nan, tensor
from torch.distributions import Independent, Normal, kl_divergence
from torch.testing import assert_close

from snippets.algorithms.trust_region.adaptive_rate import adapt_rate, gaussian_divergence

RATES = st.floats(1e-5, 1e-2)


@st.composite
def gaussians(draw):
    """Means and standard deviations of two policies, two states, three dimensions."""
    row = st.lists(st.floats(-1, 1), min_size=24, max_size=24)
    numbers = tensor(draw(row), dtype=torch.float64).reshape(4, 2, 3)
    return numbers[0], (2 * numbers[1]).exp(), numbers[2], (2 * numbers[3]).exp()


@given(gaussians())
def test_the_divergence_is_that_of_torch(policies):
    old_mean, old_std, new_mean, new_std = policies
    old = Independent(Normal(old_mean, old_std), 1)
    new = Independent(Normal(new_mean, new_std), 1)
    assert_close(gaussian_divergence(*policies), kl_divergence(old, new))


@given(gaussians(), st.sampled_from([0.5, 0.1, 0.01, 1e-4]))
def test_identical_policies_diverge_by_exactly_zero(policies, std):
    mean, scale = policies[0], torch.full_like(policies[0], std)
    assert (gaussian_divergence(mean, scale, mean, scale) == 0).all()
    single = [x.float() for x in (mean, scale)]
    assert (gaussian_divergence(*single, *single) == 0).all()


@given(RATES, st.floats(0.0051, 0.0199))
def test_inside_the_band_nothing_changes(rate, divergence):
    assert adapt_rate(rate, divergence, 0.01, 1e-5, 1e-2) == rate


@given(RATES, st.floats(0, 10))
def test_the_rate_stays_between_its_limits(rate, divergence):
    assert 1e-5 <= adapt_rate(rate, divergence, 0.01, 1e-5, 1e-2) <= 1e-2


def test_it_moves_by_half_as_much_again():
    assert adapt_rate(1e-3, 0.021, 0.01, 1e-5, 1e-2) == 1e-3 / 1.5
    assert adapt_rate(1e-3, 0.0049, 0.01, 1e-5, 1e-2) == 1e-3 * 1.5
    assert adapt_rate(1e-3, inf, 0.01, 1e-5, 1e-2) == 1e-3 / 1.5


@pytest.mark.parametrize("divergence", [0.0, -1e-9, -0.045])
def test_nothing_moved_changes_nothing(divergence):
    assert adapt_rate(1e-3, divergence, 0.01, 1e-5, 1e-2) == 1e-3


def test_refuses_nan():
    with pytest.raises(ValueError, match="divergence is nan"):
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


def test_batches():
    mean, std = torch.zeros(4, 5, 3), torch.ones(3)
    shape = gaussian_divergence(mean, std, mean, std).shape
    assert shape == (4, 5)
