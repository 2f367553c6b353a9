"""The comparator fails in every way in which it should."""

import numpy as np
import pytest

from reference.numerics.bounds import Approx, gamma, matmul
from reference.numerics.compare import MAX_RMS, Verdict, Worst, compare

SINGLE = np.dtype(np.float32)


def about(value: np.ndarray, worst: float = 1e-6, typical: float = 1e-7) -> Approx:
    return Approx(value, np.full_like(value, worst), np.full_like(value, typical))


def test_a_verdict_and_its_text_have_every_number() -> None:
    """Check n, the largest ratio and its index, the root mean square, and the vacuous elements."""
    value = np.array([[4.0, 8.0], [16.0, 0.0]])
    actual = value.astype(np.float32) + np.array([[0.25, -1.75], [0.0, 0.0]], np.float32)
    expected = Approx(value, np.array([[1.0, 4.0], [16.0, 17.0]]), np.array([[0.25, 0.25], [0.0, 0.0]]))
    verdict = compare(actual, expected, SINGLE)
    rms = np.sqrt((1**2 + 7**2) / 2)  # over the elements whose typical error is not zero
    worst = Worst((0, 1), 6.25, 8.0, 4.0)
    failure = f"root mean square of errors {rms:.3g} times the typical one (the other implementation's 0)"
    assert verdict == Verdict(4, [failure], 1.75 / 4, rms / MAX_RMS, 1, worst)
    ratios = "0.438 of the worst-case bound, 1.25 of the statistical bound"
    assert str(verdict) == f"{failure}; {ratios}; worst at [0, 1]: 6.25, float64 8, off by 1.75, bound 4"
    passing = compare(
        actual, expected, SINGLE, peer=value.astype(np.float32) + np.float32(0.5) * (expected.typical > 0)
    )
    assert (passing.failures, passing.rms_ratio) == ([], rms / MAX_RMS / 2)
    assert str(passing) == "0.438 of the worst-case bound, 0.625 of the statistical bound"


def test_errors_equal_to_either_bound_pass() -> None:
    value = np.full(3, 8.0)
    assert compare(value.astype(np.float32) + 1, about(value, worst=1.0, typical=0.25), SINGLE).passes
    over = compare(value.astype(np.float32) + 1.5, about(value, worst=1.0, typical=1.0), SINGLE)
    assert over.failures == ["3 of 3 elements exceed the worst-case bound"]
    partly = compare(np.array([9, 9.5, 8], np.float32), about(value, worst=1.0, typical=1.0), SINGLE)
    assert partly.failures == ["1 of 3 elements exceed the worst-case bound"]


def test_bounds_of_zero_require_equality() -> None:
    value = np.array([1.0, 2.0])
    verdict = compare(value.astype(np.float32), about(value, worst=0.0, typical=0.0), SINGLE)
    assert (verdict.passes, verdict.worst_case_ratio, verdict.rms_ratio, verdict.n_vacuous) == (True, 0.0, 0.0, 0)
    assert (
        compare(np.array([1, 2.5], np.float32), about(value, worst=0.0, typical=0.0), SINGLE).worst_case_ratio == np.inf
    )
    assert compare(np.zeros(2, np.float32), about(0 * value), SINGLE).n_vacuous == 0


def test_a_reason_why_arrays_cannot_be_compared_is_described() -> None:
    two = np.array([1.0, 2.0])
    assert compare(two, about(two), SINGLE) == Verdict(2, ["dtype float64 instead of float32"])
    assert compare(np.zeros(3, np.float32), about(two), SINGLE) == Verdict(3, ["shape (3,) instead of (2,)"])
    assert compare(np.zeros(0, np.float32), about(np.zeros(0)), SINGLE) == Verdict(0, ["nothing was compared"])
    assert compare(two.astype(np.float32), about(two, worst=-1.0), SINGLE) == Verdict(
        2, ["the bound itself is not a number"]
    )
    infinite = compare(np.array([1, np.inf], np.float32), about(two, worst=0.5), SINGLE)
    failure = "not finite where float64 is, or the other way round: 1 of 2 elements"
    assert infinite == Verdict(2, [failure], np.inf, np.inf, 0, Worst((1,), np.inf, 2.0, 0.5))


def test_nan_in_the_peer_excuses_nothing() -> None:
    actual, peer = np.full(2, 1 + 8e-7, np.float32), np.array([np.nan, 1], np.float32)
    verdict = compare(actual, about(np.ones(2)), SINGLE, peer)
    assert verdict.rms_ratio == compare(actual, about(np.ones(2)), SINGLE).rms_ratio > 1


def test_equal_values_pass() -> None:
    value = np.linspace(-1, 1, 12).reshape(3, 4)
    verdict = compare(value.astype(np.float32), about(value), SINGLE)
    assert verdict.passes and verdict.n == 12
    assert verdict.worst_case_ratio < 0.1


@pytest.mark.parametrize(
    ("actual", "expected", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3)), "dtype float64 instead of float32"),
        (np.zeros((2, 1), np.float32), np.zeros((2, 3)), r"shape \(2, 1\) instead of \(2, 3\)"),
        (np.zeros((0, 3), np.float32), np.zeros((0, 3)), "nothing was compared"),
        (np.array([1, np.nan], np.float32), np.array([1.0, 2.0]), "not finite where float64 is"),
        (np.array([1, 2], np.float32), np.array([1.0, np.nan]), "not finite where float64 is"),
        (np.array([1, np.inf], np.float32), np.array([1.0, -np.inf]), "not finite where float64 is"),
        (np.array([1, 2 + 3e-6], np.float32), np.array([1.0, 2.0]), "1 of 2 elements exceed the worst-case bound"),
        (np.full(100, 1 + 8e-7, np.float32), np.ones(100), "root mean square of errors"),
    ],
)
def test_every_kind_of_difference_fails(actual: np.ndarray, expected: np.ndarray, message: str) -> None:
    verdict = compare(actual, about(expected), SINGLE)
    assert not verdict.passes
    with pytest.raises(AssertionError, match=message):
        assert verdict.passes, str(verdict)


def test_the_worst_element_is_described() -> None:
    actual = np.zeros((2, 3), np.float32)
    actual[1, 2] = 0.5
    verdict = compare(actual, about(np.zeros((2, 3)), worst=0.25), SINGLE)
    assert verdict.worst_case_ratio == 2
    assert "worst at [1, 2]: 0.5, float64 0, off by 0.5, bound 0.25" in str(verdict)


def test_infinities_and_nans_in_the_same_places_pass() -> None:
    value = np.array([np.inf, -np.inf, np.nan, 1.0])
    assert compare(value.astype(np.float32), about(value), SINGLE).passes


def test_a_result_near_overflow_may_be_finite_or_infinite() -> None:
    value = np.array([65519.0, 1.0])  # float16 rounds 65519 to 65504, and 65520 to infinity
    for computed in (65504, np.inf):
        assert compare(
            np.array([computed, 1], np.float16), about(value, worst=32, typical=16), np.dtype(np.float16)
        ).passes
    for computed in (np.nan, -np.inf, 0, -5, 65408):
        assert not compare(
            np.array([computed, 1], np.float16), about(value, worst=32, typical=16), np.dtype(np.float16)
        ).passes
    assert not compare(np.full(3, np.nan, np.float32), about(np.full(3, 1e39)), SINGLE).passes


def test_a_bound_that_is_nan_or_negative_fails() -> None:
    for bound in ({"worst": np.nan}, {"typical": np.nan}, {"worst": -1.0}):
        assert compare(np.array([123], np.float32), about(np.array([1.0]), **bound), SINGLE).failures == [
            "the bound itself is not a number"
        ]


def test_vacuous_elements_are_counted() -> None:
    verdict = compare(np.zeros(4, np.float32), Approx(np.ones(4), np.array([0.1, 2, 2, 2]), np.ones(4)), SINGLE)
    assert verdict.n_vacuous == 3


def test_a_peer_with_the_same_errors_excuses_them() -> None:
    """The problem itself is ill-conditioned then."""
    actual = np.full(100, 1 + 8e-7, np.float32)
    assert not compare(actual, about(np.ones(100)), SINGLE).passes
    assert compare(actual, about(np.ones(100)), SINGLE, peer=actual).passes


def test_one_wrong_channel_among_many_fails() -> None:
    """Its errors are inside the worst-case bound, and too rare to show in the RMS of all."""
    truth = np.ones((64, 1000))
    expected = Approx(truth, np.full_like(truth, 1e-3), np.full_like(truth, 1e-6))
    wrong = truth.copy()
    wrong[:, 3] += 9e-6
    verdict = compare(wrong, expected, np.dtype(np.float64))
    assert verdict.failures == ["root mean square of errors 9 times the typical one at index 3 of the last axis"]
    # 1 + 9e-6 is rounded to a multiple of 2^-52.
    assert verdict.rms_ratio == pytest.approx(9 / 8, rel=2.0**-52 / 9e-6)
    assert compare(np.where(wrong > 1, 1 + 7e-6, 1), expected, np.dtype(np.float64)).passes
    assert compare(wrong, expected, np.dtype(np.float64), peer=wrong).passes
    fewer = Approx(*(array[:63] for array in (expected.value, expected.worst, expected.typical)))
    assert compare(wrong[:63], fewer, np.dtype(np.float64)).passes


def test_bounds_count_only_terms_that_are_not_zero() -> None:
    a, b = np.array([[1.0, 0.0, 2.0]]), np.array([[3.0], [5.0], [7.0]])
    u = 2.0**-24
    assert matmul(Approx.exact(a), Approx.exact(b), u).worst == pytest.approx(17 * float(gamma(2, u)))
    assert matmul(Approx.exact(0 * a), Approx.exact(b), u).worst == 0


def test_bounds_are_never_exceeded_by_float32_sums(rng: np.random.Generator) -> None:
    """Terms are added in the worst order, one after the other."""
    a, b = rng.standard_normal((20, 300)).astype(np.float32), rng.standard_normal((300, 20)).astype(np.float32)
    total = np.zeros((20, 20), np.float32)
    for k in range(300):
        total = total + a[:, k : k + 1] * b[k]
    verdict = compare(total, matmul(Approx.exact(a.astype(float)), Approx.exact(b.astype(float)), 2.0**-24), SINGLE)
    assert verdict.passes, str(verdict)
    # The model of independent roundings is right within a factor of two.
    assert 0.1 < verdict.rms_ratio < 0.5
