"""A difference is described by the pattern it resembles, or not at all if none fits."""

import numpy as np
import pytest

from reference.numerics.dtypes import DTYPES
from reference.parity.resemblance import resemblance

RNG = np.random.default_rng(0)
RIGHT = RNG.standard_normal((2, 6, 8, 5))
SQUARE = RNG.standard_normal((1, 7, 7))


def from_position(t: int) -> np.ndarray:
    wrong = RIGHT.copy()
    wrong[:, :, t:] += RNG.standard_normal(wrong[:, :, t:].shape)
    return wrong


def only(index: tuple[slice | int, ...]) -> np.ndarray:
    wrong = RIGHT.copy()
    wrong[index] += RNG.standard_normal(wrong[index].shape)
    return wrong


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (RIGHT / 8, "a constant factor of 0.125"),
        (-RIGHT, "a constant factor of -1"),
        (np.roll(RIGHT, 1, 2), "shifted by one along axis 2"),
        (np.roll(RIGHT, -1, 1), "shifted by one along axis 1"),
        (only((slice(None), 3)), "wrong only at index 3 of axis 1"),
        (only((slice(None), slice(None), slice(None), 4)), "wrong only at index 4 of axis 3"),
        (from_position(5), "wrong from index 5 of axis 2 on"),
        (np.minimum(RIGHT, 0.5), "cut off above 0.5"),
        (np.maximum(RIGHT, -0.5), "cut off below -0.5"),
        (
            RIGHT + RNG.standard_normal(5),
            "a term that is the same at every position is missing, or one too many (a bias?)",
        ),
        (0 * RIGHT, "all zeros"),
        (RIGHT.astype(np.float16), "the right one, rounded to float16"),
        (RIGHT.astype(DTYPES["bfloat16"]).astype(np.float32), "the right one, rounded to bfloat16"),
        (RIGHT[:, :3], "shape [2, 3, 8, 5] instead of [2, 6, 8, 5]"),
        (RIGHT + RNG.standard_normal(RIGHT.shape), ""),
    ],
)
def test_known_patterns(wrong: np.ndarray, message: str) -> None:
    assert resemblance(wrong, RIGHT) == message


def test_a_transposed_square() -> None:
    assert resemblance(SQUARE.swapaxes(1, 2), SQUARE) == "axes 1 and 2 swapped"


def test_an_unchanged_input() -> None:
    x = RNG.standard_normal(RIGHT.shape)
    assert resemblance(x, RIGHT, {"y": RIGHT + x, "x": x}) == "its input x, unchanged"


def test_nan_in_part_of_an_array() -> None:
    wrong = RIGHT.copy()
    wrong[1, :, 2, :] = np.nan
    assert resemblance(wrong, RIGHT) == "wrong only at index 2 of axis 2"
