"""How many bytes a KL adds to a training step, by the way that it is computed.

Source: counted, tensor by tensor; the tests count what is alive in the same steps.
"""

import torch

from snippets.foundations.contract import check_positive
from snippets.scale.chunked import ROWS

# Numbers in float32 or wider that the KL of two rows of logits needs beside them.
_BESIDE = 7.25
WAYS = ("no KL", "k3", "textbook", "kl_divergence_logits", "kl_in_rows", "chunked")


def step_bytes(
    *,
    tokens: int,
    vocab: int,
    way: str,
    dtype: torch.dtype = torch.bfloat16,
    gradient: bool = True,
    chunk: int = 256,
) -> int:
    """Bytes at the peak of a step, behind the last hidden states.

    The step computes the log-probability of each sampled token, the KL to a reference
    whose logits have no graph, and the backward pass to the policy's hidden states.
    Without a gradient the KL comes first, on its own. Hidden states, output weights
    and their gradients are left out.

    Args:
        tokens: Rows of logits, padding and prompts included if they have some.
        vocab: How many words there are.
        way: One of `WAYS`: no KL at all, k3 of the sampled tokens, the sum of
            p (log p - log q) with two `log_softmax`, `kl_divergence_logits`,
            `kl_in_rows`, or `log_prob_and_kl` in chunks.
        dtype: What the hidden states and the output weights are in.
        gradient: Whether the KL is in the loss; if not, it is a reward or a metric.
        chunk: Rows at a time for `kl_in_rows`; words at a time for `chunked`.

    Returns:
        Bytes: of `chunked` at most, of the others exactly, but for a few numbers per
        token.

    Raises:
        ValueError: If the way is none of them, the dtype is not floating point, or a
            number is not positive.
    """
    check_positive(tokens=tokens, vocab=vocab, chunk=chunk)
    if way not in WAYS or not dtype.is_floating_point:
        raise ValueError(f"way is {way!r}, of {WAYS}; dtype is {dtype}")
    narrow = dtype.itemsize  # of a number of the logits
    beside = _BESIDE * torch.promote_types(dtype, torch.float32).itemsize
    part = min(chunk / tokens, 1)
    # --8<-- [start:count]
    rows_held = 2 + gradient  # logits of both; with a graph, the policy's log_softmax
    in_rows = rows_held * narrow + part * beside + gradient * (1 - part) * narrow
    per_logit = {
        "no KL": 3 * narrow,  # log_softmax, its slope, and the logits' slope
        "k3": 3 * narrow,
        "textbook": 5 * narrow,
        "kl_divergence_logits": rows_held * narrow + beside,
        "kl_in_rows": max(3 * narrow, in_rows),
    }
    if way == "chunked":
        return round(min(ROWS, tokens) * min(chunk, vocab) * 1.25 * beside)
    return round(tokens * vocab * per_logit[way])
    # --8<-- [end:count]
