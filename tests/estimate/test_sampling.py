"""`log_prob` is torch's, and the sampler decides what an estimate is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import inf, tensor
from torch.distributions import Categorical
from torch.testing import assert_close

from snippets.estimate.estimators import k1, k3
from snippets.estimate.sampling import log_prob
from tests.strategies import log_probs, two_log_policies


@given(log_probs(1, 4), st.floats(0.1, 10))
def test_agrees_with_torch(logits, temperature):
    logits = logits.expand(logits.shape[1], -1)
    every = torch.arange(logits.shape[1])
    expected = Categorical(logits=logits / temperature).log_prob(every)
    assert_close(log_prob(logits, actions=every, temperature=temperature), expected)


@given(log_probs(1, 4), st.floats(-10, 10))
def test_needs_no_normalised_logits(logits, shift):
    actions = torch.zeros(1, dtype=torch.long)
    shifted = log_prob(logits + shift, actions=actions, temperature=1.0)
    assert_close(shifted, log_prob(logits, actions=actions, temperature=1.0))


@given(two_log_policies())
def test_k3_from_the_wrong_sampler_is_chi_squared_minus_kl(both):
    log_p, log_q = both
    p, q = log_p.exp(), log_q.exp()
    chi_squared = ((q - p).square() / p).sum()
    kl = (q * (log_q - log_p)).sum()
    # exp(8) is the largest ratio: the sums cancel to that many units of rounding
    assert_close(q @ k3(log_p, log_q), chi_squared - kl, rtol=1e-7, atol=1e-10)


@given(two_log_policies())
def test_k1_from_the_wrong_sampler_is_minus_the_other_direction(both):
    log_p, log_q = both
    kl_qp = (log_q.exp() * (log_q - log_p)).sum()
    assert_close(log_q.exp() @ k1(log_p, log_q), -kl_qp)


@given(log_probs(1, 4), st.floats(0.2, 0.9))
def test_a_temperature_on_one_side_is_a_divergence(logits, temperature):
    every = torch.arange(logits.shape[1])
    rows = logits.expand(len(every), -1)
    sampler, other = (
        log_prob(rows, actions=every, temperature=t) for t in (temperature, 1.0)
    )
    divergence = sampler.exp() @ k1(sampler, other)
    uniform = logits.max() - logits.min() < 1e-3  # no temperature changes it
    assert uniform or divergence > 0
    assert sampler.exp() @ k1(sampler, sampler) == 0


def test_gradient_is_one_hot_minus_the_policy():
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    log_prob(logits, actions=tensor(2), temperature=1.0).backward()
    one_hot = torch.nn.functional.one_hot(tensor(2), 5)
    assert_close(logits.grad, one_hot - logits.detach().softmax(-1))


def test_a_masked_action_has_no_probability():
    logits = tensor([[0.0, -inf], [0.0, -inf]])
    logits = logits.requires_grad_()
    found = log_prob(logits, actions=tensor([0, 1]), temperature=1.0)
    assert found.tolist() == [0.0, -inf]
    found[0].backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_keeps_dtype_and_batch_shape(dtype):
    logits = torch.zeros(2, 3, 7, dtype=dtype)
    actions = torch.zeros(2, 3, dtype=torch.long)
    found = log_prob(logits, actions=actions, temperature=1.0)
    assert found.dtype == dtype
    assert found.shape == (2, 3)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match=r"temperature is .*, and must be positive"):
        log_prob(torch.zeros(1, 2), actions=tensor([0]), temperature=temperature)


def test_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"logits is \[4, 2\], actions is \[3\]"):
        log_prob(
            torch.zeros(4, 2), actions=torch.zeros(3, dtype=torch.long), temperature=1.0
        )


@pytest.mark.parametrize("actions", [torch.zeros(2), torch.zeros(2, dtype=torch.bool)])
def test_refuses_actions_that_are_no_integers(actions):
    with pytest.raises(ValueError, match="actions must be integers"):
        log_prob(torch.zeros(2, 3), actions=actions, temperature=1.0)


def test_the_label_of_padding_is_no_action():
    """As the docstring says: an error of torch, not a silent last action."""
    with pytest.raises(RuntimeError, match="out of bounds"):
        log_prob(torch.zeros(1, 3), actions=tensor([-100]), temperature=1.0)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0])
def test_half_precision_has_one_rounding_over_a_large_vocabulary(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 50_000, generator=generator).bfloat16()
    actions = tensor([0, 1, 2, 3])
    found = log_prob(logits, actions=actions, temperature=temperature)
    exact = log_prob(logits.double(), actions=actions, temperature=temperature)
    assert_close(found.double(), exact, rtol=torch.finfo(torch.bfloat16).eps, atol=0)
