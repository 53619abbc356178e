"""Confidence intervals of the median, the mean and the geometric mean of one sample."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special  # type: ignore[import-untyped]

from harness.stats import Floats

MAX_LOGARITHM = 700.0  # exp() overflows slightly above this value


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        value: The estimate; NaN without samples.
        low: Lower end of the interval; NaN if there are too few samples.
        high: Upper end of the interval.
        coverage: Confidence that the interval really has, 0 to 1.
        n: Number of samples.
    """

    value: float
    low: float
    high: float
    coverage: float = math.nan
    n: int = 0

    @property
    def median(self) -> float:
        """The estimate of an interval of the median."""
        return self.value


def compute_median_interval(samples: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the median and the narrowest symmetric pair of order statistics with at least the given confidence.

    The interval holds for any distribution. With fewer than six samples no pair reaches 95%: the result is then the
    smallest and the largest sample, with their actual coverage. Source: David and Nagaraja, Order Statistics, 3rd ed.
    (2003), section 7.1.
    """
    x = sorted(map(float, samples))
    n = len(x)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0.0, 0)
    outside = _compute_tail_probabilities(n)
    k = max(0, int(np.searchsorted(outside, (1.0 - confidence) / 2.0, side="right")) - 1)
    return Interval(float(np.median(x)), float(x[k]), float(x[n - 1 - k]), 1.0 - 2.0 * float(outside[k]), n)


def compute_mean_interval(samples: Iterable[float], confidence: float = 0.95) -> Interval:
    """Return the mean with Student's t interval.

    With fewer than two samples, or a sample that is not finite, both ends are NaN and the coverage is 0.
    Source: Student, Biometrika 6, 1 (1908).
    """
    x = np.fromiter(samples, dtype=float)
    n = len(x)
    mean = float(x.mean()) if n else math.nan
    if n < 2 or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan, 0.0, n)
    half_width = float(special.stdtrit(n - 1, (1.0 + confidence) / 2.0)) * float(x.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half_width, mean + half_width, confidence, n)


def compute_geometric_mean_interval(ratios: Iterable[float], confidence: float = 0.95) -> Interval:
    """Return the geometric mean with Student's t interval of the logarithms; NaN unless 0 < ratio < inf for all."""
    logarithms = [math.log(r) if 0.0 < r < math.inf else math.nan for r in ratios]
    log_interval = compute_mean_interval(logarithms, confidence)
    ends = (log_interval.value, log_interval.low, log_interval.high)
    value, low, high = (math.exp(min(x, MAX_LOGARITHM)) for x in ends)
    return Interval(value, low, high, log_interval.coverage, log_interval.n)


@lru_cache(maxsize=1024)
def _compute_tail_probabilities(n: int) -> Floats:
    """Return the probability that the median of the population lies below order statistic k of n samples.

    The array has one element for each k from 0 to the middle of the sample.
    """
    return np.asarray(special.bdtr(np.arange((n + 1) // 2), n, 0.5), dtype=np.float64)
