"""The op suite can fail: changing one input element by a few ulps breaks a bound.

For planted mistakes, see tests/faults.
"""

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


def smallest_change_noticed(suite: Suite, example: Example, name: str) -> float:
    """Return by how many ulps an input's largest element must change until a bound breaks.

    Returns:
        A power of two, or inf if no change up to 2^23 ulps breaks a bound.
    """
    index = list(TABLE[example.op].inputs).index(name)
    assert suite.check(example).actual.passes
    for ulps in 2.0 ** np.arange(0, 24):
        arrays = example.arrays()
        changed = arrays[index]
        largest = np.unravel_index(
            np.argmax(np.where(np.isfinite(changed.astype(float)), np.abs(changed.astype(float)), 0)), changed.shape
        )
        changed[largest] = float(changed[largest]) + ulps * abs(float(np.spacing(changed[largest])))
        if not suite.check(example, arrays).actual.passes:
            return float(ulps)
    return math.inf


@pytest.mark.parametrize(("op", "dtype"), [(name, dtype) for name, op in TABLE.items() for dtype in op.dtypes])
def test_16_ulps_of_one_element_break_a_bound(op: str, dtype: str, ops_suite: Suite) -> None:
    """Tested on the row's `sensitivity_case`.

    On a dense example, where other terms hide the change, the number of ulps is only printed.
    """
    name, dims, kinds = TABLE[op].sensitivity_case
    sizes = sized(op, 64, batch=1, n_head=1, n=4, n_frames=4, n_out=8, n_mlp=16, n_ctx=70, n_vocab=8, n_samples=4800)
    smallest = smallest_change_noticed(ops_suite, Example(op, dtype, dims, kinds, seed=1), name)
    dense = smallest_change_noticed(ops_suite, Example(op, dtype, sizes, seed=1), name)
    print(f"{op} in {dtype}: {smallest:.0f} ulps of {name} break a bound, on dense inputs {dense:.0f}")
    unit = unit_roundoff(DTYPES[TABLE[op].result_dtype or dtype]) / unit_roundoff(DTYPES[dtype])
    assert smallest <= 16 * unit


def test_a_new_op_takes_one_row(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The row alone is enough to compile, fuzz, compare, store and report the op.

    A mistake in the row is found.
    """
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


def test_the_attributes_that_a_row_lacks_are_named() -> None:
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


def test_the_value_of_a_bound_is_that_of_the_definition() -> None:
    for name, op in TABLE.items():
        if issubclass(op, Composed):
            continue
        for dtype in op.dtypes:
            example = Example(name, dtype, sized(name, 7, n_kv=9, n_ctx=9, n_samples=640))
            arrays = [array if array.dtype.kind == "i" else array.astype(float) for array in example.arrays()]
            value = op.bound(op.roundings(dtype), *arrays).value
            assert apart(value, op.define(*arrays), may_lose(op, arrays)) <= 1, name
    assert define.LAYER_NORM_EPSILON == portable.LAYER_NORM_EPSILON
