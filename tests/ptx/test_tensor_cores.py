"""Products of matrices in a warp equal PyTorch's, and need the whole warp."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from reference.ptx import Deadlock, Kernel, KernelError, Memory, launch

# Multiplies the fragments that each thread has, [n, 8] and [n, 4], and adds others, [n, 4].
MULTIPLY = """
.visible .entry multiply(.param .u64 d, .param .u64 a, .param .u64 b, .param .u64 c)
{
	.reg .pred 	%p<2>;
	.reg .b32 	%r<20>;
	.reg .b64 	%rd<9>;

	mov.u32 	%r1, %tid.x;
	setp.eq.b32 	%p1, %r1, 3;
	ld.param.b64 	%rd1, [a];
	mad.wide.u32 	%rd2, %r1, 16, %rd1;
	ld.global.v4.b32 	{%r2, %r3, %r4, %r5}, [%rd2];
	ld.param.b64 	%rd3, [b];
	mad.wide.u32 	%rd4, %r1, 8, %rd3;
	ld.global.v2.b32 	{%r6, %r7}, [%rd4];
	ld.param.b64 	%rd5, [c];
	mad.wide.u32 	%rd6, %r1, 16, %rd5;
	ld.global.v4.b32 	{%r8, %r9, %r10, %r11}, [%rd6];
	mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
		{%r8, %r9, %r10, %r11}, {%r2, %r3, %r4, %r5}, {%r6, %r7}, {%r8, %r9, %r10, %r11};
	ld.param.b64 	%rd7, [d];
	mad.wide.u32 	%rd8, %r1, 16, %rd7;
	st.global.v4.b32 	[%rd8], {%r8, %r9, %r10, %r11};
	ret;
}
"""


def fragments(matrix: np.ndarray, name: str) -> np.ndarray:
    """Return what each lane holds of a matrix, as the PTX ISA lists it, number by number."""
    lanes = []
    for lane in range(32):
        group, member = lane // 4, lane % 4
        if name == "a":
            places = [
                (group if i in (0, 1, 4, 5) else group + 8, member * 2 + (i & 1) + (0 if i < 4 else 8))
                for i in range(8)
            ]
        elif name == "b":
            places = [(member * 2 + (i & 1) + (0 if i < 2 else 8), group) for i in range(4)]
        else:
            places = [(group if i < 2 else group + 8, member * 2 + (i & 1)) for i in range(4)]
        lanes.append([matrix[place] for place in places])
    return np.array(lanes)


def multiply(text: str, matrices: list[np.ndarray], n_threads: int = 32) -> np.ndarray:
    """Run the kernel on a [16, 16], b [16, 8] and c [16, 8], and return d's fragments."""
    memory = Memory()
    arrays = [fragments(matrix, name) for matrix, name in zip(matrices, "abc")]
    addresses = [memory.put(array, name) for array, name in zip(arrays, "abc")]
    d = memory.empty((32, 4), np.float32, "d")
    launch(Kernel.parse(text), 1, n_threads, [d, *addresses], memory)
    return memory.get(d)


def random_matrices(dtype: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(shape) for shape in ((16, 16), (16, 8), (16, 8)))
    return [a.astype(dtype), b.astype(dtype), c.astype(np.float32)]


@pytest.mark.parametrize(("type", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_matrices_are_multiplied(type: str, dtype: Any) -> None:
    matrices = random_matrices(dtype)
    a, b, c = (torch.from_numpy(matrix.astype(np.float64)) for matrix in matrices)
    d = multiply(MULTIPLY.replace("f16.f16", f"{type}.{type}"), matrices)
    assert np.array_equal(d, fragments((a @ b + c).float().numpy(), "c"))


def test_a_lane_that_does_not_take_part_is_an_error() -> None:
    with pytest.raises(KernelError, match=r"mma.*without all lanes of its warp"):
        multiply(MULTIPLY.replace("mma.sync", "@!%p1 mma.sync"), random_matrices(np.float16))
    with pytest.raises(KernelError, match=r"mma.*without all lanes of its warp"):
        multiply(MULTIPLY, random_matrices(np.float16), n_threads=16)
    with pytest.raises(Deadlock, match=r"mma.*waits for ever"):
        multiply(MULTIPLY.replace("	mma.sync", "	@%p1 ret;\n	mma.sync"), random_matrices(np.float16))


def test_other_shapes_are_unknown() -> None:
    with pytest.raises(NotImplementedError, match="m16n8k8"):
        multiply(MULTIPLY.replace("m16n8k16", "m16n8k8"), random_matrices(np.float16))
