"""What the exact KL of two language models takes: time, and memory over its inputs.

A forward and a backward pass from hidden states and output weights, in float32 on a
CPU. Time is processor time and memory the peak of live tensors less the gradients, both
as ratios to the usual code of the same run, where all take turns. Prints a Markdown
table. TRL's tiles are made for a GPU. `--small` takes a sixteenth of the words.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from snippets.exact.categorical import kl_divergence_logits
from snippets.scale.chunked import chunked_kl
from tests.scale.test_chunked import Live, usual

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


WAYS: dict[str, Callable[..., Tensor]] = {
    "usual": usual,
    "chunked_kl": chunked_kl,
    "torch.utils.checkpoint": checkpointed,
    "TRL": of_trl,
}


def measure(function: Callable[..., Tensor], given: list[Tensor]) -> tuple[float, int]:
    """Processor seconds, and bytes at the peak of a second pass that counts them."""
    begin = time.process_time()
    function(*given).mean().backward()
    seconds = time.process_time() - begin
    gradients = sum(x.grad.nbytes for x in given if x.grad is not None)
    for x in given:
        x.grad = None
    with Live(given) as live:
        function(*given).mean().backward()
    for x in given:
        x.grad = None
    return seconds, live.most - gradients


def main(words: int) -> None:
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
        found = {way: measure(function, given) for way, function in WAYS.items()}
        seconds, peak = found["usual"]
        for way, (own, bytes_) in found.items():
            print(
                f"| {tokens}, {vocab}, {width}, {sides} | {way} | {own:.2f} | "
                f"{own / seconds:.2f} | {bytes_ / 1e6:.0f} | {bytes_ / peak:.3f} |"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    torch.set_num_threads(1)
    main(16 if parser.parse_args().small else 1)
