"""Every op gives its stored output: NumPy to rounding, PyTorch and MAX inside their bounds."""

from dataclasses import replace

import numpy as np
import pytest

from reference.golden.ops import OPS, change_of, make_op, recall_op
from reference.numerics import definitions
from reference.numerics.dtypes import DTYPES
from reference.ops import TABLE
from reference.ops.composed import Composed
from reference.ops.float64_error import apart, may_lose
from reference.ops.judge import expect, judge
from reference.ops.suite import Suite


def test_exactly_the_rows_of_the_table_are_stored() -> None:
    assert {path.stem for path in OPS.glob("*.json")} == TABLE.keys()


@pytest.mark.parametrize("op", TABLE)
def test_the_definition_gives_the_stored_output(op: str) -> None:
    assert change_of(op, make_op(op)) == ""


@pytest.mark.parametrize("op", TABLE)
def test_a_definition_that_is_off_by_one_in_a_trillion_is_noticed(op: str) -> None:
    golden = make_op(op)
    assert change_of(op, replace(golden, output=golden.output * (1 + 1e-12))).startswith("the output differs by ")


@pytest.mark.parametrize(
    ("op", "off"),
    [("layer_norm", 1e-9), ("mlp", 1e-9)]
    + [(block, 1e-7) for block in ("residual_block", "cross_attention_block", "decoder_block", "decoder_block_int8")],
)
def test_a_slightly_wrong_epsilon_is_noticed(op: str, off: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definitions, "LAYER_NORM_EPSILON", definitions.LAYER_NORM_EPSILON * (1 + off))
    assert change_of(op, make_op(op)).startswith("the output differs by ")


@pytest.mark.parametrize(("op", "dtype"), [(name, dtype) for name, op in TABLE.items() for dtype in op.dtypes])
def test_max_and_torch_give_the_stored_output(op: str, dtype: str, ops_suite: Suite) -> None:
    """The bound is computed now, around a value that must equal the stored output.

    A composed row has no bound of its own, but its parts have. Its last result is compared with the
    stored output only roughly.
    """
    golden, spec = recall_op(op), TABLE[op]
    dtypes = [DTYPES.get(i.dtype or dtype, np.dtype(i.dtype or dtype)) for i in spec.inputs.values()]
    arrays = [array.astype(wanted) for array, wanted in zip(golden.inputs, dtypes, strict=True)]
    assert all(np.array_equal(a.astype(float), b.astype(float)) for a, b in zip(arrays, golden.inputs, strict=True))
    results = ops_suite.run_parts(op, dtype, arrays)
    if issubclass(spec, Composed):
        assert results[-1].shape == golden.output.shape
        limit = 1e-5 * np.abs(golden.output).max()  # about thirty times PyTorch's error
        assert np.allclose(results[-1], golden.output, rtol=0, atol=limit)
    else:
        assert apart(expect(spec, dtype, arrays).value, golden.output, may_lose(spec, arrays)) <= 1
    for verdict in judge(spec, dtype, arrays, results, device=ops_suite.name).verdicts:
        assert verdict.passes, str(verdict)
