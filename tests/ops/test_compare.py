"""The comparator can fail, in every way it should."""

import numpy as np
import pytest

from reference.bounds import Approx, gamma, matmul
from reference.compare import compare

SINGLE = np.dtype(np.float32)


def about(value: np.ndarray, worst: float = 1e-6, typical: float = 1e-7) -> Approx:
    return Approx(value, np.full_like(value, worst), np.full_like(value, typical))


def test_equal_values_pass() -> None:
    value = np.linspace(-1, 1, 12).reshape(3, 4)
    verdict = compare(value.astype(np.float32), about(value), SINGLE)
    assert verdict.passes and verdict.n == 12
    assert verdict.share < 0.1


@pytest.mark.parametrize(
    ("actual", "expected", "says"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3)), "dtype float64 instead of float32"),
        (np.zeros((2, 1), np.float32), np.zeros((2, 3)), r"shape \(2, 1\) instead of \(2, 3\)"),
        (np.zeros((0, 3), np.float32), np.zeros((0, 3)), "nothing was compared"),
        (np.array([1, np.nan], np.float32), np.array([1.0, 2.0]), "not finite where float64 is"),
        (np.array([1, 2], np.float32), np.array([1.0, np.nan]), "not finite where float64 is"),
        (np.array([1, np.inf], np.float32), np.array([1.0, -np.inf]), "not finite where float64 is"),
        (np.array([1, 2 + 3e-6], np.float32), np.array([1.0, 2.0]), "1 of 2 elements exceed the rigorous bound"),
        (np.full(100, 1 + 8e-7, np.float32), np.ones(100), "root mean square of errors"),
    ],
)
def test_every_kind_of_difference_fails(actual: np.ndarray, expected: np.ndarray, says: str) -> None:
    verdict = compare(actual, about(expected), SINGLE)
    assert not verdict.passes
    with pytest.raises(AssertionError, match=says):
        assert verdict.passes, str(verdict)


def test_the_worst_element_is_described() -> None:
    actual = np.zeros((2, 3), np.float32)
    actual[1, 2] = 0.5
    verdict = compare(actual, about(np.zeros((2, 3)), worst=0.25), SINGLE)
    assert verdict.share == 2
    assert "worst at [1, 2]: 0.5, float64 0, off by 0.5, bound 0.25" in str(verdict)


def test_infinities_and_nans_in_the_same_places_pass() -> None:
    value = np.array([np.inf, -np.inf, np.nan, 1.0])
    assert compare(value.astype(np.float32), about(value), SINGLE).passes


def test_what_overflows_may_be_infinite_or_not() -> None:
    value = np.array([65519.0, 1.0])  # rounds to 65504, or, a little above, to infinity
    for computed in (65504, np.inf):
        assert compare(np.array([computed, 1], np.float16), about(value, worst=32, typical=16), np.dtype(np.float16)).passes
    for computed in (np.nan, -np.inf, 0, -5, 65408):
        assert not compare(np.array([computed, 1], np.float16), about(value, worst=32, typical=16), np.dtype(np.float16)).passes
    assert not compare(np.full(3, np.nan, np.float32), about(np.full(3, 1e39)), SINGLE).passes


def test_a_bound_that_is_no_number_is_none() -> None:
    for bound in ({"worst": np.nan}, {"typical": np.nan}, {"worst": -1.0}):
        assert compare(np.array([123], np.float32), about(np.array([1.0]), **bound), SINGLE).failures == [
            "the bound itself is not a number"
        ]


def test_elements_that_nothing_could_exceed_are_counted() -> None:
    verdict = compare(np.zeros(4, np.float32), Approx(np.ones(4), np.array([0.1, 2, 2, 2]), np.ones(4)), SINGLE)
    assert verdict.n_vacuous == 3


def test_a_sound_peer_with_larger_errors_excuses_ours() -> None:
    """Where the problem itself is ill-conditioned."""
    actual = np.full(100, 1 + 8e-7, np.float32)
    assert not compare(actual, about(np.ones(100)), SINGLE).passes
    assert compare(actual, about(np.ones(100)), SINGLE, peer=actual).passes


def test_bounds_count_only_terms_that_are_not_zero() -> None:
    a, b = np.array([[1.0, 0.0, 2.0]]), np.array([[3.0], [5.0], [7.0]])
    u = 2.0**-24
    assert matmul(Approx.exact(a), Approx.exact(b), u).worst == pytest.approx(17 * float(gamma(2, u)))
    assert matmul(Approx.exact(0 * a), Approx.exact(b), u).worst == 0


def test_bounds_are_never_exceeded_by_float32_sums(rng: np.random.Generator) -> None:
    """In the worst order: one after the other."""
    a, b = rng.standard_normal((20, 300)).astype(np.float32), rng.standard_normal((300, 20)).astype(np.float32)
    total = np.zeros((20, 20), np.float32)
    for k in range(300):
        total = total + a[:, k : k + 1] * b[k]
    verdict = compare(total, matmul(Approx.exact(a.astype(float)), Approx.exact(b.astype(float)), 2.0**-24), SINGLE)
    assert verdict.passes, str(verdict)
    assert 0.1 < verdict.sharp_share < 0.5  # the model of independent roundings fits within a factor of two
