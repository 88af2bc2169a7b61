"""Weights move a mean from the old policy to the new one, and a ceiling bends it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from snippets.estimate.estimators import k1, k3
from snippets.estimate.off_policy import (
    importance_weight,
    self_normalised_mean,
    truncated_weight,
)
from tests.strategies import log_probs


@given(log_probs(3, 5))
def test_weighted_estimates_have_the_kl_of_new_as_mean(policies):
    new, old, ref = policies
    kl = new.exp() @ (new - ref)
    for estimator in (k1, k3):
        weighted = importance_weight(new_log_probs=new, old_log_probs=old) * estimator(
            new, ref
        )
        assert_close(old.exp() @ weighted, kl)


@given(log_probs(3, 5))
def test_unweighted_k1_is_the_difference_of_two_kls(policies):
    new, old, ref = policies
    kl_old_ref, kl_old_new = old.exp() @ (old - ref), old.exp() @ (old - new)
    assert_close(old.exp() @ k1(new, ref), kl_old_ref - kl_old_new)


@given(log_probs(3, 5))
def test_the_mean_weight_is_one(policies):
    new, old, _ = policies
    mean = old.exp() @ importance_weight(new_log_probs=new, old_log_probs=old)
    assert_close(mean, torch.ones((), dtype=torch.float64))


@given(log_probs(3, 5), st.floats(1, 5))
def test_a_ceiling_never_raises_a_non_negative_mean(policies, ceiling):
    new, old, ref = policies
    cut, whole = (
        truncated_weight(new_log_probs=new, old_log_probs=old, ceiling=ceiling),
        importance_weight(new_log_probs=new, old_log_probs=old),
    )
    assert cut.max() <= ceiling
    assert (
        old.exp() @ (cut * k3(new, ref)) <= old.exp() @ (whole * k3(new, ref)) + 1e-12
    )
    assert torch.equal(cut[whole <= ceiling], whole[whole <= ceiling])


@given(log_probs(3, 5))
def test_a_ceiling_above_every_weight_changes_nothing(policies):
    new, old, _ = policies
    whole = importance_weight(new_log_probs=new, old_log_probs=old)
    assert torch.equal(
        truncated_weight(
            new_log_probs=new, old_log_probs=old, ceiling=whole.max().item() + 1
        ),
        whole,
    )


def test_self_normalised_weights_need_no_scale():
    values, log_weights = torch.randn(2, 3, 9, dtype=torch.float64)
    mean = self_normalised_mean(values, log_weights)
    assert mean.shape == (3,)
    assert_close(self_normalised_mean(values, log_weights + 700), mean)
    assert_close(mean, (values * log_weights.exp()).sum(-1) / log_weights.exp().sum(-1))


@given(log_probs(3, 5))
def test_self_normalised_means_stay_in_the_range_of_the_values(policies):
    new, old, ref = policies
    values = k1(new, ref)
    mean = self_normalised_mean(values, new - old)
    assert values.min() - 1e-12 <= mean <= values.max() + 1e-12


def test_self_normalised_mean_of_equal_policies_is_the_mean():
    values = torch.randn(50)
    assert_close(self_normalised_mean(values, torch.zeros(50)), values.mean())


def test_the_bias_of_self_normalisation_shrinks_with_the_batch():
    new, old = tensor([[0.7, 0.3], [0.3, 0.7]], dtype=torch.float64).log()
    values = tensor([1.0, 0.0], dtype=torch.float64)
    bias = {}
    for samples in (2, 8):  # every batch of so many draws of old
        batches = torch.cartesian_prod(*[torch.arange(2)] * samples)
        weights = old[batches].sum(-1).exp()
        means = self_normalised_mean(values[batches], (new - old)[batches])
        bias[samples] = abs((weights @ means - 0.7).item())
    assert bias[8] < bias[2] / 2
    assert bias[8] > 0.001


def test_only_the_plain_weight_carries_the_gradient_of_new_alone():
    new, old = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)
    weight = importance_weight(new_log_probs=new, old_log_probs=old)
    weight.sum().backward()
    assert_close(new.grad, weight.detach())
    assert old.grad is None
    assert not truncated_weight(
        new_log_probs=new, old_log_probs=old, ceiling=2.0
    ).requires_grad


def test_a_weight_that_overflows_is_cut():
    new, old = tensor(0.0), tensor(-200.0)
    assert importance_weight(new_log_probs=new, old_log_probs=old) == torch.inf
    assert truncated_weight(new_log_probs=new, old_log_probs=old, ceiling=5.0) == 5


@pytest.mark.parametrize("ceiling", [0.99, 0.0, float("nan")])
def test_refuses_a_ceiling_that_would_cut_equal_policies(ceiling):
    with pytest.raises(ValueError, match="ceiling is"):
        truncated_weight(
            new_log_probs=torch.zeros(2), old_log_probs=torch.zeros(2), ceiling=ceiling
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_policies_have_weight_one(dtype):
    same = torch.randn(2, 3, dtype=dtype)
    for weight in (
        importance_weight(new_log_probs=same, old_log_probs=same),
        truncated_weight(new_log_probs=same, old_log_probs=same, ceiling=1.0),
    ):
        assert weight.dtype == dtype
        assert torch.equal(weight, torch.ones_like(same))


def test_a_sample_that_old_cannot_give_has_an_infinite_weight():
    never = {"new_log_probs": tensor(-1.0), "old_log_probs": tensor(-torch.inf)}
    assert importance_weight(**never) == torch.inf
    assert truncated_weight(**never, ceiling=3.0) == 3


def test_a_sample_that_new_cannot_give_has_weight_zero_and_no_gradient():
    new = tensor(-torch.inf, requires_grad=True)
    weight = importance_weight(new_log_probs=new, old_log_probs=tensor(-1.0))
    weight.backward()
    assert weight == new.grad == 0


def test_a_truncated_weight_leaves_the_sample_its_gradient():
    """It scales the gradient of what it multiplies, above the ceiling too."""
    new = tensor([0.0, -2.0], requires_grad=True)
    cut = truncated_weight(
        new_log_probs=new, old_log_probs=tensor([-3.0, -2.0]), ceiling=2.0
    )
    (cut * new.square()).sum().backward()
    assert cut.tolist() == [2, 1]
    assert_close(new.grad, 2 * new.detach() * cut)


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_the_mean_of_no_sample_is_nan(shape):
    mean = self_normalised_mean(torch.zeros(shape), torch.zeros(shape))
    assert mean.shape == shape[:-1]
    assert mean.isnan().all()


def test_a_sample_of_weight_zero_is_not_read():
    values = tensor([1.0, 3.0, torch.nan], requires_grad=True)
    mean = self_normalised_mean(values, tensor([0.0, 0.0, -torch.inf]))
    mean.backward()
    assert mean == 2
    assert values.grad.tolist() == [0.5, 0.5, 0]


def test_without_any_weight_or_with_an_infinite_one_there_is_no_mean():
    for log_weights in (tensor([-torch.inf] * 2), tensor([0.0, torch.inf])):
        assert self_normalised_mean(torch.ones(2), log_weights).isnan()


def test_weights_beside_values_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"log_weights is \[4, 1, 3\]"):
        self_normalised_mean(torch.zeros(4, 3), torch.zeros(4, 1, 3))
