"""Every op of the table at the sizes that it has in tiny.en, beside PyTorch's."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from maxwhisper.checkpoint import load_checkpoint
from reference.dataflow import evaluate
from reference.dtypes import to_torch
from reference.inputs import Example
from reference.judge import run_torch
from reference.speed.sizes import FIXED, real_sizes
from reference.speed.turns import clock
from reference.suite import Suite
from reference.table import TABLE, Op
from reference.table.composed import Composed
from tests.bench.conftest import Beside

pytestmark = pytest.mark.bench


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("name", [name for name in TABLE if name not in FIXED])
def test_op(name: str, ops_suite: Suite, beside: Beside) -> None:
    op, dims = TABLE[name], load_checkpoint("tiny.en").dims
    arrays = Example(name, "float32", real_sizes(name, dims)).arrays()
    beside(ops_suite.caller(name, "float32", arrays), by_torch(op, arrays), name)


def by_torch(op: type[Op], arrays: list[np.ndarray]) -> Callable[[], object]:
    """The same in float32, as OpenAI Whisper holds all weights on a CPU; a composed op part by part."""
    wide = [array.astype(np.float32) if array.dtype == np.float16 else array for array in arrays]
    if issubclass(op, Composed):
        given = dict(zip(op.inputs, wide, strict=True))
        return lambda: evaluate(op.parts, given, lambda part, inputs: run_torch(TABLE[part], inputs))
    tensors = [to_torch(array) for array in wide]
    return torch.no_grad()(lambda: op.torch(*tensors))
