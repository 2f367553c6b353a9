"""Kernels equal PyTorch on any grid, and each mistake planted into one is caught and named."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference.ptx
from reference.ptx import (
    Deadlock,
    Kernel,
    KernelError,
    Memory,
    MisalignedAddress,
    OutOfBounds,
    Race,
    UninitializedRead,
    launch,
)
from tests.ptx.kernels import ADD, SUM, TRIANGLE

MANY_SEEDS = range(5)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def add(text: str, n: int, block: int = 64, seed: int = 0) -> np.ndarray:
    memory, (x, y) = Memory(), normal(2, n)
    out = memory.empty((n,), np.float32, "out")
    arguments = [out, memory.put(x, "x", read_only=True), memory.put(y, "y", read_only=True), n]
    launch(Kernel.parse(text), -(-n // block), block, arguments, memory, seed=seed)
    return memory.get(out)


def sum_rows(text: str, rows: np.ndarray, seed: int = 0) -> np.ndarray:
    memory = Memory()
    out = memory.empty((len(rows),), np.float32, "out")
    launch(Kernel.parse(text), len(rows), 128, [out, memory.put(rows, "rows", read_only=True)], memory, seed=seed)
    return memory.get(out)


@given(n=st.integers(1, 300), block=st.integers(1, 130), seed=st.integers(0, 1000))
@settings(max_examples=50)
def test_vectors_are_added_whatever_the_grid(n: int, block: int, seed: int) -> None:
    x, y = map(torch.from_numpy, normal(2, n))
    assert np.array_equal(add(ADD, n, block, seed), (x + y).numpy())


@given(n_rows=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(max_examples=50)
def test_rows_are_summed_whatever_the_order_of_warps(n_rows: int, seed: int) -> None:
    rows = normal(n_rows, 128)
    expected = torch.from_numpy(rows).double().sum(dim=1).numpy()
    # Each sum is rounded seven times, and no partial sum is larger than that of the magnitudes.
    bound = 7 * 2**-24 * np.abs(rows).sum(axis=1)
    assert (np.abs(sum_rows(SUM, rows, seed) - expected) <= bound).all()


@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=70), seed=st.integers(0, 1000))
@settings(max_examples=50)
def test_threads_leave_a_loop_at_their_own_time(counts: list[int], seed: int) -> None:
    memory = Memory()
    out = memory.empty((len(counts),), np.int32)
    arguments = [out, memory.put(np.array(counts, np.int32))]
    launch(Kernel.parse(TRIANGLE), 1, len(counts), arguments, memory, seed=seed)
    assert memory.get(out).tolist() == [n * (n + 1) // 2 for n in counts]


def test_the_order_of_warps_changes_with_the_seed() -> None:
    """Without it, the mistakes below might hide behind a lucky order."""
    kernel, rows, steps = Kernel.parse(SUM), normal(4, 128), set()
    for seed in range(8):
        memory = Memory()
        steps.add(launch(kernel, 4, 128, [memory.empty((4,), np.float32), memory.put(rows)], memory, seed=seed))
    assert len(steps) > 1


@pytest.mark.parametrize("seed", MANY_SEEDS)
def test_a_missing_barrier_is_a_race_or_an_uninitialized_read(seed: int) -> None:
    """Which of them depends on which warp comes first."""
    with pytest.raises((Race, UninitializedRead), match=r"line \d+: (ld|st)\.shared.* in shared memory"):
        sum_rows(SUM.replace("bar.sync", "// bar.sync"), normal(3, 128), seed)


def test_a_missing_barrier_is_a_race_if_memory_was_written_before() -> None:
    first = "st.shared.b32 	[%r11], %r5;"
    text = SUM.replace("mov.b32 	%r6, 16;", "mov.b32 %r6, 16;").replace(
        "bar.sync 	0;", "bar.sync 	0;\n	@%p2 bra $L__BB0_4;\n	st.shared.b32 	[%r11], %r6;\n$L__BB0_4:\n"
    )
    assert first in text
    with pytest.raises(Race, match=r"thread \(\d+, 0, 0\) of block .*, with no barrier between"):
        sum_rows(text, normal(3, 128))


@pytest.mark.parametrize("seed", MANY_SEEDS)
def test_a_tail_that_is_off_by_one_is_out_of_bounds(seed: int) -> None:
    with pytest.raises(
        OutOfBounds, match=r"ld\.global.*thread \(36, 0, 0\) of block \(1, 0, 0\) .*byte 400 of 400 in x"
    ):
        add(ADD.replace("setp.ge.u32", "setp.gt.u32"), 100, seed=seed)


@pytest.mark.parametrize("seed", MANY_SEEDS)
def test_two_blocks_that_write_one_element_race(seed: int) -> None:
    text = ADD.replace("add.s64 	%rd7, %rd1, %rd4;", "mul.wide.u32 %rd7, %r4, 4;\n	add.s64 %rd7, %rd1, %rd7;")
    with pytest.raises(Race, match=r"writes byte \d+ of 800 in out, which thread .* of block .* wrote"):
        add(text, 200, seed=seed)


def test_a_shuffle_beyond_the_lanes_that_take_part_is_named() -> None:
    """The mask lists the lower half of the warp, and only they are there."""
    text = SUM.replace("shfl.sync.bfly.b32", "@%p2 shfl.sync.bfly.b32").replace(", 31, -1;", ", 31, 65535;")
    text = text.replace(
        "mov.b32 	%r6, 16;", "mov.b32 %r6, 16;\n	and.b32 %r12, %r2, 31;\n	setp.lt.u32 %p2, %r12, 16;"
    )
    with pytest.raises(KernelError, match=r"shfl.*reads a lane that does not take part"):
        sum_rows(text, normal(1, 128))


def test_a_shuffle_that_waits_for_a_lane_that_has_left_is_a_deadlock() -> None:
    text = SUM.replace("mov.b32 	%r6, 16;", "mov.b32 %r6, 16;\n	setp.eq.b32 %p2, %r2, 3;\n	@%p2 ret;")
    with pytest.raises(Deadlock, match=r"shfl.*waits for ever"):
        sum_rows(text, normal(1, 128))


def test_a_mask_that_leaves_lanes_out_sums_too_little() -> None:
    """Lanes outside the mask take part, too, so nothing waits: the result is wrong."""
    rows = normal(2, 128)
    wrong = sum_rows(SUM.replace(", 31, -1;", ", 7183, -1;"), rows)  # segments of four lanes
    assert np.abs(wrong - rows.sum(axis=1)).min() > 0.1


def test_a_misaligned_load_is_named() -> None:
    with pytest.raises(MisalignedAddress, match=r"ld\.shared\.v4.*byte 8 of 16 .*not a multiple of 16 bytes"):
        sum_rows(SUM.replace("}, [sum_parts];", "}, [sum_parts+8];"), normal(1, 128))


def test_reading_shared_memory_beyond_its_end_is_named() -> None:
    with pytest.raises(OutOfBounds, match=r"byte 16 of 16 in shared memory"):
        sum_rows(SUM.replace("}, [sum_parts];", "}, [sum_parts+16];"), normal(1, 128))


def test_reading_what_nobody_has_written_is_named() -> None:
    text = ADD.replace("add.s64 	%rd5, %rd2, %rd4;", "add.s64 	%rd5, %rd1, %rd4;")
    with pytest.raises(UninitializedRead, match=r"reads byte 0 of 40 in out, which nobody has written"):
        add(text, 10)


def test_writing_to_an_array_that_is_read_only_is_named() -> None:
    with pytest.raises(OutOfBounds, match=r"writes byte 0 of 40 in y, which is read-only"):
        add(re.sub(r"(add\.s64 	%rd7, )%rd1", r"\1%rd3", ADD), 10)


def test_a_register_that_nobody_has_set_is_nan() -> None:
    assert np.isnan(add(ADD.replace("%r8, %r6, %r7", "%r8, %r6, %r0"), 10)).all()


def test_the_example_in_the_readme_fails_as_it_says() -> None:
    text = (Path(reference.ptx.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = text.partition("## GPU kernels without a GPU")[2]
    code, printed = re.findall(r"```(?:python|text)\n(.*?)```", section, re.DOTALL)[:2]
    name, _, message = " ".join(printed.split()).partition(": ")
    with pytest.raises(OutOfBounds, match=re.escape(message)) as error:
        exec(code, {})
    assert name == f"{type(error.value).__module__}.{type(error.value).__name__}"


def test_an_unknown_instruction_is_named() -> None:
    with pytest.raises(NotImplementedError, match=r"add, line \d+: dp4a\.s32\.s32 %r8, %r6, %r7, %r6"):
        add(ADD.replace("add.f32 	%r8, %r6, %r7;", "dp4a.s32.s32 %r8, %r6, %r7, %r6;"), 10)


def test_a_launch_that_does_not_fit_the_kernel_is_refused() -> None:
    kernel, memory = Kernel.parse(SUM), Memory()
    with pytest.raises(ValueError, match="sum takes 2 arguments, not 1"):
        launch(kernel, 1, 128, [0], memory)
    with pytest.raises(ValueError, match="sum takes blocks of at most 128 threads, not 256"):
        launch(kernel, 1, 256, [0, 0], memory)
