"""What Tianshou's TRPO and NPG limit: statements of the pages on both."""

import inspect
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from tests.peers.records import OPTIONS, assert_default, options_of, sides

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its dependencies warn while they are imported
    pytest.importorskip("tianshou", minversion="2.0.1")
    from tianshou.algorithm.modelfree.npg import NPG
    from tianshou.algorithm.modelfree.trpo import TRPO
    from tianshou.data import Batch


def joint_divergence(wrap, dims):
    """The joint KL of one update of TRPO with a distribution of the user's."""
    torch.manual_seed(0)
    actor = torch.nn.Linear(1, dims, bias=False)
    observations = torch.ones(64, 1)

    def policy(batch):
        mean = actor(batch.obs)
        return SimpleNamespace(dist=wrap(Normal(mean, torch.ones(dims))))

    policy.actor = actor
    batch = Batch(obs=observations)
    with torch.no_grad():
        before = Independent(Normal(actor(observations), torch.ones(dims)), 1)
        batch.act = before.sample()
        batch.logp_old = policy(batch).dist.log_prob(batch.act)
    batch.adv = batch.act.sum(-1) - batch.act.sum(-1).mean()
    batch.returns = torch.zeros(64)
    algorithm = TRPO.__new__(TRPO)
    torch.nn.Module.__init__(algorithm)
    for name, value in {
        "policy": policy, "max_kl": 0.01, "max_backtracks": 10, "_damping": 1e-6,
        "backtrack_coeff": 0.8, "optim_critic_iters": 1,
        "critic": torch.nn.Linear(1, 1), "optim": SimpleNamespace(step=lambda _: None),
    }.items():  # fmt: skip
        object.__setattr__(algorithm, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when it halves its step
        algorithm._update_with_batch(batch, None, 1)
    after = Independent(Normal(actor(observations), torch.ones(dims)), 1)
    return kl_divergence(before, after).mean().item()


def test_an_independent_distribution_keeps_the_joint_limit():
    joint = joint_divergence(lambda normal: Independent(normal, 1), 8)
    assert 0.005 < joint <= 0.01


def test_a_plain_normal_multiplies_it_by_the_number_of_dimensions():
    joint = joint_divergence(lambda normal: normal, 8)
    assert 8 * 0.005 < joint <= 8 * 0.01


def test_defaults():
    assert inspect.signature(TRPO).parameters["max_kl"].default == 0.01
    assert inspect.signature(NPG).parameters["trust_region_size"].default == 0.5


def test_the_natural_gradient_is_damped_by_a_tenth():
    source = inspect.getsource(NPG.__init__)
    assert "self._damping = 0.1" in source


def test_its_trpo_compares_the_policies_of_the_record(monkeypatch):
    flows = []

    def watched(p, q):
        flows.append({"new": p.mean.requires_grad, "old": q.mean.requires_grad})
        return kl_divergence(p, q)

    monkeypatch.setattr("tianshou.algorithm.modelfree.npg.kl_divergence", watched)
    monkeypatch.setattr("tianshou.algorithm.modelfree.trpo.kl_divergence", watched)
    joint_divergence(lambda normal: Independent(normal, 1), 2)
    # Only the new policy has a gradient, and only where one is taken.
    p, q = (flows[0]["new"], flows[0]["old"])
    assert sides(OPTIONS["tianshou-trpo"], new=True, old=False) == (p, q)


@pytest.mark.parametrize("name", options_of("Tianshou"))
def test_the_defaults_are_those_of_the_record(name):
    assert_default(name)
