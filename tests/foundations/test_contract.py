"""Each check refuses what its name says, names it, and reads no value."""

import pytest
import torch
from torch import nan, tensor
from torch.testing import assert_close

from snippets.foundations.contract import (
    check_floating,
    check_mask,
    check_positive,
    check_rows,
    check_tensors,
    nan_outside,
    widen,
)

ROWS = torch.zeros(4, 3)


def test_equal_shapes_pass():
    check_tensors(1, new_logits=ROWS, ref_logits=torch.ones(4, 3))
    check_tensors(rewards=tensor(1.0))


@pytest.mark.parametrize("shape", [(4, 1), (1, 3), (3,), (4, 3, 1), (4, 1, 3), ()])
def test_what_would_broadcast_is_refused_by_name(shape):
    message = rf"ref_logits is \[{', '.join(map(str, shape))}\]"
    with pytest.raises(ValueError, match=message):
        check_tensors(0, new_logits=ROWS, ref_logits=torch.zeros(shape))


def test_missing_axes_of_an_event_are_refused_by_name():
    with pytest.raises(ValueError, match=r"logits is \[\], and needs 1 axes or more"):
        check_tensors(1, logits=tensor(1.0))
    with pytest.raises(ValueError, match=r"logits is \[3\], and needs 2"):
        check_tensors(2, logits=torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_integers_are_refused_by_name(dtype):
    with pytest.raises(ValueError, match="rewards must be floating point, not torch"):
        check_floating(logits=ROWS, rewards=torch.zeros(2, dtype=dtype))
    with pytest.raises(ValueError, match="rewards must be floating point"):
        check_tensors(logits=torch.zeros(2), rewards=torch.zeros(2, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_dtype_passes(dtype):
    check_floating(x=torch.zeros(2, dtype=dtype))


def test_a_mask_is_boolean_and_of_the_shape_of_its_tensors():
    mask = torch.ones(4, 3).bool()
    check_mask(mask, rewards=ROWS)
    with pytest.raises(ValueError, match=r"mask must be boolean, not torch.float32"):
        check_mask(ROWS, rewards=ROWS)
    with pytest.raises(ValueError, match="mask must be boolean"):
        check_mask(tensor(True))
    for shape in ((4, 1), (3,), (4, 3, 1)):
        with pytest.raises(ValueError, match=r"mask is \[4, 3\], rewards is"):
            check_mask(mask, rewards=torch.zeros(shape))
    with pytest.raises(ValueError, match="rewards must be floating point"):
        check_mask(mask, rewards=ROWS.long())


@pytest.mark.parametrize("number", [0, -0.5, nan, -3])
def test_a_number_that_is_not_positive_is_refused_by_name(number):
    with pytest.raises(ValueError, match=r"beta is .*, and must be positive"):
        check_positive(clip=0.2, beta=number)


def test_the_value_of_a_tensor_is_not_looked_at():
    check_positive(beta=tensor(-1.0))
    check_positive(beta=torch.empty((), device="meta"))
    check_tensors(x=torch.empty(2, device="meta"), y=torch.empty(2, device="meta"))
    check_mask(torch.empty(2, device="meta", dtype=torch.bool))


@pytest.mark.parametrize(
    ("given", "common", "wide"),
    [
        ([torch.float16], torch.float16, torch.float32),
        ([torch.bfloat16], torch.bfloat16, torch.float32),
        ([torch.float16, torch.bfloat16], torch.float32, torch.float32),
        ([torch.bfloat16, torch.float32], torch.float32, torch.float32),
        ([torch.bfloat16, torch.float64], torch.float64, torch.float64),
    ],
)
def test_half_precision_is_widened_and_the_rest_kept(given, common, wide):
    dtype, tensors = widen(*(torch.zeros(2, dtype=x) for x in given))
    assert dtype == common
    assert {x.dtype for x in tensors} == {wide}


def test_a_row_becomes_nan_where_one_condition_fails():
    values = tensor([1.0, 2.0, 3.0])
    yes = tensor([True, True, True])
    found = nan_outside(values, yes, tensor([True, False, True]), yes)
    assert_close(found, tensor([1.0, nan, 3.0]), equal_nan=True)


def test_the_rows_beside_a_nan_keep_their_gradient():
    x = tensor([0.5, 2.0], requires_grad=True)
    nan_outside(x.square(), x < 1).nansum().backward()
    assert_close(x.grad, tensor([1.0, 0.0]))


@pytest.mark.parametrize("shape", [(2, 1), (3,), (1,), (), (2, 3)])
def test_one_number_per_sequence_is_what_a_mask_asks_for(shape):
    mask = torch.ones(2, 3, dtype=torch.bool)
    check_rows(mask, scores=torch.zeros(2))
    with pytest.raises(ValueError, match=r"^scores is"):
        check_rows(mask, scores=torch.zeros(shape))


def test_integers_are_no_numbers_of_sequences():
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^scores must be floating point"):
        check_rows(mask, scores=torch.zeros(2).long())
