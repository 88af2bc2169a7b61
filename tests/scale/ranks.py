"""What a rank of several does with its tokens, in ours and in other ways."""

import contextlib

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch.nn.functional import logsigmoid
from torch.nn.parallel import DistributedDataParallel

from snippets.estimate.estimators import k3
from snippets.estimate.sequences import sequence_log_prob, token_mean
from snippets.scale.token_means import (
    global_count,
    rank_token_mean,
    sequence_parallel_sum,
)

LENGTHS = torch.tensor([6, 1, 2, 5, 3, 0, 0, 6])  # the third of four ranks has few
MICRO_BATCHES = 2


def data():
    """Features, reference log-probabilities and mask: `(8, 6, ...)`."""
    noise = torch.Generator().manual_seed(0)
    features = torch.randn(8, 6, 3, generator=noise, dtype=torch.float64)
    ref = -torch.rand(8, 6, generator=noise, dtype=torch.float64)
    return features, ref, torch.arange(6) < LENGTHS[:, None]


def model():
    """A policy with four parameters, which gives each token a log-probability."""
    torch.manual_seed(1)
    return torch.nn.Linear(3, 1).double()


def token_kl(policy, features, ref):
    new = logsigmoid(policy(features).squeeze(-1))
    return k3(new, ref)


def sequence_kl(policy, features, ref, mask, total):
    """k3 of whole sequences, which is no sum over tokens, and its mean."""
    new = logsigmoid(policy(features).squeeze(-1))
    return k3(total(new, mask), total(ref, mask)).mean()


TOKEN_LOSSES = {
    "ours": lambda values, mask, _, everywhere: rank_token_mean(
        values, mask, count=everywhere, ranks=dist.get_world_size()
    ),
    "mean of means": lambda values, mask, _, __: (
        token_mean(values, mask, count=mask.sum().clamp(min=1)) / MICRO_BATCHES
    ),
    "count of the rank": lambda values, mask, here, _: token_mean(
        values, mask, count=here
    ),
    "without the ranks": lambda values, mask, _, everywhere: token_mean(
        values, mask, count=everywhere
    ),
}


def adding_gather(values, mask):
    """A gather whose backward pass adds the slopes of all ranks."""
    parts = differentiable.all_gather(sequence_log_prob(values, mask))
    return torch.stack(list(parts)).sum(0)


SEQUENCE_SUMS = {
    "ours": (sequence_parallel_sum, True),
    "without the ranks": (sequence_parallel_sum, False),
    "adding gather": (adding_gather, False),
    "own part": (sequence_log_prob, False),
}


def spread(world):
    """The model on each rank. Two ranks use DDP itself, whose import takes seconds."""
    return DistributedDataParallel(model()) if world == 2 else model()


def average(policy, world):
    """What DDP does at the last backward pass of a step, for the other numbers."""
    for x in policy.parameters():
        if not isinstance(policy, DistributedDataParallel):
            dist.all_reduce(x.grad)
            x.grad /= world


def gradient_of(policy):
    """Weight and bias in a row."""
    return torch.cat([x.grad.flatten() for x in policy.parameters()])


def by_tokens(loss, rank, world):
    """Value and gradient after the micro-batches of one step, whole sequences each."""
    policy = spread(world)
    mine = [x.tensor_split(world)[rank] for x in data()]
    micro_batches = list(
        zip(*(x.tensor_split(MICRO_BATCHES) for x in mine), strict=True)
    )
    masks = [mask for _, _, mask in micro_batches]
    here = sum(mask.sum() for mask in masks).clamp(min=1)
    everywhere = global_count(masks)
    value = torch.zeros((), dtype=torch.float64)
    for k, (features, ref, mask) in enumerate(micro_batches):
        waits = world == 2 and k < MICRO_BATCHES - 1
        with policy.no_sync() if waits else contextlib.nullcontext():
            part = loss(token_kl(policy, features, ref), mask, here, everywhere)
            part.backward()
        value += part.detach()
    dist.all_reduce(value)
    average(policy, world)
    return value / world, gradient_of(policy)


def by_sequences(total, scaled, rank, world):
    """Value and gradient where each rank has a part of the time of all sequences."""
    policy = spread(world)
    features, ref, mask = (x.tensor_split(world, 1)[rank] for x in data())
    value = sequence_kl(policy, features, ref, mask, total)
    (value * world if scaled else value).backward()
    average(policy, world)
    return value.detach(), gradient_of(policy)


def found(rank, world):
    """Value and gradient of each way, by its name."""
    tokens = {
        ("tokens", name): by_tokens(loss, rank, world)
        for name, loss in TOKEN_LOSSES.items()
    }
    sequences = {
        ("sequences", name): by_sequences(*way, rank, world)
        for name, way in SEQUENCE_SUMS.items()
    }
    return tokens | sequences
