"""Shifts between samples: the tests and intervals of the textbooks, and no significance by accident."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy import stats

from harness.stats.multiple_testing import benjamini_hochberg, holm
from harness.stats.two_sample import ratio, ratios, shift, shifts


@pytest.mark.parametrize(("n_a", "n_b"), [(1, 5), (3, 3), (6, 6), (5, 9), (40, 50), (60, 70)])
def test_p_is_that_of_mann_and_whitney(n_a: int, n_b: int) -> None:
    rng = np.random.default_rng(n_a)
    a, b = rng.normal(size=(50, n_a)), rng.normal(0.5, size=(50, n_b))
    method = "exact" if n_a * n_b <= 2500 else "asymptotic"
    assert shifts(a, b).p == pytest.approx(stats.mannwhitneyu(a, b, axis=1, method=method).pvalue, abs=1e-9)


def test_p_with_ties_is_the_normal_one() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (50, 12)).astype(float), rng.integers(1, 6, (50, 15)).astype(float)
    assert shifts(a, b).p == pytest.approx(stats.mannwhitneyu(a, b, axis=1, method="asymptotic").pvalue, abs=1e-9)


@pytest.mark.parametrize(("a", "b"), [([1.0, 2.0, 3.0], [7.0, 8.0, 9.0]), ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])])
def test_three_against_three_are_never_significant(a: list[float], b: list[float]) -> None:
    found = shift(a, b)
    assert found.p == pytest.approx(0.1)
    assert found.coverage == pytest.approx(0.9)
    assert (found.low, found.high) == (b[0] - a[-1], b[-1] - a[0])


@pytest.mark.parametrize(("n_a", "n_b"), [(4, 5), (6, 6), (12, 7), (60, 60)])
def test_intervals_cover_as_often_as_they_say(n_a: int, n_b: int) -> None:
    rng = np.random.default_rng(n_b)
    trials = 4000
    a, b = rng.standard_exponential((trials, n_a)), 3 + rng.standard_exponential((trials, n_b))
    found = shifts(a, b)
    hit = np.mean((found.low <= 3) & (found.high >= 3))
    assert found.coverage >= 0.95
    assert hit == pytest.approx(found.coverage, abs=4 * math.sqrt(0.05 * 0.95 / trials))
    assert np.mean(found.p <= 0.05) > 0.8  # a shift of three spreads is seen


@pytest.mark.parametrize(("n_a", "n_b"), [(5, 5), (6, 6), (60, 60)])
def test_alike_samples_are_seldom_significant(n_a: int, n_b: int) -> None:
    rng = np.random.default_rng(1)
    found = shifts(rng.standard_cauchy((8000, n_a)), rng.standard_cauchy((8000, n_b)))
    assert np.mean(found.p <= 0.05) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 8000)


def test_the_estimate_is_the_median_difference_of_all_pairs() -> None:
    a, b = [1.0, 2.0, 4.0], [3.0, 9.0]
    assert shift(a, b).estimate == np.median([[y - x for x in a] for y in b])


def test_p_is_the_same_either_way_and_the_estimate_turns_round() -> None:
    a, b = np.random.default_rng(2).lognormal(size=(2, 9))
    there, back = ratio(a, b), ratio(b, a)
    assert there.p == back.p
    assert (there.estimate, there.low, there.high) == pytest.approx((1 / back.estimate, 1 / back.high, 1 / back.low))


def test_a_ratio_has_no_unit() -> None:
    a, b = np.random.default_rng(3).lognormal(size=(2, 9))
    in_s, in_ms = ratio(a, b), ratio(1000 * a, 1000 * b)
    assert (in_ms.estimate, in_ms.low, in_ms.high) == pytest.approx((in_s.estimate, in_s.low, in_s.high))
    assert ratio(a, 1.06 * a).estimate == pytest.approx(1.06, rel=0.5)
    assert ratio(np.full(6, 2.0), np.full(6, 2.12)).estimate == pytest.approx(1.06)


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_compared_is_nan_beside_what_can() -> None:
    a = np.array([[1.0, 2.0], [0.0, 1.0], [1.0, np.nan], [np.inf, 1.0]])
    found = ratios(a, np.full((4, 3), 2.0))
    assert np.isfinite(found.p).tolist() == [True, False, False, False]
    assert np.isnan(found.estimate).tolist() == [False, True, True, True]
    assert math.isnan(ratio([-1.0, 2.0], [1.0]).estimate)
    empty = shift([], [1.0, 2.0])
    assert all(math.isnan(x) for x in (empty.estimate, empty.low, empty.high, empty.p))
    assert shift([1.0, math.nan, 2.0], [3.0]).n_a == 2


@pytest.mark.filterwarnings("error")
def test_constants_are_alike() -> None:
    same = shift([2.0] * 6, [2.0] * 6)
    assert (same.estimate, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_long_samples_are_represented_by_their_quantiles() -> None:
    rng = np.random.default_rng(4)
    long = shift(rng.normal(size=20_000), rng.normal(0.1, size=20_000))
    assert long.estimate == pytest.approx(0.1, abs=0.03)
    assert long.high - long.low == pytest.approx(2 * 1.96 * math.sqrt(2 / 20_000) * math.sqrt(math.pi / 3), rel=0.1)


def test_ten_thousand_comparisons_within_half_a_second() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.lognormal(size=(2, 10_000, 6))
    taken = []
    for _ in range(3):
        began = time.process_time()
        ratios(a, b)
        taken.append(time.process_time() - began)
    assert min(taken) <= 0.5


def test_a_false_discovery_rate_is_that_of_scipy() -> None:
    p = np.random.default_rng(6).random(200) ** 3
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))
    assert np.isnan(benjamini_hochberg([0.01, math.nan])).tolist() == [False, True]


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03, math.nan]) == pytest.approx([0.06, 0.03, 0.06, math.nan], nan_ok=True)
    assert holm([0.5, 0.6]).tolist() == [1, 1]
    assert holm([]).shape == (0,)


def test_holm_is_hardly_ever_wrong_and_finds_what_is_there() -> None:
    rng = np.random.default_rng(7)
    alike = rng.random((2000, 50))
    wrong = np.mean([(holm(p) <= 0.05).any() for p in alike])
    assert wrong <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)
    assert (holm([1e-6, *alike[0]]) <= 0.05)[0]
