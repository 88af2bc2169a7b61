"""The list is complete, its probabilities are a policy's, its moments are exact."""

import itertools

import pytest
import torch
from torch.distributions import Categorical
from torch.testing import assert_close

from snippets.lab.enumeration import (
    every_sequence,
    moments,
    prefixes,
    token_log_probs,
)

SIZES = [(1, 1), (2, 1), (2, 4), (3, 3), (6, 2), (3, 0), (1, 3)]


def a_policy(actions, steps):
    """Logits for every prefix shorter than the sequence."""
    states = sum(actions**t for t in range(max(steps, 1)))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(states, actions, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("actions", "steps"), SIZES)
def test_lists_every_sequence_once(actions, steps):
    found = [tuple(row) for row in every_sequence(actions, steps).tolist()]
    assert found == list(itertools.product(range(actions), repeat=steps))


@pytest.mark.parametrize(("actions", "steps"), SIZES)
def test_a_state_is_a_prefix(actions, steps):
    sequences = every_sequence(actions, steps)
    states = prefixes(sequences, actions)
    named = {}
    for sequence, row in zip(sequences.tolist(), states.tolist(), strict=True):
        for t, state in enumerate(row):
            assert named.setdefault(state, sequence[:t]) == sequence[:t]
    assert states.shape == sequences.shape
    assert sorted(named) == list(range(len(a_policy(actions, steps)) if steps else 0))


@pytest.mark.parametrize(("actions", "steps"), SIZES)
def test_probabilities_sum_to_one(actions, steps):
    log_probs = token_log_probs(
        a_policy(actions, steps), every_sequence(actions, steps)
    )
    assert log_probs.shape == (actions**steps, steps)
    assert log_probs.sum(-1).exp().sum().item() == pytest.approx(1, abs=1e-14)


def test_log_probs_are_those_of_torch_at_each_prefix():
    policy, sequences = a_policy(3, 3), every_sequence(3, 3)
    states = prefixes(sequences, 3)
    expected = Categorical(logits=policy[states]).log_prob(sequences)
    assert_close(token_log_probs(policy, sequences), expected)


def test_sampling_step_by_step_gives_the_listed_probabilities():
    torch.manual_seed(0)
    policy, drawn = a_policy(2, 3), torch.zeros(40_000, 3, dtype=torch.long)
    for t in range(3):
        rows = policy[prefixes(drawn, 2)[:, t]]
        drawn[:, t] = rows.softmax(-1).multinomial(1).squeeze(-1)
    counts = (drawn @ torch.tensor([4, 2, 1])).bincount(minlength=8)
    expected = token_log_probs(policy, every_sequence(2, 3)).sum(-1).exp()
    error = (expected * (1 - expected) / 40_000).sqrt()
    assert ((counts / 40_000 - expected).abs() < 4 * error).all()


def test_moments_are_those_of_the_weighted_list():
    policy = a_policy(2, 2).requires_grad_()
    log_probs = token_log_probs(policy, every_sequence(2, 2)).sum(-1)
    losses = log_probs.exp() * log_probs
    found = moments(log_probs, losses, policy)
    p, x = log_probs.detach().exp(), losses.detach()
    assert_close(found.mean, (p * x).sum())
    assert_close(found.variance, (p * x**2).sum() - found.mean**2)
    (mean_gradient,) = torch.autograd.grad(p @ losses, policy, retain_graph=True)
    assert_close(found.gradient, mean_gradient)
    each = [torch.autograd.grad(y, policy, retain_graph=True)[0] for y in losses]
    squares = sum(w * g.square().sum() for w, g in zip(p, each, strict=True))
    assert_close(found.gradient_variance, squares - mean_gradient.square().sum())


def test_the_sampler_is_not_differentiated():
    policy = a_policy(2, 1).requires_grad_()
    log_probs = token_log_probs(policy, every_sequence(2, 1)).sum(-1)
    found = moments(log_probs, log_probs, policy)
    assert_close(found.gradient, torch.zeros_like(policy), rtol=0, atol=1e-15)


def test_moments_are_constants():
    """Also where the sampler's log-probabilities carry a gradient."""
    policy = a_policy(2, 2).requires_grad_()
    log_probs = token_log_probs(policy, every_sequence(2, 2)).sum(-1)
    found = moments(log_probs, log_probs.square(), policy)
    assert not any(x.requires_grad for x in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_keep_the_dtype_and_the_device(dtype):
    policy = a_policy(2, 2).to(dtype).requires_grad_()
    log_probs = token_log_probs(policy, every_sequence(2, 2)).sum(-1)
    for result in moments(log_probs, log_probs.square(), policy):
        assert result.dtype == dtype
    policy = a_policy(2, 2).to("meta").requires_grad_()
    log_probs = token_log_probs(policy, every_sequence(2, 2).to("meta")).sum(-1)
    for result in moments(log_probs, log_probs.square(), policy):
        assert result.device.type == "meta"


def test_no_step_has_one_sequence_and_no_action_none():
    assert every_sequence(3, 0).shape == (1, 0)
    assert token_log_probs(torch.zeros(1, 3), every_sequence(3, 0)).sum(-1) == 0


@pytest.mark.parametrize(("actions", "steps"), [(0, 2), (-1, 2), (3, -1)])
def test_refuses_what_has_no_sequences(actions, steps):
    with pytest.raises(
        ValueError, match=rf"actions is {actions}, and steps is {steps}"
    ):
        every_sequence(actions, steps)


def test_refuses_other_axes_and_integers():
    policy, sequences = a_policy(2, 2), every_sequence(2, 2)
    with pytest.raises(ValueError, match="policy must be floating point"):
        token_log_probs(policy.long(), sequences)
    with pytest.raises(ValueError, match=r"policy is .* and needs two axes"):
        token_log_probs(policy[None], sequences)
    with pytest.raises(ValueError, match=r"sequences is .* two axes of integers"):
        prefixes(sequences.double(), 2)
    leaf = policy.requires_grad_()
    losses = token_log_probs(leaf, sequences).sum(-1)
    with pytest.raises(ValueError, match=r"losses is \[4, 1\]"):
        moments(losses, losses[:, None], leaf)
