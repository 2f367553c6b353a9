"""The encoder's attention on NVIDIA GPUs, judged like any op, on a machine without one."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwhisper.engine.ops import nvidia
from reference.ops import TABLE
from reference.ops.judge import judge_alone
from reference.ptx import Race
from tests.gpu.emulated import Gpu, emulated_gpu
from tests.gpu.test_nvidia_faults import TOO_EARLY, Fault, assert_blamed, planted


def attend(gpu: Gpu, dtype: str, shape: tuple[int, ...], n_kv: int, seed: int = 0, scale: float = 1.0) -> list[str]:
    """Compute attention of numbers drawn at random, and return how it fails.

    Args:
        gpu: interprets the kernel.
        dtype: of all arrays.
        shape: batch, n and n_head.
        n_kv: keys.
        seed: of the numbers.
        scale: of queries and keys.
    """
    batch, n, n_head = shape
    rng = np.random.default_rng(seed)
    inputs = []
    for rows, factor in ((n, scale), (n_kv, scale), (n_kv, 1.0)):
        array = (rng.standard_normal((batch, rows, n_head, 64)) * factor).astype(dtype)
        array.flags.writeable = False
        inputs.append(array)
    with emulated_gpu(gpu):
        result = nvidia.attention(*inputs)
    *inputs, result = (array.transpose(0, 2, 1, 3) for array in (*inputs, result))
    verdict = judge_alone(TABLE["attention"], dtype, inputs, result, device="gpu").actual
    return [] if verdict.passes else [f"attention: {verdict}"]


DTYPES = ("float32", "float16")


def compile_for(gpu: Gpu) -> Gpu:
    """Compile the kernels of both dtypes."""
    with gpu.noting():
        for dtype in DTYPES:
            attend(gpu, dtype, (1, 1, 1), 1)
    return gpu


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    """Return a GPU with the kernels compiled."""
    return compile_for(Gpu())


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_is_inside_its_bounds(gpu: Gpu, dtype: str) -> None:
    # A block takes 64 queries in float32, and 128 in float16.
    @given(
        batch_and_heads=st.sampled_from([(1, 1), (1, 2), (2, 1)]),
        n=st.integers(1, 70 if dtype == "float32" else 140),
        n_kv=st.integers(1, 70),
        seed=st.integers(0, 2**16),
        scale=st.sampled_from([1.0, 0.1, 3.0]),
    )
    @settings(max_examples=50)
    def check(batch_and_heads: tuple[int, int], n: int, n_kv: int, seed: int, scale: float) -> None:
        gpu.seed, (batch, n_head) = seed, batch_and_heads
        failures = attend(gpu, dtype, (batch, n, n_head), n_kv, seed, scale)
        assert not failures, failures[0]

    check()


@pytest.mark.parametrize(("dtype", "n"), [("float16", 130), pytest.param("float32", 20, marks=pytest.mark.thorough)])
def test_attention_to_a_whole_window(gpu: Gpu, dtype: str, n: int) -> None:
    assert attend(gpu, dtype, (1, n, 1), 1500) == []


def test_half_precision_is_multiplied_by_tensor_cores(gpu: Gpu) -> None:
    opcodes = {name: [i.opcode for i in kernel.code] for name, kernel in gpu.kernels.items()}
    assert "mma" in opcodes["encoder_attention_half_kernel"]
    assert "mma" not in opcodes["encoder_attention_kernel"]


def test_bfloat16_is_left_to_max(monkeypatch: pytest.MonkeyPatch) -> None:
    """MAX's flash attention was measured, and has none for the other two."""
    monkeypatch.setattr(nvidia, "flash_attention", lambda *inputs: inputs)
    inputs = (np.zeros((1, 1, 1, 64), ml_dtypes.bfloat16),) * 3
    with emulated_gpu(Gpu()):
        assert nvidia.attention(*inputs) == inputs


FLOAT32, FLOAT16 = "encoder_attention", "encoder_attention_half"
WRITING = "        barrier()\n        comptime for i in range(OWN_ROWS):\n"
MASKING = ">= Int(n_kv):\n                    scores"
FAULTS = [
    Fault("weights before all have read the keys", FLOAT32, WRITING, WRITING[18:], (Race,)),
    Fault("weights read at once", FLOAT32, "        syncwarp()\n", "", TOO_EARLY),
    Fault("a key beyond the last", FLOAT32, MASKING, MASKING[0] + MASKING[2:], "attention"),
    Fault("sums of another maximum", FLOAT32, "sums[i] *= before", "sums[i] *= 1", "attention"),
    Fault("a dimension twice", FLOAT16, "odd[e] = v[1]", "odd[e] = v[0]", "attention"),
    Fault("a barrier missing", FLOAT16, "        barrier()\n        stage[KEY", "        stage[KEY", (Race,)),
    Fault("a mask of odd keys", FLOAT16, "2 * t + e >= Int(n_kv)", "2 * t + 1 >= Int(n_kv)", "attention"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_mistake_in_a_kernel_is_blamed(fault: Fault, tmp_path: Path) -> None:
    gpu, dtype = compile_for(planted(fault, tmp_path)), DTYPES["half" in fault.file]
    assert_blamed(fault, lambda: attend(gpu, dtype, (1, 70, 1), 97))
