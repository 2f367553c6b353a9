"""Every op of the table at the sizes that it has in tiny.en, beside PyTorch's."""

import pytest

from maxwhisper.checkpoint import load_checkpoint
from reference.ops import TABLE
from reference.ops.inputs import Example
from reference.ops.suite import Suite
from tests.speed.conftest import Beside
from tests.speed.sizes import FIXED, real_sizes
from tests.speed.turns import clock
from tests.speed.twins import by_torch, torch_device

pytestmark = pytest.mark.bench


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("op", [name for name in TABLE if name not in FIXED])
def test_op(op: str, ops_suite: Suite, beside: Beside) -> None:
    dtype = TABLE[op].dtypes[0]
    arrays = Example(op, dtype, real_sizes(op, load_checkpoint("tiny.en").dims)).arrays()
    beside(ops_suite.caller(op, dtype, arrays), by_torch(TABLE[op], arrays, torch_device(ops_suite.name)), op)
