"""Means over runs that differ in their seed, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

LARGEST = 700.0  # of which e to the power is a number


@dataclass(frozen=True)
class Mean:
    """A mean with the ends of its interval, which are not a number where n, the sample size, is below two."""

    value: float
    low: float
    high: float
    n: int


def mean_interval(samples: Iterable[float], confidence: float = 0.95) -> Mean:
    """The mean with Student's interval; not a number as soon as one of the samples is none."""
    x = np.fromiter(samples, dtype=float)
    if not len(x):
        return Mean(math.nan, math.nan, math.nan, 0)
    mean = float(x.mean())
    if len(x) < 2 or not math.isfinite(mean):
        return Mean(mean, math.nan, math.nan, len(x))
    half = t_quantile(confidence, len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Mean(mean, mean - half, mean + half, len(x))


def geometric_interval(ratios: Iterable[float], confidence: float = 0.95) -> Mean:
    """The geometric mean of ratios with the interval of their logarithms; not a number if one is not above zero."""
    logarithms = [math.log(r) if 0.0 < r < math.inf else math.nan for r in ratios]
    found = mean_interval(logarithms, confidence)
    low, value, high = (math.exp(min(x, LARGEST)) for x in (found.low, found.value, found.high))
    return Mean(value, low, high, found.n)


@cache
def t_quantile(confidence: float, freedom: int) -> float:
    """The t below which |t| of Student's distribution lies with the given confidence."""
    low, high = 0.0, math.pi / 2
    while high - low > 1e-15:
        middle = (low + high) / 2
        if _within(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _within(angle: float, freedom: int) -> float:
    """Probability of |t| < sqrt(freedom) tan(angle).

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4.
    """
    odd = freedom % 2
    cosine = math.cos(angle)
    term, total = cosine if odd else 1.0, 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total
