"""What TorchRL's KL penalty does: the statements of the page on PPO with a penalty."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from snippets.algorithms.trust_region.adaptive_rate import adapt_rate
from tests.peers.records import (
    MASK,
    OPTIONS,
    assert_default,
    assert_estimate,
    options_of,
    sides,
)

pytest.importorskip("torchrl", minversion="0.14")
from tensordict import TensorDict
from tensordict.nn import (
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence
from torchrl.objectives import KLAdaptiveLR, KLPENPPOLoss
from torchrl.objectives.llm import GRPOLoss


class Joint(Independent):
    """A Gaussian over a vector."""

    def __init__(self, loc, scale):
        super().__init__(Normal(loc, scale), 1)


def loss_and_batch(shift, stretch=1.0):
    """The loss, and a batch whose old policy is shifted and stretched."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), NormalParamExtractor())
    module = TensorDictModule(net, ["observation"], ["loc", "scale"])
    draw = ProbabilisticTensorDictModule(
        ["loc", "scale"], ["action"], distribution_class=Joint, return_log_prob=True
    )
    actor = ProbabilisticTensorDictSequential(module, draw)
    critic = TensorDictModule(nn.Linear(3, 1), ["observation"], ["state_value"])
    observation = torch.randn(16, 3)
    with torch.no_grad():
        batch = actor(TensorDict({"observation": observation}, [16]))
        new = batch["loc"].clone(), batch["scale"].clone()
        batch["loc"] = batch["loc"] + shift
        batch["scale"] = stretch * batch["scale"]
        old = Joint(batch["loc"], batch["scale"])
        batch["action_log_prob"] = old.log_prob(batch["action"])
    batch["advantage"] = torch.zeros(16, 1)
    batch["value_target"] = torch.zeros(16, 1)
    loss = KLPENPPOLoss(actor, critic, entropy_bonus=False)
    p, q = sides(OPTIONS["torchrl-penalty"], old=old, new=Joint(*new))
    return loss, batch, kl_divergence(p, q)


def test_the_penalty_is_added_to_the_loss():
    loss, batch, kl = loss_and_batch(0.5, stretch=1.5)
    assert_close(loss(batch)["loss_objective"], kl.mean())


def test_the_docstring_subtracts_it():
    assert "loss = loss - beta * KL(old_policy, new_policy)" in KLPENPPOLoss.__doc__


def test_the_coefficient_changes_in_every_forward_pass():
    loss, batch, _ = loss_and_batch(0.5)
    for _ in range(10):
        loss(batch)
    assert loss.beta == 2.0**10
    near, batch, _ = loss_and_batch(0.0)
    for _ in range(10):
        near(batch)
    assert near.beta == 0.5**10


def test_defaults():
    loss, _, _ = loss_and_batch(0.0)
    assert loss.beta == 1.0
    assert loss.dtarg == 0.01


@pytest.mark.parametrize("kl", [0.0, -0.001, 0.001, 0.0049, 0.01, 0.0199, 0.021, 1.0])
@pytest.mark.parametrize("rate", [1e-5, 1e-3, 1e-2])
def test_its_schedule_of_the_learning_rate_is_ours(kl, rate):
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    KLAdaptiveLR(optimiser, target_kl=0.01).step(kl)
    expected = adapt_rate(rate, kl, target=0.01, lowest=1e-5, highest=1e-2)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-15)


def test_value_and_gradient_are_those_of_the_record():
    def call(new, old, ref):  # noqa: ARG001
        batch = TensorDict({"_cur_log_prob": new}, [4])
        loss = SimpleNamespace(kl_to_ref_coeff=1.0)
        return GRPOLoss._kl_to_ref(loss, batch, ref_log_prob=ref, mask=MASK)[0]

    assert_estimate("torchrl-grpo", call)


@pytest.mark.parametrize("name", options_of("TorchRL"))
def test_the_defaults_are_those_of_the_record(name):
    assert_default(name)
