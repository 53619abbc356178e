"""Intervals cover what they claim to cover."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.stats.intervals import median_interval


@pytest.mark.parametrize("n", [6, 9, 15, 40])
def test_the_interval_covers_the_median_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(n)
    trials = 4000
    hits, coverage = 0, 0.0
    for _ in range(trials):
        interval = median_interval(rng.lognormal(size=n).tolist())
        hits += interval.low <= 1.0 <= interval.high
        coverage = interval.coverage
    assert coverage >= 0.95
    assert hits / trials == pytest.approx(coverage, abs=3 * math.sqrt(0.05 * 0.95 / trials))


def test_few_samples_give_the_extremes_and_their_true_coverage() -> None:
    interval = median_interval([3.0, 1.0, 2.0])
    assert (interval.low, interval.median, interval.high, interval.n) == (1.0, 2.0, 3.0, 3)
    assert interval.coverage == 0.75


def test_no_samples_give_no_number() -> None:
    interval = median_interval([])
    assert math.isnan(interval.median)
    assert interval.n == 0
