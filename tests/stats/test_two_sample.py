"""Shifts and ratios between samples match textbook results, and false positives are no more frequent than stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from harness.stats.two_sample import estimate_ratio, estimate_ratios, estimate_shift, estimate_shifts


@pytest.mark.parametrize(("n_a", "n_b"), [(1, 5), (3, 3), (6, 6), (5, 9), (40, 50), (60, 70)])
def test_p_matches_mann_whitney_of_scipy(n_a: int, n_b: int) -> None:
    rng = np.random.default_rng(n_a)
    a, b = rng.normal(size=(50, n_a)), rng.normal(0.5, size=(50, n_b))
    method = "exact" if n_a * n_b <= 2500 else "asymptotic"
    assert estimate_shifts(a, b).p == pytest.approx(stats.mannwhitneyu(a, b, axis=1, method=method).pvalue, abs=1e-9)


def test_p_with_ties_matches_the_normal_approximation_of_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (50, 12)).astype(float), rng.integers(1, 6, (50, 15)).astype(float)
    assert estimate_shifts(a, b).p == pytest.approx(
        stats.mannwhitneyu(a, b, axis=1, method="asymptotic").pvalue, abs=1e-9
    )


@pytest.mark.parametrize(("a", "b"), [([1.0, 2.0, 3.0], [7.0, 8.0, 9.0]), ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])])
def test_three_samples_against_three_are_not_significant(a: list[float], b: list[float]) -> None:
    shift = estimate_shift(a, b)
    assert shift.p == pytest.approx(0.1)
    assert shift.coverage == pytest.approx(0.9)
    assert (shift.low, shift.high) == (b[0] - a[-1], b[-1] - a[0])


@pytest.mark.parametrize(("n_a", "n_b"), [(4, 5), (6, 6), (12, 7), (60, 60)])
def test_intervals_cover_the_shift_at_their_stated_rate(n_a: int, n_b: int) -> None:
    rng = np.random.default_rng(n_b)
    trials = 4000
    a, b = rng.standard_exponential((trials, n_a)), 3 + rng.standard_exponential((trials, n_b))
    shift = estimate_shifts(a, b)
    coverage = np.mean((shift.low <= 3) & (shift.high >= 3))
    assert shift.coverage >= 0.95
    assert coverage == pytest.approx(shift.coverage, abs=4 * math.sqrt(0.05 * 0.95 / trials))
    assert np.mean(shift.p <= 0.05) > 0.8  # a shift of three standard deviations


@pytest.mark.parametrize(("n_a", "n_b"), [(5, 5), (6, 6), (60, 60)])
def test_equal_distributions_are_seldom_significant(n_a: int, n_b: int) -> None:
    rng = np.random.default_rng(1)
    shift = estimate_shifts(rng.standard_cauchy((8000, n_a)), rng.standard_cauchy((8000, n_b)))
    assert np.mean(shift.p <= 0.05) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 8000)


def test_estimate_is_the_median_of_all_pairwise_differences() -> None:
    a, b = [1.0, 2.0, 4.0], [3.0, 9.0]
    assert estimate_shift(a, b).estimate == np.median([[y - x for x in a] for y in b])


def test_swapping_the_samples_inverts_the_ratio_and_preserves_p() -> None:
    a, b = np.random.default_rng(2).lognormal(size=(2, 9))
    forward, backward = estimate_ratio(a, b), estimate_ratio(b, a)
    assert forward.p == backward.p
    assert (forward.estimate, forward.low, forward.high) == pytest.approx(
        (1 / backward.estimate, 1 / backward.high, 1 / backward.low)
    )


def test_ratio_is_independent_of_the_unit() -> None:
    a, b = np.random.default_rng(3).lognormal(size=(2, 9))
    in_s, in_ms = estimate_ratio(a, b), estimate_ratio(1000 * a, 1000 * b)
    assert (in_ms.estimate, in_ms.low, in_ms.high) == pytest.approx((in_s.estimate, in_s.low, in_s.high))
    assert estimate_ratio(np.full(6, 2.0), np.full(6, 2.12)).estimate == pytest.approx(1.06)


@pytest.mark.filterwarnings("error")
def test_rows_that_cannot_be_compared_are_nan() -> None:
    a = np.array([[1.0, 2.0], [0.0, 1.0], [1.0, np.nan], [np.inf, 1.0]])
    shift = estimate_ratios(a, np.full((4, 3), 2.0))
    assert np.isfinite(shift.p).tolist() == [True, False, False, False]
    assert np.isnan(shift.estimate).tolist() == [False, True, True, True]
    assert math.isnan(estimate_ratio([-1.0, 2.0], [1.0]).estimate)
    empty = estimate_shift([], [1.0, 2.0])
    assert all(math.isnan(x) for x in (empty.estimate, empty.low, empty.high, empty.p))
    assert estimate_shift([1.0, math.nan, 2.0], [3.0]).n_a == 2


@pytest.mark.filterwarnings("error")
def test_equal_constants_have_shift_zero_and_p_one() -> None:
    shift = estimate_shift([2.0] * 6, [2.0] * 6)
    assert (shift.estimate, shift.low, shift.high, shift.p) == (0, 0, 0, 1)


def test_long_samples_are_thinned_without_changing_the_interval() -> None:
    rng = np.random.default_rng(4)
    long = estimate_shift(rng.normal(size=20_000), rng.normal(0.1, size=20_000))
    assert long.estimate == pytest.approx(0.1, abs=0.03)
    assert long.high - long.low == pytest.approx(2 * 1.96 * math.sqrt(2 / 20_000) * math.sqrt(math.pi / 3), rel=0.1)
