"""Rows that other models need: PyTorch stays inside both bounds, and small changes do not."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from reference.numerics.compare import compare
from reference.numerics.dtypes import DTYPES, unit_roundoff
from reference.ops import OTHERS
from reference.ops.float64_error import apart, may_lose
from reference.ops.inputs import Example, examples, large_example, sized
from reference.ops.judge import expect
from reference.ops.torch_counterparts import run_torch

ROWS = [(name, dtype) for name, op in OTHERS.items() for dtype in op.dtypes]


def check(example: Example) -> None:
    op, arrays = OTHERS[example.op], example.arrays()
    expected = expect(op, example.dtype, arrays)
    # In half precision PyTorch rounds between an op's steps; the rows promise float32 inside.
    wide = [array.astype(np.float32) if array.dtype.kind != "i" else array for array in arrays]
    result = run_torch(op, wide).astype(DTYPES[example.dtype])
    verdict = compare(result, expected, DTYPES[example.dtype])
    assert verdict.passes, f"{example}: {verdict}"


@pytest.mark.parametrize(("op", "dtype"), ROWS)
def test_pytorch_is_inside_both_bounds(op: str, dtype: str) -> None:
    @given(examples(op, dtype))
    @settings(max_examples=100, derandomize=True, database=None)
    def check_drawn(example: Example) -> None:
        check(example)

    check_drawn()
    if (large := large_example(op, dtype)) is not None:
        check(large)


@pytest.mark.parametrize(("op", "dtype"), ROWS)
def test_a_change_of_one_element_is_noticed(op: str, dtype: str) -> None:
    row = OTHERS[op]
    _, dims, kinds = row.sensitivity_case
    example = Example(op, dtype, dims, kinds, seed=1)
    expected = expect(row, dtype, example.arrays())
    result = expected.value.astype(DTYPES[dtype])
    index = np.unravel_index(np.abs(expected.value).argmax(), result.shape)
    result[index] *= 1 + 32 * unit_roundoff(DTYPES[dtype])
    assert not compare(result, expected, DTYPES[dtype]).passes


@pytest.mark.parametrize("op", OTHERS)
def test_the_value_of_a_bound_is_that_of_the_definition(op: str) -> None:
    row = OTHERS[op]
    arrays = [array.astype(float) for array in Example(op, "float32", sized(op, 7)).arrays()]
    value = expect(row, "float32", arrays).value
    assert apart(value, row.define(*arrays), may_lose(row, arrays)) <= 1


def test_convolutions_of_any_kind_are_pytorchs() -> None:
    rng = np.random.default_rng(0)
    for stride, padding, dilation, groups in ((1, 0, 1, 1), (2, 1, 1, 1), (3, 2, 2, 1), (1, 1, 1, 3), (2, 4, 3, 6)):
        x, weight, bias = (
            rng.standard_normal((2, 6, 17)),
            rng.standard_normal((12, 6 // groups, 3)),
            rng.standard_normal(12),
        )
        sizes: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        convolve: Any = F.conv1d  # whose overloads mypy can't match
        expected = convolve(*map(torch.from_numpy, (x, weight, bias)), **sizes).numpy()
        ours = expect(OTHERS["conv1d"], "float32", [x, weight, bias], attributes=sizes)
        np.testing.assert_allclose(ours.value, expected, atol=1e-13)  # float64 sums of 19 terms, each below 10
        assert compare(expected.astype(np.float32), ours, DTYPES["float32"]).passes
