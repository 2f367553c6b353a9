"""Defects of MAX itself, each in the fewest lines that show it, and where it is worked around.

They compile apart from everything else, so they run only when asked for: `nox -s max_defects`. A test that begins to pass after an
upgrade fails as strictly expected to fail: then the work-around can go.
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
    """Build a graph of inputs with the given symbolic shapes, compile it, run it."""
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
    """A causal mask made inside the graph hides nothing, or all. Worked around in `ops.apply_mask`: it comes from outside."""

    def masked(scores: TensorValue, positions: TensorValue) -> TensorValue:
        visible = ops.unsqueeze(positions, 0) <= ops.unsqueeze(positions, 1)
        return ops.where(visible, scores, ops.constant(-1.0, DType.float32, device=DEVICE))

    scores, positions = np.ones((2, 3, 3), np.float32), np.arange(3)
    result = run(masked, (scores, ["batch", "n", "n"]), (positions, ["n"]))
    assert np.array_equal(result, np.where(positions <= positions[:, None], scores, np.float32(-1)))


@pytest.mark.xfail(
    strict=True,
    raises=(RuntimeError, ValueError),
    reason="MAX 26.7.0: gather with an index of rank 0 does not compile; 26.6.0: nor run",
)
def test_gather_takes_an_index_of_rank_0() -> None:
    """Worked around by never doing it: positions and rows have rank 1."""

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
    """Worked around by never doing it."""
    a = np.ones((1, 1, 1, 2, 2), np.float32)
    assert np.array_equal(run(ops.matmul, (a, ["a", "b", "c", 2, 2]), (a, ["a", "b", "c", 2, 2])), a @ a)


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="MAX 26.7.0: num_threads aborts the process, for the CPU device is made without it first",
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
    reason="MAX 26.7.0: on the CPU a batched matrix product of halves adds up in halves",
)
def test_batched_matmul_of_halves() -> None:
    """One of rank 2 adds up in float32. Worked around in `maxwhisper.engine.ops`: attention widens its inputs."""
    ones = np.ones((2, 2, 4096), np.float16)

    def product(a: TensorValue) -> TensorValue:
        return ops.matmul(a, ops.transpose(a, 1, 2))

    tenth = np.full_like(ones, 0.1)
    exact = (tenth.astype(np.float64) @ tenth.astype(np.float64).swapaxes(1, 2)).astype(np.float16)
    assert np.array_equal(run(product, (tenth, ["batch", "n", "k"])), exact)


@pytest.mark.xfail(BEFORE_26_7, strict=True, raises=AssertionError, reason=LEAVES_OUT_A_BIAS)
def test_a_bias_reaches_all_that_need_it() -> None:
    """Attention's values, in the graph of halves that `tests/gpu/test_gpu_graphs.py` runs on the CPU. Mended in 26.7."""
    n, n_head, head_dim = 8, 2, 8
    n_state = n_head * head_dim
    halves = {"weights": ["batch", n_head, n, n], "x": ["batch", n, n_state], "weight": [n_state, n_state]}
    types = [
        *(TensorType(DType.float16, shape, DEVICE) for shape in halves.values()),
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
    strict=True, raises=AssertionError, reason="MAX 26.7.0: layer_norm of halves rounds epsilon to their dtype"
)
def test_layer_norm_rounds_epsilon() -> None:
    """Worked around in `portable.layer_norm`, which widens halves."""
    x, one, epsilon = np.array([[-1e-4, 1e-4]], np.float16), np.ones(2, np.float16), 2e-8  # which is 0 in float16

    def norm(x: TensorValue, weight: TensorValue) -> TensorValue:
        return ops.layer_norm(x, weight, weight * 0, epsilon)

    exact = x.astype(np.float64) / np.sqrt((x.astype(np.float64) ** 2).mean() + epsilon)  # 0.58, and not 1
    assert np.allclose(run(norm, (x, ["n", 2]), (one, [2])), exact, rtol=2e-3)


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="MAX 26.7.0: on the CPU a sum of halves adds up in halves"
)
def test_sum_of_halves() -> None:
    """Never used: layer norm and the products widen theirs."""
    tenth = np.full((2, 4096), 0.1, np.float16)
    exact = tenth.astype(np.float64).sum(axis=-1, keepdims=True).astype(np.float16)  # 409.5; MAX: 408.5
    assert np.array_equal(run(lambda x: ops.sum(x, axis=-1), (tenth, ["n", "k"])), exact)


@pytest.mark.skipif(
    cpu_level() in ("x86-64-v3", HOST), reason="this processor's vectors are no wider than the target's"
)
@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="MAX 26.7.0: a product's constant is laid out for the vectors of the machine that compiles",
)
def test_a_constant_is_laid_out_for_the_target() -> None:
    """The model's graphs for the CPU have none; `maxwhisper.engine.log_mel` has, which a GPU computes. A v3 lays out for itself."""
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
    """So a NaN does not reach all it should, and 0 looks like an answer. Samples that are not finite are refused when they are read."""
    assert np.isnan(run(ops.softmax, (NAN_AMONG_NUMBERS, ["n", "k"]))).all()


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="MAX 26.7.0: max (min, argmax, top_k as well) skips NaN where NumPy and PyTorch find it",
)
def test_max_of_nan() -> None:
    """On a GPU greedy decoding takes the largest logit so; logits that are no number it would not notice."""
    assert np.isnan(run(lambda x: ops.max(x, axis=-1), (NAN_AMONG_NUMBERS, ["n", "k"]))).all()


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="MAX 26.7.0: tanh of NaN is 1")
def test_tanh_of_nan() -> None:
    """Never used: GELU is the exact one, by erf."""
    assert np.isnan(run(ops.tanh, (NAN_AMONG_NUMBERS[:, 1:2], ["n", "k"]))).all()


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="MAX 26.7.0: the maximum of nothing is a finite number, -3.4e38"
)
def test_max_of_nothing() -> None:
    """Never used. NumPy and PyTorch refuse."""
    assert not np.isfinite(run(lambda x: ops.max(x, axis=-1), (np.zeros((2, 0), np.float32), ["n", "k"]))).any()


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="MAX 26.7.0: a tensor that is also given as a buffer may be read after that was written to, unnoticed",
)
def test_one_buffer_as_two_inputs() -> None:
    """Never done: a model's buffers are its own."""
    with Graph(
        "defect", input_types=[BufferType(DType.float32, ["n"], DEVICE), TensorType(DType.float32, ["n"], DEVICE)]
    ) as graph:
        buffer, x = graph.inputs[0].buffer, graph.inputs[1].tensor
        ops.buffer_store(buffer, x * 2)
        graph.output(x + 1, ops.buffer_load(buffer))
    model = InferenceSession(devices=[CPU()]).load(graph)
    for _ in range(1000):  # which thread comes first is chance
        both = Buffer.from_numpy(np.ones(3, np.float32))
        result, _ = model.execute(both, both)
        assert np.array_equal(result.to_numpy(), np.full(3, 2, np.float32))


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="MAX 26.7.0: Buffer.zeros returns before it has zeroed, and zeroes what is written",
)
def test_zeros_are_zero_at_once() -> None:
    """A step's graph lost what it had written to a new decoder's cache, once in some thousand times: `engine.decoder.Decoder`."""
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
    time.sleep(2)  # the threads of its pool look for work for a while
    begin = time.process_time()
    time.sleep(1)
    assert time.process_time() - begin < 0.03


def compile_for_gpu(tmp_path: Path, graph: str) -> bytes:
    """What is exported of a graph that Python builds for `gpu`, an sm_90 that need not be here."""
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
    # With a cache of its own, else code may come along that was compiled for other graphs.
    environment = {**os.environ, "MODULAR_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    return (tmp_path / "graph").read_bytes()


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="MAX 26.7.0: on a GPU a product of float32 matrices rounds them to TF32"
)
def test_float32_stays_float32(tmp_path: Path) -> None:
    """As a graph compiled for sm_90 says of itself. Worked around in `portable.matmul`, which calls cuBLAS without it."""
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
    """Of bfloat16 it does. Worked around in `portable.attention`, which takes the steps one by one."""
    compile_for_gpu(
        tmp_path,
        """
heads = TensorType(DType.float16, ["batch", "n", 6, 64], gpu)
with Graph("attention", input_types=[heads]) as graph:
    x = graph.inputs[0].tensor
    graph.output(flash_attention_gpu(x, x, x, MHAMaskVariant.NULL_MASK, 0.125))
""",
    )
