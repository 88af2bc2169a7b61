"""What the exact KL of two language models takes: time, and memory over its inputs.

A forward and a backward pass from hidden states and output weights, in float32 on one
thread of a CPU. Time is processor time, of the kernel too: on a busy machine the clock
on the wall says nothing. Memory is the peak of live tensors less the gradients. All
ways take turns, and a ratio is to the usual code of the same round, of which the
median is printed, as a Markdown table. TRL's tiles are made for a GPU. `--small` takes
a sixteenth of the words.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from snippets.exact.categorical import kl_divergence_logits
from snippets.scale.chunked import chunked_kl, chunked_kl_sum
from tests.scale.live import Live
from tests.scale.test_chunked import usual

# Tokens, words, width, and whose gradient is asked.
SETTINGS = [(2048, 128_000, 64, "P"), (2048, 32_000, 512, "Q")]


def checkpointed(
    hidden_p: Tensor, weight_p: Tensor, hidden_q: Tensor, weight_q: Tensor
) -> Tensor:
    """64 tokens at a time, computed again by torch in the backward pass."""

    def some(p: Tensor, q: Tensor) -> Tensor:
        return kl_divergence_logits(p @ weight_p.T, q @ weight_q.T)

    rows = zip(hidden_p.split(64), hidden_q.split(64), strict=True)
    return torch.cat([checkpoint(some, *pair, use_reentrant=False) for pair in rows])


def of_trl(
    hidden_p: Tensor, weight_p: Tensor, hidden_q: Tensor, weight_q: Tensor
) -> Tensor:
    """TRL's, whose gradient flows to the student alone: Q if beta is 0, else P."""
    p, q = (hidden_p, weight_p, None), (hidden_q, weight_q, None)
    if weight_p.requires_grad:
        return ChunkedDivergenceFunction.apply(*p, *q, 1.0)[0]
    return ChunkedDivergenceFunction.apply(*q, *p, 0.0)[0]


def summed(*given: Tensor) -> Tensor:
    """Our mean over tokens, whose gradient is made in the forward pass."""
    tokens = len(given[0])
    return chunked_kl_sum(*given, torch.full((tokens,), 1 / tokens))


WAYS: dict[str, Callable[..., Tensor]] = {
    "usual": lambda *given: usual(*given).mean(),
    "`chunked_kl`": lambda *given: chunked_kl(*given).mean(),
    "`chunked_kl_sum`": summed,
    "torch.utils.checkpoint": lambda *given: checkpointed(*given).mean(),
    "TRL": lambda *given: of_trl(*given).mean(),
}


def seconds(function: Callable[..., Tensor], given: list[Tensor]) -> float:
    """Processor time of a forward and a backward pass."""
    begin = time.process_time()
    function(*given).backward()
    spent = time.process_time() - begin
    for x in given:
        x.grad = None
    return spent


def peak(function: Callable[..., Tensor], given: list[Tensor]) -> int:
    """The most bytes that were alive beside the inputs and the gradients."""
    with Live(given) as live:
        function(*given).backward()
    gradients = sum(x.grad.nbytes for x in given if x.grad is not None)
    for x in given:
        x.grad = None
    return live.most - gradients


def main(words: int, runs: int) -> None:
    """Print the table."""
    torch.manual_seed(0)
    print("| tokens, words, width, gradient | way | seconds | ratio | MB | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for tokens, vocab, width, sides in SETTINGS:
        vocab //= words
        shapes = [(tokens, width), (vocab, width)] * 2
        given = [torch.randn(s) / width**0.25 for s in shapes]
        for k, x in enumerate(given):
            x.requires_grad_("PPQQ"[k] in sides)
        rounds = [
            {way: seconds(f, given) for way, f in WAYS.items()} for _ in range(runs)
        ]
        peaks = {way: peak(function, given) for way, function in WAYS.items()}
        for way, most in peaks.items():
            spent = statistics.median(times[way] for times in rounds)
            ratio = statistics.median(times[way] / times["usual"] for times in rounds)
            print(
                f"| {tokens}, {vocab}, {width}, {sides} | {way} | {spent:.2f} | "
                f"{ratio:.2f} | {most / 1e6:.0f} | {most / peaks['usual']:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    torch.set_num_threads(1)
    arguments = parser.parse_args()
    main(16 if arguments.small else 1, arguments.runs)
