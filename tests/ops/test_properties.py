"""Properties that hold for all inputs, exactly or within the bounds of both results."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from reference.numerics.dtypes import DTYPES
from reference.ops import TABLE
from reference.ops.buffers import from_max, to_max
from reference.ops.inputs import Example, examples
from reference.ops.judge import expect
from reference.ops.suite import Suite

DTYPE_NAMES = list(DTYPES)
BATCHED = [
    (name, dtype)
    for name, op in TABLE.items()
    for dtype in op.dtypes
    if "batch" in next(iter(op.inputs.values())).shape
]


def holds(op: str, dtype: str, **pinned: int | str) -> Callable[[Callable[[Example], None]], None]:
    """Make a decorator that runs a check on drawn examples, the same ones in each run."""

    def run(check: Callable[[Example], None]) -> None:
        settings(max_examples=40, derandomize=True, database=None)(given(examples(op, dtype, **pinned))(check))()

    return run


def within_twice_the_bound(example: Example, a: np.ndarray, b: np.ndarray, part: Any = ...) -> bool:
    """Return whether two results differ by at most twice the bound, once for each result."""
    limit = expect(TABLE[example.op], example.dtype, example.arrays()).worst[part]
    return bool((np.abs(a.astype(float) - b.astype(float)) <= 2 * limit).all())


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_softmax_sums_to_one(dtype: str, ops_suite: Suite) -> None:
    @holds("softmax", dtype)
    def check(example: Example) -> None:
        (x,) = example.arrays()
        rows = ops_suite.run("softmax", dtype, [x]).astype(float).sum(-1)
        limit = expect(TABLE["softmax"], dtype, [x]).worst.sum(-1)
        any_finite = np.isfinite(x.astype(float)).any(-1)
        assert (np.abs(rows - 1)[any_finite] <= limit[any_finite]).all()
        assert np.isnan(rows[~any_finite]).all()


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_softmax_ignores_an_exact_shift(dtype: str, ops_suite: Suite) -> None:
    @holds("softmax", dtype, x="integers")
    def check(example: Example) -> None:
        (x,) = example.arrays()
        x = np.clip(x.astype(float), -100, 100)
        shifted = (x + 28).astype(DTYPES[dtype])
        assert np.array_equal(
            ops_suite.run("softmax", dtype, [x.astype(DTYPES[dtype])]), ops_suite.run("softmax", dtype, [shifted])
        )


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_later_positions_do_not_affect_a_position(dtype: str, ops_suite: Suite) -> None:
    """The results are equal bit for bit."""

    @holds("masked_attention", dtype)
    def check(example: Example) -> None:
        q, k, v, mask = example.arrays()
        n, n_kv = mask.shape
        visible = n_kv - n + 1  # keys that the first query attends to
        before = ops_suite.run("masked_attention", dtype, [q, k, v, mask])[:, :, 0]
        k, v = k.copy(), v.copy()
        k[:, :, visible:], v[:, :, visible:] = 5, -7
        assert np.array_equal(ops_suite.run("masked_attention", dtype, [q, k, v, mask])[:, :, 0], before)


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_a_step_equals_the_last_row_of_a_prefill(dtype: str, ops_suite: Suite) -> None:
    @holds("masked_attention", dtype)
    def check(example: Example) -> None:
        q, k, v, mask = example.arrays()
        prefill = ops_suite.run("masked_attention", dtype, [q, k, v, mask])[:, :, -1:]
        step = ops_suite.run("masked_attention", dtype, [q[:, :, -1:], k, v, mask[-1:]])
        assert within_twice_the_bound(example, prefill, step, np.s_[:, :, -1:])


ATTENTION = [("attention", "float32"), *(("attention_by_steps", dtype) for dtype in DTYPE_NAMES)]


@pytest.mark.parametrize(("op", "dtype"), ATTENTION)
def test_attention_does_not_depend_on_the_order_of_keys(op: str, dtype: str, ops_suite: Suite) -> None:
    @holds(op, dtype)
    def check(example: Example) -> None:
        q, k, v = example.arrays()
        order = np.random.default_rng(example.seed).permutation(k.shape[2])
        unpermuted = ops_suite.run(op, dtype, [q, k, v])
        assert within_twice_the_bound(
            example, unpermuted, ops_suite.run(op, dtype, [q, k[:, :, order], v[:, :, order]])
        )


@pytest.mark.parametrize(("op", "dtype"), ATTENTION)
def test_attention_over_one_key_returns_its_value(op: str, dtype: str, ops_suite: Suite) -> None:
    """The results are equal bit for bit."""

    @holds(op, dtype, n_kv=1, n=1)
    def check(example: Example) -> None:
        q, k, v = example.arrays()
        assert np.array_equal(ops_suite.run(op, dtype, [q, k, v]), np.broadcast_to(v, q.shape))


@pytest.mark.parametrize("op", ["softmax", "masked_attention"])
def test_a_fully_masked_row_is_nan(op: str, ops_suite: Suite) -> None:
    """The ops' docstrings say so. The other rows do not change."""
    example = Example(op, "float32", {"batch": 1, "n_head": 2, "n": 3, "n_kv": 5, "head_dim": 4})
    arrays = example.arrays()
    before = ops_suite.run(op, "float32", arrays)
    masked_row = np.s_[..., 1, :]
    arrays[-1][masked_row] = -np.inf
    after = ops_suite.run(op, "float32", arrays)
    assert np.isnan(after[masked_row]).all()
    assert np.array_equal(after[..., [0, 2], :], before[..., [0, 2], :])


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_only_the_new_rows_of_a_cache_are_written(dtype: str, ops_suite: Suite) -> None:
    """They are written in place and are equal bit for bit."""

    @holds("cached", dtype)
    def check(example: Example) -> None:
        cache, new, slots, mask = example.arrays()
        n, n_kv = mask.shape
        buffers = [to_max(array.copy(), ops_suite.device) for array in (cache, new, slots, mask)]
        ops_suite.execute("cached", dtype, buffers)
        for i, position in enumerate(range(n_kv - n, n_kv)):
            cache[slots[:, 0, position], :, position] = new[:, :, i]
        assert np.array_equal(from_max(buffers[0]), cache)


@pytest.mark.parametrize(("op", "dtype"), BATCHED)
def test_elements_of_a_batch_are_independent(op: str, dtype: str, ops_suite: Suite) -> None:
    """The results are equal bit for bit."""

    @holds(op, dtype, batch=3)
    def check(example: Example) -> None:
        arrays = example.arrays()
        before = ops_suite.run(op, dtype, arrays)
        for array, spec in zip(arrays, TABLE[op].inputs.values(), strict=True):
            if spec.shape.startswith("batch"):
                array[[0, 2]] = array[[2, 0]]
            if spec.values == ("slots",):  # page numbers; pages 0 and 2 were swapped, too
                array[:] = 2 - array
        assert np.array_equal(ops_suite.run(op, dtype, arrays)[1], before[1], equal_nan=True)


@pytest.mark.parametrize("exponent", [-3, 4])
def test_layer_norm_of_a_multiple_is_layer_norm_with_a_smaller_epsilon(exponent: int, ops_suite: Suite) -> None:
    """LN(c x, ε) = LN(x, ε / c²). If c is a power of two, all terms except ε scale exactly."""

    @holds("layer_norm", "float32", x="near_epsilon")
    def check(example: Example) -> None:
        x, weight, bias = example.arrays()
        c = 2.0**exponent
        exact = [array.astype(float) for array in (x, weight, bias)]
        centred = exact[0] - exact[0].mean(-1, keepdims=True)
        truth = centred / np.sqrt(exact[0].var(-1, keepdims=True) + 1e-5 / c**2) * exact[1] + exact[2]
        scaled = (x * np.float32(c)).astype(np.float32)
        limit = (
            TABLE["layer_norm"].bound(TABLE["layer_norm"].roundings("float32"), scaled.astype(float), *exact[1:]).worst
        )
        assert (np.abs(ops_suite.run("layer_norm", "float32", [scaled, weight, bias]) - truth) <= limit).all()
