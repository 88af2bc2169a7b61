"""What each direction of the KL asks of a policy, and where a narrow one ends up."""

import pytest
import torch
from hypothesis import given
from torch import nan, tensor
from torch.testing import assert_close

from snippets.exact.categorical import kl_divergence_logits
from snippets.foundations.directions import window_logits
from snippets.foundations.entropy import entropy
from tests.strategies import two_policies


@given(two_policies())
def test_the_target_first_is_maximum_likelihood(pair):
    target, policy = pair
    policy.requires_grad_()
    (slope,) = torch.autograd.grad(kl_divergence_logits(target, policy), policy)
    likelihood = (target.softmax(-1) * policy.log_softmax(-1)).sum()
    (rise,) = torch.autograd.grad(likelihood, policy)
    assert_close(slope, -rise)


@given(two_policies())
def test_the_policy_first_is_a_reward_and_an_entropy(pair):
    target, policy = pair
    reward = (policy.softmax(-1) * target.log_softmax(-1)).sum()
    assert_close(kl_divergence_logits(policy, target), -(reward + entropy(policy)))


def lanes():
    """25 lanes, two good ones: bumps of width 1.5 at lanes 7 and 17."""
    modes = window_logits(tensor([7.0, 17.0]).double(), tensor([1.5, 1.5]).double(), 25)
    return modes.softmax(-1).mean(0).log()


def test_a_bump_covers_two_modes_or_takes_one():
    p = lanes()
    # Closer to the middle lane than 0.01, the two optima of the reverse KL are equal.
    centers = torch.linspace(3, 12, 181).double()[:, None].expand(181, 91)
    widths = torch.linspace(1, 10, 91).double().expand(181, 91)
    policies = window_logits(centers, widths, 25)
    forward = kl_divergence_logits(p, policies).argmin()
    reverse = kl_divergence_logits(policies, p).argmin()
    steps = 0.05 + 1e-9, 0.1 + 1e-9  # of the grid
    assert abs(centers.flatten()[forward] - 12.0) < steps[0]
    assert abs(widths.flatten()[forward] - 5.7) < steps[1]
    assert abs(centers.flatten()[reverse] - 7.0) < steps[0]
    assert abs(widths.flatten()[reverse] - 1.5) < steps[1]


def test_the_target_is_narrower_than_the_row_of_lanes():
    p, lane = lanes().exp(), torch.arange(25).double()
    spread = (p * (lane - p @ lane).square()).sum()
    uniform = (lane - 12).square().mean()
    assert spread < 0.6 * uniform  # else the covering policy is the uniform one


def test_a_bump_is_a_gaussian_of_the_place():
    center, width = tensor([2.25]).double(), tensor([1.7]).double()
    expected = torch.distributions.Normal(center, width).log_prob(torch.arange(5.0))
    logits = window_logits(center, width, 5)
    assert_close(logits.log_softmax(-1)[0], expected.log_softmax(-1))


def test_a_bump_is_symmetric_about_its_center():
    logits = window_logits(tensor([2.0]), tensor([1.0]), 5)
    assert_close(logits, logits.flip(-1))


def test_places_are_made_where_the_center_is():
    center = torch.zeros(3, device="meta")
    assert window_logits(center, torch.ones_like(center), 5).device.type == "meta"


def test_a_width_that_is_not_positive_is_nan_in_its_row_alone():
    logits = window_logits(torch.zeros(4), tensor([1.0, 0.0, -1.0, nan]), 3)
    assert logits[0].isfinite().all()
    assert logits[1:].isnan().all()


def test_refuses_columns_beside_rows_and_no_actions():
    with pytest.raises(ValueError, match=r"width is \[2, 1\], center is \[2\]"):
        window_logits(torch.zeros(2), torch.ones(2, 1), 3)
    with pytest.raises(ValueError, match="actions is 0"):
        window_logits(torch.zeros(2), torch.ones(2), 0)
