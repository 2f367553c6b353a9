"""Minimal reproducers of defects in MAX itself, each with the place that works around it.

Each compiles its own graph, so they run only on request: `nox -s max_defects`. All are strict
expected failures. If an upgrade of MAX fixes a defect, its test fails, and the work-around can go.
"""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import BufferType, DeviceRef, Graph, TensorType, TensorValue, ops

from maxwhisper.engine.compiled import HOST, compiling_for, cpu_level
from tests.versions import BEFORE_26_7, LEAVES_OUT_A_BIAS

pytestmark = pytest.mark.max_defects
DEVICE = DeviceRef.CPU()


def run(build: Callable[..., TensorValue], *inputs: tuple[np.ndarray, list[str | int]]) -> np.ndarray:
    """Build a graph, compile it, and run it.

    Args:
        build: makes the graph's output from its inputs.
        inputs: arrays with their symbolic shapes.
    """
    types = [TensorType(DType.from_numpy(array.dtype), shape, DEVICE) for array, shape in inputs]
    with Graph("defect", input_types=types) as graph:
        graph.output(build(*(value.tensor for value in graph.inputs)))
    model = InferenceSession(devices=[CPU()]).load(graph)
    return model.execute(*(array for array, _ in inputs))[0].to_numpy()


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="MAX 26.7.0: a comparison of broadcast operands, itself broadcast, is evaluated at its first element",
)
def test_where_broadcasts_a_comparison() -> None:
    """A causal mask made in the graph hides nothing or everything.

    Worked around in `ops.apply_mask`, whose mask is an input of the graph.
    """

    def masked(scores: TensorValue, positions: TensorValue) -> TensorValue:
        visible = ops.unsqueeze(positions, 0) <= ops.unsqueeze(positions, 1)
        return ops.where(visible, scores, ops.constant(-1.0, DType.float32, device=DEVICE))

    scores, positions = np.ones((2, 3, 3), np.float32), np.arange(3)
    result = run(masked, (scores, ["batch", "n", "n"]), (positions, ["n"]))
    assert np.array_equal(result, np.where(positions <= positions[:, None], scores, np.float32(-1)))


@pytest.mark.xfail(
    strict=True,
    raises=(RuntimeError, ValueError),
    reason="MAX 26.7.0: gather with an index of rank 0 does not compile (26.6.0: nor does it run)",
)
def test_gather_takes_an_index_of_rank_0() -> None:
    """The graphs don't need it: positions and rows have rank 1."""

    def row(table: TensorValue) -> TensorValue:
        return ops.gather(table, ops.constant(1, DType.int64, device=DEVICE), axis=0)

    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert np.array_equal(run(row, (table, ["n", 2])), table[1])


@pytest.mark.xfail(
    strict=True,
    raises=RuntimeError,
    reason="MAX 26.7.0: a matrix product of rank 5 does not compile (bmm.mojo: at most 4)",
)
def test_matmul_takes_rank_5() -> None:
    """The graphs don't need it."""
    a = np.ones((1, 1, 1, 2, 2), np.float32)
    assert np.array_equal(run(ops.matmul, (a, ["a", "b", "c", 2, 2]), (a, ["a", "b", "c", 2, 2])), a @ a)


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="MAX 26.7.0: num_threads aborts the process, because the CPU device is made without it first",
)
def test_the_number_of_threads_can_be_chosen() -> None:
    """Worked around in `maxwhisper.set_num_threads`."""

    def exit_status(arguments: str) -> int:
        script = f"from max.engine import InferenceSession; InferenceSession({arguments})"
        return subprocess.run([sys.executable, "-c", script], capture_output=True).returncode

    if exit_status(""):
        pytest.fail("InferenceSession() itself does not work")
    assert exit_status("num_threads=1") == 0


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="MAX 26.7.0: on the CPU a batched matrix product in half precision accumulates in half precision",
)
def test_batched_matmul_of_halves() -> None:
    """A product of rank 2 accumulates in float32.

    Worked around in `maxwhisper.engine.ops`, whose attention widens its inputs.
    """
    ones = np.ones((2, 2, 4096), np.float16)

    def product(a: TensorValue) -> TensorValue:
        return ops.matmul(a, ops.transpose(a, 1, 2))

    tenth = np.full_like(ones, 0.1)
    exact = (tenth.astype(np.float64) @ tenth.astype(np.float64).swapaxes(1, 2)).astype(np.float16)
    assert np.array_equal(run(product, (tenth, ["batch", "n", "k"])), exact)


@pytest.mark.xfail(BEFORE_26_7, strict=True, raises=AssertionError, reason=LEAVES_OUT_A_BIAS)
def test_a_bias_reaches_all_that_need_it() -> None:
    """Attention's values lose their bias in the graph that `tests/gpu/test_gpu_graphs.py` runs.

    That is a half-precision graph on the CPU. The defect is fixed in 26.7.
    """
    n, n_head, head_dim = 8, 2, 8
    n_state = n_head * head_dim
    shapes = {"weights": ["batch", n_head, n, n], "x": ["batch", n, n_state], "weight": [n_state, n_state]}
    types = [
        *(TensorType(DType.float16, shape, DEVICE) for shape in shapes.values()),
        TensorType(DType.float32, [n_state], DEVICE),
    ]
    with Graph("defect", input_types=types) as graph:
        weights, x, weight, bias = (value.tensor for value in graph.inputs)
        batch = x.shape[0]
        rows = ops.cast(ops.reshape(x, [batch * n, n_state]), DType.float32)
        y = rows @ ops.transpose(ops.cast(weight, DType.float32), 0, 1) + bias
        value = ops.reshape(ops.cast(y, DType.float16), x.shape)
        heads = ops.permute(ops.reshape(value, [batch, n, n_head, head_dim]), [0, 2, 1, 3])
        context = ops.cast(ops.cast(weights, DType.float32) @ ops.cast(heads, DType.float32), DType.float16)
        graph.output(value, ops.reshape(ops.permute(context, [0, 2, 1, 3]), x.shape))
    mean, ones = np.full((1, n_head, n, n), 1 / n, np.float16), np.ones((1, n, n_state), np.float16)
    model = InferenceSession(devices=[CPU()]).load(graph)
    results = model.execute(mean, ones, np.eye(n_state, dtype=np.float16), np.ones(n_state, np.float32))
    for result in results:
        assert np.array_equal(result.to_numpy(), ones + 1)


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="MAX 26.7.0: layer_norm in half precision rounds epsilon to its dtype"
)
def test_layer_norm_rounds_epsilon() -> None:
    """Worked around in `portable.layer_norm`, which widens half precision to float32."""
    x, one, epsilon = np.array([[-1e-4, 1e-4]], np.float16), np.ones(2, np.float16), 2e-8  # 0 in float16

    def norm(x: TensorValue, weight: TensorValue) -> TensorValue:
        return ops.layer_norm(x, weight, weight * 0, epsilon)

    exact = x.astype(np.float64) / np.sqrt((x.astype(np.float64) ** 2).mean() + epsilon)  # 0.58; MAX: 1
    assert np.allclose(run(norm, (x, ["n", 2]), (one, [2])), exact, rtol=2e-3)


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="MAX 26.7.0: on the CPU a sum in half precision accumulates in half precision",
)
def test_sum_of_halves() -> None:
    """The graphs don't need it: layer norm and matrix products widen to float32."""
    tenth = np.full((2, 4096), 0.1, np.float16)
    exact = tenth.astype(np.float64).sum(axis=-1, keepdims=True).astype(np.float16)  # 409.5; MAX: 408.5
    assert np.array_equal(run(lambda x: ops.sum(x, axis=-1), (tenth, ["n", "k"])), exact)


@pytest.mark.skipif(
    cpu_level() in ("x86-64-v3", HOST), reason="this processor's vectors are not wider than the target's"
)
@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="MAX 26.7.0: a matrix product's constant is laid out for the vectors of the compiling machine",
)
def test_a_constant_is_laid_out_for_the_target() -> None:
    """Only `maxwhisper.engine.log_mel` has such a constant, and it runs on a GPU.

    A processor of level v3 lays the constant out for its own vectors, so it can't show the defect.
    """
    ones = np.ones((20, 40), np.float32)
    with compiling_for("x86-64-v3"):
        result = run(
            lambda x: x @ ops.constant(ones * np.arange(40, dtype=np.float32), DType.float32, device=DEVICE),
            (np.ones((3, 20), np.float32), ["n", 20]),
        )
    assert np.array_equal(result, np.full((3, 1), 20) * np.arange(40, dtype=np.float32))


NAN_AMONG_NUMBERS = np.array([[1, np.nan, 3, 0]], np.float32)


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="MAX 26.7.0: softmax of a row with a NaN gives 0 for its other elements"
)
def test_softmax_of_nan() -> None:
    """A NaN in a row must make all elements NaN, because 0 looks like a valid result.

    Audio is checked when it is read: samples that are not finite raise an error.
    """
    assert np.isnan(run(ops.softmax, (NAN_AMONG_NUMBERS, ["n", "k"]))).all()


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="MAX 26.7.0: max (also min, argmax and top_k) skips NaN; NumPy and PyTorch return it",
)
def test_max_of_nan() -> None:
    """Greedy decoding on a GPU takes the largest logit this way, and would miss NaN logits."""
    assert np.isnan(run(lambda x: ops.max(x, axis=-1), (NAN_AMONG_NUMBERS, ["n", "k"]))).all()


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="MAX 26.7.0: tanh of NaN is 1")
def test_tanh_of_nan() -> None:
    """The graphs don't need it: GELU is the exact one, computed with erf."""
    assert np.isnan(run(ops.tanh, (NAN_AMONG_NUMBERS[:, 1:2], ["n", "k"]))).all()


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="MAX 26.7.0: the maximum of nothing is a finite number, -3.4e38"
)
def test_max_of_nothing() -> None:
    """The graphs don't need it. NumPy and PyTorch raise an error."""
    assert not np.isfinite(run(lambda x: ops.max(x, axis=-1), (np.zeros((2, 0), np.float32), ["n", "k"]))).any()


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="MAX 26.7.0: if a tensor input is also a buffer input, it may be read after the buffer is written, silently",
)
def test_one_buffer_as_two_inputs() -> None:
    """The runtime never passes one buffer twice."""
    with Graph(
        "defect", input_types=[BufferType(DType.float32, ["n"], DEVICE), TensorType(DType.float32, ["n"], DEVICE)]
    ) as graph:
        buffer, x = graph.inputs[0].buffer, graph.inputs[1].tensor
        ops.buffer_store(buffer, x * 2)
        graph.output(x + 1, ops.buffer_load(buffer))
    model = InferenceSession(devices=[CPU()]).load(graph)
    for _ in range(1000):  # it depends on which thread is first
        both = Buffer.from_numpy(np.ones(3, np.float32))
        result, _ = model.execute(both, both)
        assert np.array_equal(result.to_numpy(), np.full(3, 2, np.float32))


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="MAX 26.7.0: Buffer.zeros returns before it has written the zeros, and later overwrites other data",
)
def test_zeros_are_zero_at_once() -> None:
    """A new decoder's KV cache lost what the first step had written, once in a few thousand times.

    Worked around in `engine.decoder_state.DecoderState`.
    """
    shape = (1 << 18,)
    for _ in range(100):
        buffers = [Buffer.zeros(shape, DType.uint8, CPU()) for _ in range(8)]
        for buffer in buffers:
            ctypes.memset(buffer._data_ptr(), 1, *shape)
        time.sleep(0.001)
        assert all(ctypes.string_at(buffer._data_ptr(), *shape) == b"\1" * shape[0] for buffer in buffers)


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="MAX 26.7.0: the thread that writes its log wakes 10,000 times a second"
)
def test_a_process_that_waits_costs_nothing() -> None:
    """Worked around in `maxwhisper.engine.timer_slack.relaxed_timers`."""
    run(lambda x: x + 1, (np.ones(1, np.float32), ["n"]))
    time.sleep(2)  # the threads of MAX's pool poll for work for a while
    begin = time.process_time()
    time.sleep(1)
    assert time.process_time() - begin < 0.03


def compile_for_gpu(tmp_path: Path, graph: str) -> bytes:
    """Compile a graph for a GPU of architecture sm_90, which need not be present, and export it.

    Args:
        tmp_path: folder for the exported file and MAX's cache.
        graph: Python code that builds `graph` for the device `gpu`.

    Returns:
        The exported file's bytes.
    """
    script = f"""
from max.driver import set_virtual_device_api, set_virtual_device_count, set_virtual_device_target_arch
set_virtual_device_api("cuda"), set_virtual_device_target_arch("sm_90"), set_virtual_device_count(1)
from max.driver import Accelerator
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, TensorType, ops
from max.nn.attention import MHAMaskVariant
from max.nn.kernels import flash_attention_gpu
accelerator = Accelerator()
gpu = DeviceRef.from_device(accelerator)
{graph}
InferenceSession(devices=[accelerator]).compile(graph).export_mef({str(tmp_path / "graph")!r})
"""
    # An empty cache, so that the export contains no code compiled for other graphs.
    environment = {**os.environ, "MODULAR_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    return (tmp_path / "graph").read_bytes()


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="MAX 26.7.0: on a GPU a matrix product of float32 rounds its inputs to TF32",
)
def test_float32_stays_float32(tmp_path: Path) -> None:
    """The graph compiled for sm_90 has the option `use_tf32=true` in its code.

    Worked around in `portable.matmul`, which calls cuBLAS without TF32.
    """
    compiled = compile_for_gpu(
        tmp_path,
        """
matrix = TensorType(DType.float32, ["n", 384], gpu)
with Graph("product", input_types=[matrix, matrix]) as graph:
    a, b = (value.tensor for value in graph.inputs)
    graph.output(ops.matmul(a, ops.transpose(b, 0, 1)))
""",
    )
    assert b"use_tf32=true" not in compiled


@pytest.mark.xfail(
    strict=True,
    raises=subprocess.CalledProcessError,
    reason="MAX 26.7.0: flash attention of float16 does not compile for sm_90",
)
def test_flash_attention_of_float16(tmp_path: Path) -> None:
    """It compiles for bfloat16. Worked around in `portable.attention` by separate ops."""
    compile_for_gpu(
        tmp_path,
        """
heads = TensorType(DType.float16, ["batch", "n", 6, 64], gpu)
with Graph("attention", input_types=[heads]) as graph:
    x = graph.inputs[0].tensor
    graph.output(flash_attention_gpu(x, x, x, MHAMaskVariant.NULL_MASK, 0.125))
""",
    )
