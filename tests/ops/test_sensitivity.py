"""The op suite proves that it can fail: one element changed by a few units in its last place turns it red. For mistakes: tests/faults."""

import math
from typing import ClassVar
from unittest import mock

import numpy as np
import pytest

from maxwhisper.engine.ops import portable
from reference.golden.ops import make_op
from reference.numerics import definitions as define
from reference.numerics.bounds import Approx, Roundings
from reference.numerics.dtypes import DTYPES, unit_roundoff
from reference.ops import TABLE, Input, Op
from reference.ops.composed import Composed
from reference.ops.float64_error import apart, may_lose
from reference.ops.fuzz import fuzz, report
from reference.ops.inputs import Example, sized
from reference.ops.layers import Gelu
from reference.ops.suite import Suite


def smallest_change_seen(suite: Suite, example: Example, name: str) -> float:
    """By how many units in its last place the largest element of an input must change for a gate to break; a power of two, inf for none."""
    index = list(TABLE[example.op].inputs).index(name)
    assert suite.check(example).actual.passes
    for ulps in 2.0 ** np.arange(0, 24):
        arrays = example.arrays()
        changed = arrays[index]
        at = np.unravel_index(
            np.argmax(np.where(np.isfinite(changed.astype(float)), np.abs(changed.astype(float)), 0)), changed.shape
        )
        changed[at] = float(changed[at]) + ulps * abs(float(np.spacing(changed[at])))
        if not suite.check(example, arrays).actual.passes:
            return float(ulps)
    return math.inf


@pytest.mark.parametrize(("op", "dtype"), [(name, dtype) for name, op in TABLE.items() for dtype in op.dtypes])
def test_16_units_in_the_last_place_of_one_element_break_a_gate(op: str, dtype: str, ops_suite: Suite) -> None:
    """On the row's own example; on a dense one, where other terms hide it, what it takes is printed."""
    name, dims, kinds = TABLE[op].sensitivity_case
    sizes = sized(op, 64, batch=1, n_head=1, n=4, n_frames=4, n_out=8, n_mlp=16, n_ctx=70, n_vocab=8, n_samples=4800)
    seen = smallest_change_seen(ops_suite, Example(op, dtype, dims, kinds, seed=1), name)
    dense = smallest_change_seen(ops_suite, Example(op, dtype, sizes, seed=1), name)
    print(f"{op} in {dtype}: {seen:.0f} units in the last place of {name} are seen, on dense inputs {dense:.0f}")
    unit = unit_roundoff(DTYPES[TABLE[op].result_dtype or dtype]) / unit_roundoff(DTYPES[dtype])
    assert seen <= 16 * unit


def test_a_new_op_takes_one_row(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Compiled, fuzzed, compared, kept and reported, with nothing but the row; and a mistake in it is found."""
    with mock.patch.dict(TABLE):

        class Twice(Op, row="twice"):
            """2 x. A product with a power of two is exact."""

            inputs: ClassVar = {"x": Input("batch n", ("normal", "integers"))}
            build = staticmethod(lambda ops, x: x + x)
            define = staticmethod(lambda x: 2 * x)
            torch = staticmethod(lambda x: 2 * x)
            sensitivity_case = ("x", {"batch": 1, "n": 3}, {})

            @staticmethod
            def bound(roundings: Roundings, x: np.ndarray) -> Approx:
                return Approx.from_input(2 * x)

        suite = Suite(device, {"twice": Twice})
        for dtype in Twice.dtypes:
            tally = fuzz(suite, "twice", dtype, n_examples=100)
            assert tally.n_examples >= 100
            assert tally.worst_case.ratio <= 1
        x, output = make_op("twice").inputs[0], make_op("twice").output
        assert np.array_equal(output, 2 * x)
        assert report(suite, ["twice"], 20) == 0
        assert "twice" in capsys.readouterr().out
        Twice.bound = staticmethod(lambda roundings, x: Approx.from_input(2.001 * x))  # type: ignore[method-assign]
        with pytest.raises(AssertionError, match=r"print\(\*suite\('\w+'\)\.check\(Example\(op='twice'.*\)\.verdicts"):
            fuzz(suite, "twice", "float32", n_examples=20)


def test_a_row_that_lacks_something_says_what() -> None:
    with pytest.raises(
        TypeError, match=r"^row 'empty' lacks inputs, build, define, torch, bound, sensitivity_case; see "
    ):

        class Empty(Op, row="empty"):
            pass

    with pytest.raises(TypeError, match=r"^row 'whole' lacks build, parts; see "):

        class Whole(Composed, row="whole"):
            inputs: ClassVar = {"x": Input("batch n")}
            sensitivity_case = ("x", {"batch": 1, "n": 3}, {})

    with pytest.raises(TypeError, match=r"^there is a row 'gelu' already, Gelu; give .*Other a name of its own$"):

        class Other(Gelu, row="gelu"):
            pass

    assert not {"empty", "whole"} & TABLE.keys()
    assert TABLE["gelu"] is Gelu


def test_definitions_are_what_bounds_stand_around() -> None:
    """A row's bound carries the value of its definition."""
    for name, op in TABLE.items():
        if issubclass(op, Composed):
            continue
        for dtype in op.dtypes:
            example = Example(name, dtype, sized(name, 7, n_kv=9, n_ctx=9, n_samples=640))
            arrays = [array if array.dtype.kind == "i" else array.astype(float) for array in example.arrays()]
            value = op.bound(op.roundings(dtype), *arrays).value
            assert apart(value, op.define(*arrays), may_lose(op, arrays)) <= 1, name
    assert define.LAYER_NORM_EPSILON == portable.LAYER_NORM_EPSILON
