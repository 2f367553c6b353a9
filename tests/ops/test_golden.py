"""What is kept of every op still holds: in NumPy to rounding, in PyTorch and MAX inside their bounds."""

import numpy as np
import pytest

from reference.dtypes import DTYPES
from reference.golden import OPS, make_op, recall_op
from reference.judge import expect, judge
from reference.suite import Suite
from reference.table import TABLE
from reference.table.composed import Composed


def test_every_row_is_kept_and_nothing_else() -> None:
    assert {path.stem for path in OPS.glob("*.json")} == TABLE.keys()


@pytest.mark.parametrize("op", TABLE)
def test_the_definition_says_what_it_did(op: str) -> None:
    kept, made = recall_op(op), make_op(op)
    assert all(np.array_equal(a, b) for a, b in zip(kept.inputs, made.inputs, strict=True))
    assert kept.output.shape == made.output.shape
    assert np.allclose(kept.output, made.output, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("op", "dtype"), [(name, dtype) for name, op in TABLE.items() for dtype in op.dtypes])
def test_max_and_torch_give_the_kept_output(op: str, dtype: str, ops_suite: Suite) -> None:
    """Though the bound is computed today, the value that it stands around is the kept one.

    A composed row has no bound of its own; its parts have, and its last result is only seen to be the kept one and no other.
    """
    kept, spec = recall_op(op), TABLE[op]
    dtypes = [DTYPES.get(i.dtype or dtype, np.dtype(i.dtype or dtype)) for i in spec.inputs.values()]
    arrays = [array.astype(wanted) for array, wanted in zip(kept.inputs, dtypes, strict=True)]
    assert all(np.array_equal(a.astype(float), b.astype(float)) for a, b in zip(arrays, kept.inputs, strict=True))
    results = ops_suite.run_parts(op, dtype, arrays)
    value, rtol = (results[-1], 1e-5) if issubclass(spec, Composed) else (expect(spec, dtype, arrays).value, 1e-12)
    assert value.shape == kept.output.shape
    assert np.allclose(value, kept.output, rtol=0, atol=rtol * np.abs(kept.output[np.isfinite(kept.output)]).max())
    for verdict in judge(spec, dtype, arrays, results, device=ops_suite.name):
        assert verdict.passes, str(verdict)
