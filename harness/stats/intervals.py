"""Statistics of raw samples, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A median with a distribution-free interval; coverage is the interval's true confidence, n the sample size."""

    median: float
    low: float
    high: float
    coverage: float
    n: int


def median_interval(samples: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median and the narrowest symmetric pair of order statistics that covers it with the given confidence.

    With fewer than six samples no pair reaches 95%: the extremes are given, with the coverage that they have.
    Source: David and Nagaraja, Order Statistics, 3rd ed. (2003), section 7.1.
    """
    x = np.sort(np.asarray(samples, dtype=float))
    n = len(x)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0.0, 0)
    best, best_coverage = 0, _coverage(n, 0)
    for k in range(1, (n - 1) // 2 + 1):
        coverage = _coverage(n, k)
        if coverage < confidence:
            break
        best, best_coverage = k, coverage
    return Interval(float(np.median(x)), float(x[best]), float(x[n - 1 - best]), best_coverage, n)


def _coverage(n: int, k: int) -> float:
    """Probability that the median lies between order statistics k and n-1-k (counted from 0)."""
    outside = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return 1.0 - 2.0 * outside
