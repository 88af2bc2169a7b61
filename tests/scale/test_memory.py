"""What `step_bytes` counts is what is alive at the peak of the same step."""

import pytest
import torch

from snippets.estimate.estimators import k3
from snippets.exact.categorical import kl_divergence_logits
from snippets.scale.chunked import kl_in_rows, log_prob_and_kl
from snippets.scale.memory import WAYS, step_bytes
from tests.scale.test_chunked import Live

VOCAB = 4096
DIMS = 2  # so that hidden states are small beside the logits


def sampled(log_probs, words):
    return log_probs.gather(-1, words[:, None]).squeeze(-1)


def log_prob_alone(policy, ref, words, chunk):  # noqa: ARG001
    return sampled((policy[0] @ policy[1].T).log_softmax(-1), words), None


def by_k3(policy, ref, words, chunk):
    with torch.no_grad():
        other = log_prob_alone(ref, None, words, chunk)[0]
    own = log_prob_alone(policy, None, words, chunk)[0]
    return own, k3(own, other)


def textbook(policy, ref, words, chunk):  # noqa: ARG001
    with torch.no_grad():
        q = (ref[0] @ ref[1].T).log_softmax(-1)
    p = (policy[0] @ policy[1].T).log_softmax(-1)
    return sampled(p, words), (p.exp() * (p - q)).sum(-1)


def from_logits(kl):
    def step(policy, ref, words, chunk):
        with torch.no_grad():
            q = ref[0] @ ref[1].T
        p = policy[0] @ policy[1].T
        return sampled(p.log_softmax(-1), words), kl(p, q, chunk)

    return step


def chunked(policy, ref, words, chunk):
    return log_prob_and_kl(*policy, *ref, words, chunk=chunk)


STEPS = {
    "no KL": log_prob_alone,
    "k3": by_k3,
    "textbook": textbook,
    "kl_divergence_logits": from_logits(lambda p, q, _: kl_divergence_logits(p, q)),
    "kl_in_rows": from_logits(lambda p, q, chunk: kl_in_rows(p, q, chunk=chunk)),
    "chunked": chunked,
}


def alive(way, tokens, dtype, gradient, chunk, dims=DIMS, head=False):
    """Bytes at the peak of the step, beside what is given and the gradients of it."""
    torch.manual_seed(0)
    shapes = [(tokens, dims), (VOCAB, dims)] * 2
    given = [torch.randn(shape).to(dtype) for shape in shapes]
    policy, ref = given[:2], given[2:]
    policy[0].requires_grad_()
    policy[1].requires_grad_(head)
    words = torch.randint(VOCAB, (tokens,))
    first = STEPS[way]
    with Live([*given, words]) as live:
        if gradient:
            log_prob, kl = first(policy, ref, words, chunk)
            loss = log_prob.sum() if kl is None else log_prob.sum() + kl.sum()
        else:
            with torch.no_grad():
                first(policy, ref, words, chunk)
            second = chunked if way == "chunked" else log_prob_alone
            loss = second(policy, ref, words, chunk)[0].sum()
        loss.backward()
    return live.most - sum(x.grad.nbytes for x in policy if x.grad is not None)


EXACT = [way for way in WAYS if way != "chunked"]


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", EXACT)
@pytest.mark.parametrize(("tokens", "chunk"), [(64, 8), (64, 64), (96, 4)])
def test_the_count_is_what_is_alive_at_the_peak(way, tokens, dtype, gradient, chunk):
    counted = step_bytes(
        tokens=tokens,
        vocab=VOCAB,
        way=way,
        dtype=dtype,
        gradient=gradient,
        chunk=chunk,
    )
    # Some numbers per token are not counted.
    found = alive(way, tokens, dtype, gradient, chunk)
    assert found == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [64, 1024])
def test_the_count_of_chunks_is_not_too_small_and_not_twice_too_large(
    tokens, dtype, gradient
):
    most = step_bytes(
        tokens=tokens,
        vocab=VOCAB,
        way="chunked",
        dtype=dtype,
        gradient=gradient,
        chunk=512,
    )
    assert 0.5 * most < alive("chunked", tokens, dtype, gradient, 512) <= most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_trained_head_adds_up_to_two_float32_copies_to_the_chunks(dtype):
    dims = 256
    frozen = alive("chunked", 64, dtype, True, 256, dims)
    trained = alive("chunked", 64, dtype, True, 256, dims, head=True)
    copy = VOCAB * dims * 4
    assert copy < trained - frozen < 2 * copy


@pytest.mark.parametrize(("way", "tensors"), [("k3", 2), ("textbook", 5)])
def test_the_forward_pass_alone_misses_a_tensor_of_k3(way, tensors):
    shapes = [(64, DIMS), (VOCAB, DIMS)] * 2
    given = [torch.randn(shape, requires_grad=True) for shape in shapes]
    words = torch.randint(VOCAB, (64,))
    with Live([*given, words]) as live:
        kept = STEPS[way](given[:2], given[2:], words, 8)
    assert live.most == pytest.approx(tensors * 64 * VOCAB * 4, rel=0.02)
    del kept


def test_what_makes_no_sense_is_refused_by_name():
    size = {"tokens": 8, "vocab": 8}
    with pytest.raises(ValueError, match="way is 'dense'"):
        step_bytes(**size, way="dense")
    with pytest.raises(ValueError, match=r"dtype is torch\.int64"):
        step_bytes(**size, way="k3", dtype=torch.int64)
    with pytest.raises(ValueError, match="tokens is 0"):
        step_bytes(tokens=0, vocab=8, way="k3")
