"""Sweep exp and erf through the ops that use them.

The error limits that bounds assume (`reference.numerics.bounds`) must hold.
"""

import numpy as np
import pytest

from reference.numerics.bounds import FUNCTION_ULPS, FUNCTIONS, SINGLE_TINY
from reference.numerics.dtypes import DTYPES, unit_roundoff
from reference.ops import TABLE
from reference.ops.judge import judge
from reference.ops.suite import Suite
from reference.ops.torch_counterparts import run_torch


def sweep(dtype: str) -> np.ndarray:
    """Return all finite numbers of a 16-bit dtype, or every 1021st bit pattern of float32.

    Of float32 these are 4.2 million numbers of both signs.
    """
    if dtype == "float32":
        numbers = np.arange(0, 2**32, 1021, dtype=np.uint32).view(np.float32)
    else:
        numbers = np.arange(2**16, dtype=np.uint16).view(DTYPES[dtype])
    with np.errstate(invalid="ignore"):  # some are signaling NaNs
        finite = numbers[np.isfinite(numbers)]
    assert len(finite) > (4_000_000 if dtype == "float32" else 60_000)
    return finite


def check(op: str, dtype: str, x: np.ndarray, suite: Suite) -> None:
    for verdict in judge(TABLE[op], dtype, [x], suite.run_parts(op, dtype, [x]), device=suite.name).verdicts:
        print(f"{op} in {dtype}: {verdict.worst_case_ratio:.3f} of the bound; {verdict.worst}")
        assert verdict.passes, str(verdict)


@pytest.mark.parametrize("dtype", DTYPES)
def test_erf_everywhere(dtype: str, ops_suite: Suite) -> None:
    """Sweep erf through GELU, x/2 (1 + erf(x/√2))."""
    check("gelu", dtype, sweep(dtype)[None], ops_suite)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_of_two_everywhere(dtype: str, ops_suite: Suite) -> None:
    x = sweep(dtype)
    check("softmax", dtype, pairs_with_zero(x), ops_suite)


def test_exp_everywhere(ops_suite: Suite) -> None:
    """Sweep exp through the ratio of softmax's two results.

    They are exp(-|x|) and exp(0), both divided by one sum. The errors are those of two calls of exp
    (`FUNCTION_ULPS`), of the two divisions, and of the ratio itself.
    """
    x = sweep("float32")
    for name, (result,) in {
        "MAX": ops_suite.run_parts("softmax", "float32", [pairs_with_zero(x)]),
        "PyTorch": [run_torch(TABLE["softmax"], [pairs_with_zero(x)])],
    }.items():
        pairs = np.sort(result[0, 0].astype(np.float64))
        normal = pairs[:, 0] > SINGLE_TINY
        assert normal.sum() > 100_000
        exact = np.exp(-np.abs(x[normal].astype(np.float64)))
        units = np.abs(pairs[normal, 0] / pairs[normal, 1] / exact - 1) / unit_roundoff(x.dtype)
        print(f"{name}'s exp: {units.max():.2f} u at {x[normal][np.argmax(units)]}")
        functions = FUNCTIONS[ops_suite.name if name == "MAX" else "cpu"]
        of_argument = (functions.exp_argument - 1) * np.abs(x[normal].astype(np.float64))
        assert (units <= 2 * FUNCTION_ULPS + 2 * functions.quotient + 1 + of_argument).all()


def pairs_with_zero(x: np.ndarray) -> np.ndarray:
    return np.stack([x, np.zeros_like(x)], axis=-1)[None, None]
