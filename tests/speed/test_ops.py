"""Benchmarks of every op of the table against PyTorch's, at its sizes in tiny.en."""

import pytest

from maxwhisper.checkpoint import load_checkpoint
from reference.ops import TABLE
from reference.ops.inputs import Example
from reference.ops.suite import Suite
from tests.speed.conftest import CompareSpeed
from tests.speed.counterparts import pytorch_caller, torch_device
from tests.speed.interleaved import clock
from tests.speed.sizes import FIXED_SIZE_OPS, calls_at_once, real_sizes

pytestmark = pytest.mark.bench


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("op", [name for name in TABLE if name not in FIXED_SIZE_OPS])
def test_op(op: str, ops_suite: Suite, compare_speed: CompareSpeed) -> None:
    dtype = TABLE[op].dtypes[0]
    arrays = Example(op, dtype, real_sizes(op, load_checkpoint("tiny.en").dims)).arrays()
    n = calls_at_once(ops_suite.name)
    compare_speed(
        ops_suite.caller(op, dtype, arrays, n),
        pytorch_caller(TABLE[op], arrays, torch_device(ops_suite.name), n),
        op,
        n=n,
    )
