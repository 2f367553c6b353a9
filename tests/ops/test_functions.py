"""exp and erf, swept through the ops that take them: the ceilings that bounds rest on (`reference.bounds`) hold."""

import numpy as np
import pytest

from reference.dtypes import DTYPES
from reference.judge import judge
from reference.suite import Suite
from reference.table import TABLE


def swept(dtype: str) -> np.ndarray:
    """All finite halves; of float32, every 1021st number from 0 on, either sign: 4.2 million."""
    if dtype == "float32":
        numbers = np.arange(0, 2**32, 1021, dtype=np.uint32).view(np.float32)
    else:
        numbers = np.arange(2**16, dtype=np.uint16).view(DTYPES[dtype])
    with np.errstate(invalid="ignore"):  # half of them signal that they are no number
        finite = numbers[np.isfinite(numbers)]
    assert len(finite) > (4_000_000 if dtype == "float32" else 60_000)
    return finite


def check(op: str, dtype: str, x: np.ndarray, suite: Suite) -> None:
    for verdict in judge(TABLE[op], dtype, [x], suite.run_parts(op, dtype, [x])):
        print(f"{op} in {dtype}: {verdict.share:.3f} of the ceiling; {verdict.worst}")
        assert verdict.passes, str(verdict)


@pytest.mark.parametrize("dtype", DTYPES)
def test_erf_everywhere(dtype: str, ops_suite: Suite) -> None:
    """By GELU, x/2 (1 + erf(x/√2))."""
    check("gelu", dtype, swept(dtype)[None], ops_suite)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_everywhere(dtype: str, ops_suite: Suite) -> None:
    """By softmax over a number and 0, the larger of which gives exp(0) and the other exp(-|x|)."""
    x = swept(dtype)
    check("softmax", dtype, np.stack([x, np.zeros_like(x)], axis=-1)[None, None], ops_suite)
