"""Why a KL is negative, or not zero at the start: exact, by enumeration."""

import pytest
import torch
from hypothesis import given
from torch.testing import assert_close

from snippets.estimate.estimators import k1, k3
from snippets.exact.categorical import kl_divergence_logits
from snippets.lab.gallery import reference_logits
from tests.strategies import two_log_policies


@given(two_log_policies())
def test_samples_of_the_other_policy_make_k1_minus_the_other_kl(policies):
    p, q = policies
    found = q.exp() @ k1(p, q)
    assert_close(found, -kl_divergence_logits(q, p), rtol=1e-9, atol=1e-12)


@given(two_log_policies())
def test_the_mean_of_the_ratio_is_one_for_the_sampler_alone(policies):
    p, q = policies
    u = (q - p).exp()
    assert_close(p.exp() @ u, torch.ones((), dtype=p.dtype))
    assert q.exp() @ u >= 1 - 1e-12  # 1 plus a chi-squared


def test_k1_scatters_by_the_root_of_twice_the_kl():
    p = torch.tensor([1.0, 0.0, -1.0, 0.5], dtype=torch.float64).log_softmax(-1)
    step = torch.tensor([0.3, -0.4, 0.2, 0.1], dtype=torch.float64)
    for size in (1e-1, 1e-2, 1e-3):
        q = (p + size * step).log_softmax(-1)
        kl, each = kl_divergence_logits(p, q), k1(p, q)
        spread = (p.exp() @ (each - kl).square()).sqrt()
        # The next term is of the order of the step.
        assert_close(spread, (2 * kl).sqrt(), rtol=size, atol=0)


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.5])
def test_a_temperature_on_one_side_follows_the_log_prob(temperature):
    """Within a state the gap is a straight line in it, with slope 1/T - 1."""
    logits = reference_logits()[1:]
    old, ref = logits.log_softmax(-1), (logits / temperature).log_softmax(-1)
    gap = ref - old
    slope = (gap - gap.mean(-1, keepdim=True)) / (old - old.mean(-1, keepdim=True))
    assert_close(slope, torch.full_like(slope, 1 / temperature - 1), rtol=1e-4, atol=0)


def test_rounding_to_bfloat16_is_a_small_kl():
    torch.manual_seed(0)
    old = torch.randn(10_000, 50).log_softmax(-1)[:, 0]
    kl = k3(old, old.bfloat16().float())
    # Below 8 nats the spacing is 2^-5; half of the square of half of it is 1.2e-4.
    assert 0 < kl[old > -8].max() < 1.3e-4
