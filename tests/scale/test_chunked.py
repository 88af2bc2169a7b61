"""`chunked_kl` is the dense KL and its gradient, and never holds the logits."""

import itertools
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from snippets.exact.categorical import kl_divergence_logits
from snippets.scale.chunked import (
    FAR,
    ROWS,
    WORDS,
    chunked_kl,
    chunked_kl_sum,
    kl_in_rows,
    log_prob_and_kl,
    part_of_kl,
)
from tests.scale.live import Live


def heads(tokens=6, vocab=10, dtype=torch.float64, scale=1.0):
    """Hidden states and output weights of two models of different widths."""
    noise = torch.Generator().manual_seed(0)
    shapes = [(tokens, 3), (vocab, 3), (tokens, 4), (vocab, 4)]
    rows = [torch.randn(s, generator=noise, dtype=torch.float64) for s in shapes]
    return [(scale * x).to(dtype) for x in rows]


def dense(hidden_p, weight_p, hidden_q, weight_q):
    return kl_divergence_logits(hidden_p @ weight_p.T, hidden_q @ weight_q.T)


def gradients(value, leaves):
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype)
    weights = weights.reshape(value.shape)
    return torch.autograd.grad((value * weights).sum(), leaves)


@pytest.mark.parametrize("chunk", [1, 3, 5, 10, 99])  # 3 leaves a rest, 99 is one chunk
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
def test_value_and_gradient_are_those_of_the_dense_kl(chunk, scale):
    given = [x.requires_grad_() for x in heads(scale=scale)]
    ours, theirs = chunked_kl(*given, chunk=chunk), dense(*given)
    # Both add ten terms; the chunks add them in another order.
    assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
    for x, y in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        assert_close(x, y, rtol=1e-10, atol=1e-12)  # slopes of up to 100 cancel


def test_more_tokens_than_are_at_hand_at_a_time():
    given = [x.requires_grad_() for x in heads(tokens=2 * ROWS + 3)]
    ours, theirs = chunked_kl(*given, chunk=4), dense(*given)
    assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
    for x, y in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        assert_close(x, y, rtol=1e-10, atol=1e-11)  # weights: sums of 515 slopes


@pytest.mark.parametrize(
    "wanted", [w for w in itertools.product([False, True], repeat=4) if any(w)], ids=str
)
def test_the_gradient_of_any_subset_is_its_derivative(wanted):
    given = [x.requires_grad_(w) for x, w in zip(heads(2, 5), wanted, strict=True)]
    assert torch.autograd.gradcheck(lambda *x: chunked_kl(*x, chunk=2), given)


@pytest.mark.parametrize("chunk", [1, 4, 6, 99])  # 4 leaves a rest, 99 is all tokens
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
def test_the_sum_is_that_of_the_dense_kl_and_so_are_its_five_gradients(chunk, scale):
    weights = torch.linspace(-0.5, 1.5, 6, dtype=torch.float64)
    given = [x.requires_grad_() for x in [*heads(scale=scale), weights]]
    ours, theirs = chunked_kl_sum(*given, chunk=chunk), given[4] @ dense(*given[:4])
    assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    found = torch.autograd.grad(3 * ours, given)
    expected = torch.autograd.grad(3 * theirs, given)
    for x, y in zip(found, expected, strict=True):
        assert_close(x, y, rtol=1e-10, atol=3e-12)  # slopes of up to 500 cancel


@pytest.mark.parametrize(
    "wanted", [w for w in itertools.product([False, True], repeat=4) if any(w)], ids=str
)
def test_the_sum_has_the_gradient_of_any_subset(wanted):
    given = [x.requires_grad_(w) for x, w in zip(heads(2, 5), wanted, strict=True)]
    weights = torch.tensor([0.5, -1.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: chunked_kl_sum(*x, weights), given)
    assert not chunked_kl_sum(*heads(2, 5), weights).requires_grad


def test_the_sum_walks_over_more_words_than_a_tile_has():
    given = [x.requires_grad_() for x in heads(5, 2 * WORDS + 3)]
    weights = torch.ones(5, dtype=torch.float64)
    ours, theirs = chunked_kl_sum(*given, weights, chunk=2), dense(*given).sum()
    assert_close(ours, theirs, rtol=1e-12, atol=0)
    found = torch.autograd.grad(ours, given)
    for x, y in zip(found, torch.autograd.grad(theirs, given), strict=True):
        assert_close(x, y, rtol=1e-10, atol=1e-12)


def test_the_sum_is_zero_for_equal_heads_and_its_gradient_too():
    torch.manual_seed(0)
    hidden, weight, ones = torch.randn(50, 8), torch.randn(300, 8), torch.ones(50)
    given = [x.clone().requires_grad_() for x in (hidden, weight, hidden, weight)]
    total = chunked_kl_sum(*given, ones)
    assert total == 0
    assert all((x == 0).all() for x in torch.autograd.grad(total, given))


@pytest.mark.parametrize("function", [chunked_kl, chunked_kl_sum])
def test_it_may_be_mapped_and_differentiated_in_other_ways(function):
    """Over one of the four alone, over slopes, and by torch.func.grad."""
    given, ones = heads(), torch.ones(6, dtype=torch.float64)
    more = [ones] if function is chunked_kl_sum else []

    def ours(*x):
        return function(*x, *more, chunk=3).sum()

    for k in range(4):
        ways = torch.stack([given[k], 2 * given[k]])
        axes = tuple(0 if j == k else None for j in range(4))
        rows = [*given[:k], ways, *given[k + 1 :]]
        found = torch.func.vmap(torch.func.grad(ours, argnums=k), axes)(*rows)
        for row, x in zip(found, ways, strict=True):
            leaf = x.clone().requires_grad_()
            here = [*given[:k], leaf, *given[k + 1 :]]
            (expected,) = torch.autograd.grad(dense(*here).sum(), leaf)
            assert_close(row, expected, rtol=1e-10, atol=1e-12)
    if function is chunked_kl:
        wide = torch.func.jacrev(lambda x: chunked_kl(x, *given[1:], chunk=3))(given[0])
        assert_close(wide.sum(0), torch.func.grad(ours)(*given))


@pytest.mark.parametrize("gap", [30.0, FAR, 60.0, 90.0, 200.0, 800.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_word_that_has_all_of_q_and_next_to_nothing_of_p(gap, dtype):
    """exp(gap) overflows float32 from 89 on, and exp(-gap) is 0 from 104 on."""
    one = torch.ones(1, 1, dtype=dtype)
    p = torch.tensor([[0.0], [-gap], [-1.0]], dtype=dtype).requires_grad_()
    q = torch.tensor([[-2.0], [0.0], [-gap]], dtype=dtype).requires_grad_()
    wide = [x.double().detach().requires_grad_() for x in (p, q)]
    for chunk in (1, 2, 3):
        ours = chunked_kl(one, p, one, q, chunk=chunk)
        theirs = kl_divergence_logits(wide[0].T, wide[1].T)
        assert_close(ours.double(), theirs, rtol=1e-6, atol=0)  # of float32
        found = torch.autograd.grad(ours.sum(), [p, q])
        expected = torch.autograd.grad(theirs.sum(), wide)
        for x, y in zip(found, expected, strict=True):
            assert_close(x.double(), y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [3, 99])
def test_a_part_has_the_three_numbers_of_its_words_and_their_gradients(chunk):
    given = [x.requires_grad_() for x in heads()]
    p, q = given[0] @ given[1].T, given[2] @ given[3].T
    ours = torch.stack(part_of_kl(*given, chunk=chunk))
    theirs = torch.stack([dense(*given), p.logsumexp(-1), q.logsumexp(-1)])
    assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    for x, y in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        assert_close(x, y, rtol=1e-10, atol=1e-13)


def test_it_is_zero_for_equal_heads_and_never_negative_for_near_ones():
    for seed in range(20):
        torch.manual_seed(seed)
        hidden, weight = torch.randn(50, 8), torch.randn(300, 8)
        assert (chunked_kl(hidden, weight, hidden, weight, chunk=64) == 0).all()
        near = weight * (1 + 1e-6 * torch.randn(300, 8))
        assert (chunked_kl(hidden, weight, hidden, near, chunk=64) >= 0).all()


@pytest.mark.parametrize("function", [chunked_kl, chunked_kl_sum])
def test_half_precision_is_accumulated_in_float32(function):
    given = heads(600, 50, dtype=torch.bfloat16)  # more than one tile of tokens
    wide = [x.float().requires_grad_() for x in given]
    half = [x.requires_grad_() for x in given]
    more = [torch.ones(600)] if function is chunked_kl_sum else []
    ours, theirs = (
        function(*x, *[y.to(x[0].dtype) for y in more], chunk=16) for x in (half, wide)
    )
    assert ours.dtype == torch.bfloat16
    assert_close(ours, theirs.bfloat16())
    found = torch.autograd.grad(ours.sum(), half)
    for x, y in zip(found, torch.autograd.grad(theirs.sum(), wide), strict=True):
        assert x.dtype == torch.bfloat16
        assert_close(x, y.bfloat16())


def test_there_is_no_second_derivative():
    given = [x.requires_grad_() for x in heads()]
    (slope,) = torch.autograd.grad(
        chunked_kl(*given, chunk=3).sum(), given[0], create_graph=True
    )
    with pytest.raises(RuntimeError, match="does not require grad"):
        slope.sum().backward()


@pytest.mark.parametrize("left_out", [0.0, torch.nan])
def test_a_token_without_weight_adds_nothing_but_must_be_finite(left_out):
    given = heads()
    given[0][-1] = left_out
    given = [x.requires_grad_() for x in given]
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]).double()
    total = chunked_kl_sum(*given, weights)
    if left_out == 0:
        assert_close(total, dense(*given)[:-1].sum(), rtol=1e-12, atol=0)
        assert (torch.autograd.grad(total, given[0])[0][-1] == 0).all()
    else:
        assert total.isnan()


def test_rows_that_are_left_out_are_not_read():
    given = heads()
    mask = torch.tensor([True, True, False, True, False, False])
    given[0][~mask], given[2][~mask] = torch.nan, torch.inf
    leaves = [x.requires_grad_() for x in given]
    hidden_p, weight_p, hidden_q, weight_q = leaves
    kept = chunked_kl(hidden_p[mask], weight_p, hidden_q[mask], weight_q, chunk=3)
    kept.sum().backward()
    assert all(x.grad.isfinite().all() for x in leaves)
    assert (hidden_p.grad[~mask] == 0).all()


@pytest.mark.parametrize("chunk", [3, 99])
def test_the_log_prob_beside_it_is_that_of_the_dense_head(chunk):
    given = [x.requires_grad_() for x in heads()]
    tokens = torch.tensor([0, 9, 3, 3, 5, 1])
    ours = log_prob_and_kl(*given, tokens, chunk=chunk)
    logits = given[0] @ given[1].T
    log_probs = logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    theirs = (log_probs, dense(*given))
    assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    found = gradients(2 * ours[0] - 3 * ours[1], given)
    expected = gradients(2 * theirs[0] - 3 * theirs[1], given)
    for x, y in zip(found, expected, strict=True):
        assert_close(x, y, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("shape", [(10,), (1, 10), (7, 10), (2, 4, 10)])
def test_rows_have_the_value_and_gradient_of_the_whole(shape):
    torch.manual_seed(0)
    p, q = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in "PQ")
    ours, theirs = kl_in_rows(p, q, chunk=3), kl_divergence_logits(p, q)
    assert_close(ours, theirs, rtol=0, atol=0)
    for x, y in zip(gradients(ours, [p, q]), gradients(theirs, [p, q]), strict=True):
        assert_close(x, y, rtol=0, atol=0)


def test_shapes_that_do_not_fit_are_refused_by_name():
    hidden_p, weight_p, hidden_q, weight_q = heads()
    with pytest.raises(ValueError, match="weight_p has 10 words, weight_q 9"):
        chunked_kl(hidden_p, weight_p, hidden_q, weight_q[:9], chunk=3)
    with pytest.raises(ValueError, match="hidden_q"):
        chunked_kl(hidden_p, weight_p, hidden_q[:1], weight_q, chunk=3)
    with pytest.raises(ValueError, match="chunk is 0"):
        chunked_kl(hidden_p, weight_p, hidden_q, weight_q, chunk=0)
    with pytest.raises(ValueError, match=r"token_weights is \[5\]"):
        chunked_kl_sum(*heads(), torch.ones(5))
    with pytest.raises(ValueError, match="tokens"):
        log_prob_and_kl(*heads(), torch.zeros(1, dtype=torch.int64), chunk=3)


def most(function, given):
    """Live bytes at the peak of a forward and a backward pass, less the gradients."""
    with Live(given) as live:
        function(*given).mean().backward()
    results = sum(x.grad.nbytes for x in given if x.grad is not None)
    for x in given:
        x.grad = None
    return live.most - results


def usual(hidden_p, weight_p, hidden_q, weight_q):
    """The textbook's sum over a whole vocabulary."""
    log_p = (hidden_p @ weight_p.T).log_softmax(-1)
    log_q = (hidden_q @ weight_q.T).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("sides", [(True, False), (True, True)], ids=["P", "PQ"])
def test_the_peak_is_a_few_chunks_and_not_a_few_vocabularies(sides):
    tokens, vocab, chunk = 64, 8192, 64
    given = heads(tokens, vocab, torch.float32)
    for k, x in enumerate(given):
        x.requires_grad_(sides[k // 2])
    whole, few = tokens * vocab * 4, tokens * chunk * 4
    naive = most(usual, given)
    ours = most(lambda *x: chunked_kl(*x, chunk=chunk), given)
    # Naive: two rows of log-softmax and their products, and the same again for slopes.
    assert naive > (4.9 if sides == (True, False) else 6.8) * whole
    # Ours: up to seven tensors of a chunk, and three numbers per token and chunk.
    assert ours < 7 * few + 3 * 3 * whole / chunk
    assert ours < 0.04 * naive
    # The sum: the logits of two tokens at a time, and once more the gradients.
    weights = torch.full((tokens,), 1 / tokens)
    total = most(lambda *x: chunked_kl_sum(*x, weights, chunk=2), given)
    results = sum(x.nbytes for x in given if x.requires_grad)
    assert total < max(4 * 2 * vocab * 4, results) + 2**16 < 0.1 * naive


def test_the_page_has_the_table_that_was_measured():
    root = Path(__file__).parents[2]
    measured = (root / "tests/bench/scale.md").read_text("utf-8").split("\n\n")
    (table,) = [part for part in measured if part.startswith("| tokens, words")]
    assert len(table.splitlines()) == 12
    assert f"\n\n{table}\n\n" in (root / "docs/scale/chunked.md").read_text("utf-8")
