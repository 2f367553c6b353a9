"""Kernels that programmatic dependent launch overlaps use nothing that is not there yet."""

import numpy as np
import pytest

from reference.ptx import Kernel, Memory, Race, Stream

WAIT, TRIGGER = "griddepcontrol.wait;", "griddepcontrol.launch_dependents;"


def copying(*before: str, after: str = "") -> Kernel:
    """Return a kernel that copies x to y, a word for each thread.

    Args:
        before: instructions before it reads x.
        after: instructions before it writes y.
    """
    return Kernel.parse(f"""
.visible .entry copying(.param .u64 y, .param .u64 x)
{{
	.reg .b32 %r<3>;
	.reg .b64 %rd<5>;
	ld.param.b64 %rd1, [y];
	ld.param.b64 %rd2, [x];
	mov.u32 %r1, %tid.x;
	mad.wide.u32 %rd3, %r1, 4, %rd2;
	mad.wide.u32 %rd4, %r1, 4, %rd1;
	{" ".join(before)}
	ld.global.b32 %r2, [%rd3];
	{after}
	st.global.b32 [%rd4], %r2;
	ret;
}}
""")


def run(*kernels: Kernel, reads: tuple[int, ...] = (0, 1, 2, 3), overlaps: bool = True) -> np.ndarray:
    """Copy array 0 to 1, 1 to 2 and so on, each kernel overlapping the one before.

    Args:
        kernels: of `copying`.
        reads: which array each kernel reads.
        overlaps: whether kernels overlap.
    """
    memory = Memory()
    arrays = [memory.put(np.arange(64, dtype=np.uint32) + 100 * i, f"array {i}") for i in range(len(kernels) + 1)]
    stream = Stream(memory)
    for i, kernel in enumerate(kernels):
        stream.launch(kernel, 1, 64, [arrays[i + 1], arrays[reads[i]]], overlaps=overlaps)
    return memory.get(arrays[len(kernels)])


def test_kernels_that_wait_are_in_order() -> None:
    assert run(*[copying(WAIT, TRIGGER)] * 4).tolist() == list(range(64))
    assert run(*[copying(TRIGGER, WAIT)] * 4).tolist() == list(range(64))


def test_kernels_that_do_not_overlap_need_not_wait() -> None:
    assert run(*[copying()] * 4, overlaps=False).tolist() == list(range(64))


def test_reading_before_waiting_is_a_race() -> None:
    early = copying(TRIGGER, after=WAIT)
    with pytest.raises(Race, match=r"reads byte 0 of 256 in array 1, which kernel 0 .* before griddepcontrol\.wait"):
        run(copying(TRIGGER, WAIT), early)
    assert run(copying(TRIGGER, WAIT), early, reads=(0, 0)).tolist() == list(range(64))


def test_never_waiting_is_a_race() -> None:
    with pytest.raises(Race, match="which kernel 0 of the stream wrote"):
        run(copying(), copying())


def test_what_the_kernel_before_the_last_wrote_is_there_only_if_the_last_waited_first() -> None:
    """The third kernel reads the first one's result before it waits."""
    early = copying(TRIGGER, after=WAIT)
    assert run(copying(WAIT), copying(WAIT, TRIGGER), early, reads=(0, 1, 1)).tolist() == list(range(64))
    with pytest.raises(Race, match="which kernel 0 of the stream wrote"):
        run(copying(WAIT), copying(TRIGGER, WAIT), early, reads=(0, 1, 1))


def test_waiting_for_a_kernel_that_did_not_wait_is_not_enough() -> None:
    with pytest.raises(Race, match="which kernel 0 of the stream wrote, after waiting for another only"):
        run(copying(WAIT), copying(TRIGGER), copying(WAIT), reads=(0, 0, 1))


def test_overwriting_what_the_kernel_before_may_still_read_is_a_race() -> None:
    memory = Memory()
    x, y, z = (memory.put(np.arange(64, dtype=np.uint32), name) for name in "xyz")
    stream = Stream(memory)
    stream.launch(copying(TRIGGER, WAIT), 1, 64, [y, x], overlaps=True)
    with pytest.raises(Race, match="writes byte 0 of 256 in x, which kernel 0 of the stream read"):
        stream.launch(copying(), 1, 64, [x, z], overlaps=True)
