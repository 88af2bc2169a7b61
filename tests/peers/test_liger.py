"""What Liger-Kernel's chunked GRPO loss adds: the row of the configurations."""

import pytest
import torch

from tests.peers.records import MASK, assert_default, assert_estimate, options_of

pytest.importorskip("liger_kernel")
from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction


def test_value_and_gradient_are_those_of_the_record():
    def call(new, old, ref):
        loss, _ = LigerFusedLinearGRPOFunction.ppo_loss_fn(
            new, MASK.double(), torch.zeros(4), MASK.double(), ref, old, beta=1.0
        )
        return loss

    assert_estimate("liger-grpo", call)


@pytest.mark.parametrize("name", options_of("Liger-Kernel"))
def test_the_defaults_are_those_of_the_record(name):
    assert_default(name)
