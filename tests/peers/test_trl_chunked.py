"""What TRL's divergence in tiles returns where ours is right, at the pinned version."""

import pytest
import torch
from torch import inf
from torch.testing import assert_close

from snippets.scale.chunked import chunked_kl

pytest.importorskip("trl", minversion="1.16")
from trl.kernels.chunked_divergence import (
    TOKEN_CHUNK_SIZE,
    VOCAB_CHUNK_SIZE,
    ChunkedDivergenceFunction,
)

FORWARD, REVERSE = 0.0, 1.0  # their beta


def heads(words=50):
    """Hidden states and output weights of a student and a teacher."""
    noise = torch.Generator().manual_seed(0)
    shapes = [(9, 8), (words, 8), (9, 6), (words, 6)]
    return [torch.randn(shape, generator=noise) for shape in shapes]


def theirs(student, teacher, beta, bias=None):
    return ChunkedDivergenceFunction.apply(*student, bias, *teacher, bias, beta)[0]


@pytest.mark.parametrize("beta", [FORWARD, REVERSE])
def test_value_and_gradient_of_the_student_agree(beta):
    given = [x.requires_grad_() for x in heads()]
    student, teacher = given[:2], given[2:]
    pairs = (teacher, student) if beta == FORWARD else (student, teacher)
    ours = chunked_kl(*pairs[0], *pairs[1], chunk=16)
    other = theirs(student, teacher, beta)
    assert_close(other, ours, rtol=1e-5, atol=1e-6)  # both in float32
    slopes = torch.autograd.grad(other.sum(), student)
    assert_close(slopes, torch.autograd.grad(ours.sum(), student), rtol=1e-4, atol=1e-5)


def test_its_tiles_are_made_for_a_gpu():
    """Two tiles of float32 are a gigabyte, however few words there are."""
    assert TOKEN_CHUNK_SIZE * VOCAB_CHUNK_SIZE * 4 * 2 == 2**30


@pytest.mark.parametrize("beta", [FORWARD, REVERSE])
def test_words_that_both_mask_make_it_nan_and_left_out_they_make_nothing(beta):
    student, teacher = heads()[:2], heads()[2:]
    padding = torch.zeros(50)
    padding[40:] = -inf
    assert theirs(student, teacher, beta, padding).isnan().all()
    short = [[hidden, weight[:40]] for hidden, weight in (student, teacher)]
    assert_close(theirs(*short, beta), theirs(*short, beta, padding[:40]))


def test_it_goes_below_zero_for_models_that_are_nearly_equal_and_ours_does_not():
    torch.manual_seed(0)
    hidden, weight = torch.randn(200, 16) / 4, torch.randn(1000, 16) / 4
    near = weight * (1 + 1e-6 * torch.randn(1000, 16))
    other = theirs([hidden, weight], [hidden, near], REVERSE)
    ours = chunked_kl(hidden, weight, hidden, near, chunk=256)
    exact = chunked_kl(*(x.double() for x in (hidden, weight, hidden, near)))
    assert -1e-6 < other.min() < -1e-7
    assert 0.1 < (other < 0).float().mean() < 0.3
    assert exact.max() < 1e-11
    assert (ours >= 0).all()
    assert ours.max() < 1e-11
