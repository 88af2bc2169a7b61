"""One of several processes that share a vocabulary: `python -m tests.scale.process`.

It is given its rank, how many there are, and a folder, where it leaves what it found.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable

from snippets.exact.categorical import kl_divergence_logits
from snippets.scale.vocab_parallel import (
    vocab_parallel_chunked_kl,
    vocab_parallel_kl,
)
from tests.scale import ranks
from tests.scale.live import Live

WORDS = 11  # so that 2 and 4 processes have parts of different sizes
CHUNK, LARGE = 64, (32, 8192)  # tokens and words of a case that is measured


def cases():
    """Logits of P and Q, `(5, WORDS)`, by name."""
    noise = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 5, WORDS, generator=noise, dtype=torch.float64)
    shift = torch.tensor([500.0, -500.0, 0.0, 500.0, -500.0]).double()[:, None]
    masked = torch.zeros(WORDS).double()
    masked[-3:] = -torch.inf  # the whole part of the last of four processes
    return {
        "ordinary": (p, q),
        "shifted": (p + shift, q - shift),
        "equal": (p, p),
        "masked in both": (p + masked, q + masked),
        "masked in P": (p + masked, q),
        "far": (5 * p, 5 * q),
    }


def heads(case, tokens=5, vocab=WORDS):
    """Hidden states and output weights of P and of Q, by name of the case."""
    noise = torch.Generator().manual_seed(0)
    shapes = [(tokens, 3), (vocab, 3), (tokens, 4), (vocab, 4)]
    four = [torch.randn(s, generator=noise, dtype=torch.float64) for s in shapes]
    if case == "equal":
        return four[:2] * 2
    return [x * {"ordinary": 1, "far": 6}[case] for x in four]


def in_chunks(rank, world, case):
    """The KL from hidden states and a part of the weights, and its four slopes."""
    given = heads(case)
    for k in (1, 3):
        given[k] = given[k].tensor_split(world)[rank]
    given = [x.clone().requires_grad_() for x in given]
    kl = vocab_parallel_chunked_kl(*given, chunk=2)
    (kl @ torch.linspace(0.5, 1.5, len(kl)).double()).backward()
    return kl.detach(), *(x.grad for x in given)


def live_bytes(rank, world):
    """Of a forward and a backward pass, less the slopes."""
    hidden_p, weight_p, hidden_q, weight_q = heads("ordinary", *LARGE)
    parts = [x.tensor_split(world)[rank].clone() for x in (weight_p, weight_q)]
    given = [hidden_p, parts[0], hidden_q, parts[1]]
    for x in given:
        x.requires_grad_()
    with Live(given) as live:
        vocab_parallel_chunked_kl(*given, chunk=CHUNK).mean().backward()
    return live.most - sum(x.grad.nbytes for x in given)


def with_gather(gather):
    """The KL of `vocab_parallel`, with another gather."""

    def function(p, q):
        own = torch.stack(
            [p.logsumexp(-1), q.logsumexp(-1), kl_divergence_logits(p, q)]
        )
        of_p, of_q, kls = torch.stack(gather(own), -1)
        return kl_divergence_logits(of_p, of_q) + (of_p.softmax(-1) * kls).sum(-1)

    return function


def plain(own):
    """What `torch.distributed` has: autograd does not see it."""
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    return parts


def own_alone(own):
    """The same, with this process's own numbers put back in, for autograd."""
    parts = plain(own.detach())
    parts[dist.get_rank()] = own
    return parts


def sum_within(p, q):
    """The masses gathered, the KLs within added up by a sum that autograd misses."""
    masses = torch.stack([p.logsumexp(-1), q.logsumexp(-1)])
    of_p, of_q = torch.stack(own_alone(masses), -1)
    within = of_p.softmax(-1)[..., dist.get_rank()] * kl_divergence_logits(p, q)
    total = within.detach().clone()
    dist.all_reduce(total)
    within = within + (total - within).detach()
    return kl_divergence_logits(of_p, of_q) + within


WAYS = {
    "ours": vocab_parallel_kl,
    "adds all slopes": with_gather(lambda own: differentiable.all_gather(own)),
    "plain": with_gather(plain),
    "sum within": sum_within,
}


def main(rank, world, folder):
    store = dist.FileStore(str(folder / f"store{world}"), world)
    dist.init_process_group("gloo", rank=rank, world_size=world, store=store)
    found = ranks.found(rank, world)
    for way, function in WAYS.items():
        for case, pair in cases().items():
            if way != "ours" and case != "ordinary":
                continue
            p, q = (
                x.tensor_split(world, -1)[rank].clone().requires_grad_() for x in pair
            )
            kl = function(p, q)
            if kl.requires_grad:
                kl.sum().backward()
            found[way, case] = (kl.detach(), p.grad, q.grad)
    for case in ("ordinary", "far", "equal"):
        found["in chunks", case] = in_chunks(rank, world, case)
    found["bytes"] = live_bytes(rank, world)
    torch.save(found, folder / f"{world}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
