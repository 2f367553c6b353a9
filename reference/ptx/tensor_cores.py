"""What tensor cores compute: a product of matrices whose numbers the lanes of a warp hold.

Source: NVIDIA's "PTX ISA", chapter 9.7.14.5, "Matrix Fragments for mma.m16n8k16 with floating point
type", whose `groupID` and `threadID_in_group` are these.
"""

import numpy as np

GROUP, MEMBER = (part[:, None] for part in np.divmod(np.arange(32), 4))  # of each lane
# The row and the column of each number of a lane, [32, n].
_8, _4 = np.arange(8), np.arange(4)
A = GROUP + _8 // 2 % 2 * 8, 2 * MEMBER + _8 % 2 + _8 // 4 * 8  # 16 x 16
B = 2 * MEMBER + _4 % 2 + _4 // 2 * 8, GROUP + 0 * _4  # 16 x 8
C = GROUP + _4 // 2 * 8, 2 * MEMBER + _4 % 2  # 16 x 8


def multiply_accumulate(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Compute a @ b + c, rounded once; a GPU keeps fewer bits of the sum.

    Args:
        a: numbers of each lane, [n_warps, 32, 8], 16 x 16 of a warp.
        b: [n_warps, 32, 4], 16 x 8 of a warp.
        c: [n_warps, 32, 4], 16 x 8 of a warp.

    Returns:
        float32, as c.
    """
    left, right, sums = np.empty((3, len(a), 16, 16))
    left[:, *A], right[:, *B], sums[:, *C] = a, b, c
    return (left @ right[..., :8] + sums[..., :8])[:, *C].astype(np.float32)
