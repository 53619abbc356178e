"""Intervals of the median and the mean cover the true value at their stated rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.stats.intervals import compute_geometric_mean_interval, compute_mean_interval, compute_median_interval

samples = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40)
confidences = st.sampled_from([0.5, 0.9, 0.95, 0.99])


@pytest.mark.parametrize("n", [6, 9, 15, 40])
def test_median_interval_covers_the_median_at_its_stated_rate(n: int) -> None:
    rng = np.random.default_rng(n)
    trials = 4000
    hits, coverage = 0, 0.0
    for _ in range(trials):
        interval = compute_median_interval(rng.lognormal(size=n).tolist())
        hits += interval.low <= 1.0 <= interval.high
        coverage = interval.coverage
    assert coverage >= 0.95
    assert hits / trials == pytest.approx(coverage, abs=3 * math.sqrt(0.05 * 0.95 / trials))


@given(x=samples, confidence=confidences)
def test_median_interval_is_the_narrowest_that_covers(x: list[float], confidence: float) -> None:
    interval = compute_median_interval(x, confidence)
    ordered = sorted(x)
    coverages = [
        1 - 2 * sum(math.comb(len(x), i) for i in range(k + 1)) / 2 ** len(x) for k in range((len(x) + 1) // 2)
    ]
    k = max((k for k, coverage in enumerate(coverages) if coverage >= confidence), default=0)
    assert (interval.low, interval.high) == (ordered[k], ordered[-1 - k])
    assert interval.coverage == pytest.approx(coverages[k], rel=1e-12, abs=1e-15)


def test_median_interval_of_few_samples_has_the_extremes_and_their_true_coverage() -> None:
    interval = compute_median_interval([3.0, 1.0, 2.0])
    assert (interval.low, interval.value, interval.high, interval.n) == (1.0, 2.0, 3.0, 3)
    assert interval.coverage == pytest.approx(0.75)


def test_median_interval_without_samples_is_nan() -> None:
    interval = compute_median_interval([])
    assert math.isnan(interval.value)
    assert interval.n == 0


@given(x=samples, confidence=confidences)
def test_mean_interval_matches_student_interval_of_scipy(x: list[float], confidence: float) -> None:
    interval = compute_mean_interval(x, confidence)
    half_width = stats.t.ppf((1 + confidence) / 2, len(x) - 1) * stats.sem(x)
    assert (interval.high - interval.low) / 2 == pytest.approx(half_width, rel=1e-9, abs=1e-9 * max(map(abs, x)))
    assert (interval.high + interval.low) / 2 == pytest.approx(np.mean(x), rel=1e-9, abs=1e-9 * half_width)


def test_mean_interval_is_nan_with_fewer_than_two_samples() -> None:
    assert compute_mean_interval([2.0]).value == 2.0
    assert math.isnan(compute_mean_interval([2.0]).low)
    assert math.isnan(compute_mean_interval([]).value)


@given(x=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=20))
def test_geometric_mean_interval_is_the_mean_interval_of_logarithms(x: list[float]) -> None:
    interval, logarithms = compute_geometric_mean_interval(x), compute_mean_interval(np.log(x))
    assert interval.value == pytest.approx(stats.gmean(x))
    assert math.log(interval.value) == pytest.approx(logarithms.value, abs=1e-9)
    assert interval.low == pytest.approx(math.exp(logarithms.low))
