"""Nonparametric comparison of two samples: estimate, interval and p value of their shift."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from harness.stats import Floats

MAX_EXACT_PAIRS = 2_500  # with more pairs of samples, the distribution of U is approximated by a normal one
PAIRS_PER_CHUNK = 4_000_000
MAX_SAMPLES = 4_000  # a longer sample is replaced by this number of its quantiles before differences are computed
Number = TypeVar("Number", float, Floats)


@dataclass(frozen=True, kw_only=True)
class TwoSampleEstimate(Generic[Number]):
    """The comparison of sample b with sample a: a difference in the unit of the samples, or a ratio.

    `estimate`, `low`, `high` and `p` are floats, or arrays (m,) for m comparisons.

    Attributes:
        estimate: Hodges-Lehmann estimate.
        low: Lower end of the interval.
        high: Upper end of the interval.
        p: Two-sided p value.
        coverage: Confidence that the interval really has; below the requested one if there are too few samples.
        n_a: Number of samples in a.
        n_b: Number of samples in b.
    """

    estimate: Number
    low: Number
    high: Number
    p: Number
    coverage: float
    n_a: int
    n_b: int

    def row(self: TwoSampleEstimate[Floats], i: int) -> TwoSampleEstimate[float]:
        """Return comparison i of m comparisons."""
        return TwoSampleEstimate(
            estimate=float(self.estimate[i]), low=float(self.low[i]), high=float(self.high[i]), p=float(self.p[i]),
            coverage=self.coverage, n_a=self.n_a, n_b=self.n_b,
        )  # fmt: skip


def estimate_shift(
    a: Sequence[float] | Floats, b: Sequence[float] | Floats, confidence: float = 0.95
) -> TwoSampleEstimate[float]:
    """Estimate b minus a, leaving out NaN; NaN if a or b is empty. See estimate_shifts."""
    return estimate_shifts(_drop_nan(a)[None], _drop_nan(b)[None], confidence).row(0)


def estimate_ratio(
    a: Sequence[float] | Floats, b: Sequence[float] | Floats, confidence: float = 0.95
) -> TwoSampleEstimate[float]:
    """Estimate the ratio b / a, leaving out NaN; the results are NaN if a value is not positive."""
    return estimate_ratios(_drop_nan(a)[None], _drop_nan(b)[None], confidence).row(0)


def estimate_shifts(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> TwoSampleEstimate[Floats]:
    """Estimate each row of b minus the same row of a.

    The estimate is the median of all pairwise differences, and the ends of the interval are two of their order
    statistics (Hodges and Lehmann, Ann. Math. Statist. 34, 598, 1963; Hollander, Wolfe and Chicken, Nonparametric
    Statistical Methods, 3rd ed., 2014, section 4.3). Outliers do not bias the estimate, and it is exact if b equals a
    plus a constant. The p value is that of the Mann-Whitney U test (Ann. Math. Statist. 18, 50, 1947).

    Args:
        a: Samples (m, n_a).
        b: Samples (m, n_b).
        confidence: Requested confidence of the intervals.

    Returns:
        Arrays (m,); NaN in rows with a value that is not finite.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    (m, n_a), n_b = x.shape, y.shape[1]
    estimate, low, high, p = np.full((4, m), math.nan)
    if n_a == 0 or n_b == 0:
        return TwoSampleEstimate(estimate=estimate, low=low, high=high, p=p, coverage=math.nan, n_a=n_a, n_b=n_b)
    k, coverage = _choose_order_statistic(n_a, n_b, confidence)
    usable = np.flatnonzero(np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1))
    chunk = max(1, PAIRS_PER_CHUNK // (n_a * n_b))
    for start in range(0, len(usable), chunk):
        rows = usable[start : start + chunk]
        estimate[rows], low[rows], high[rows] = _summarize_differences(x[rows], y[rows], k)
    p[usable] = _compute_p_values(x[usable], y[usable])
    return TwoSampleEstimate(estimate=estimate, low=low, high=high, p=p, coverage=coverage, n_a=n_a, n_b=n_b)


def estimate_ratios(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> TwoSampleEstimate[Floats]:
    """Estimate the ratio of each row of b to the same row of a from logarithms; NaN for rows with values <= 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = estimate_shifts(np.log(np.asarray(a, dtype=float)), np.log(np.asarray(b, dtype=float)), confidence)
    return replace(shift, estimate=np.exp(shift.estimate), low=np.exp(shift.low), high=np.exp(shift.high))


def _drop_nan(samples: Sequence[float] | Floats) -> Floats:
    x = np.asarray(samples, dtype=float)
    return x[~np.isnan(x)]


def _summarize_differences(a: Floats, b: Floats, k: int) -> tuple[Floats, Floats, Floats]:
    """Return the median, the k-th smallest and the k-th largest of the pairwise differences b - a of each row."""
    pairs = a.shape[1] * b.shape[1]
    a, b = _thin_to_quantiles(a), _thin_to_quantiles(b)
    d = (b[:, None, :] - a[:, :, None]).reshape(len(a), -1)
    n = d.shape[1]
    outer = (k - 1) * n // pairs  # the same share of the differences, if the samples were thinned
    middle = (n - 1) // 2, n // 2
    d.partition(sorted({outer, *middle, n - 1 - outer}), axis=1)
    return (d[:, middle[0]] + d[:, middle[1]]) / 2, d[:, outer], d[:, n - 1 - outer]


def _thin_to_quantiles(x: Floats) -> Floats:
    if x.shape[1] <= MAX_SAMPLES:
        return x
    return np.quantile(x, (np.arange(MAX_SAMPLES) + 0.5) / MAX_SAMPLES, axis=1).T


def _choose_order_statistic(n_a: int, n_b: int, confidence: float) -> tuple[int, float]:
    """Return the k for which the k-th smallest and largest difference form the narrowest interval, and its coverage.

    If even the smallest and the largest difference do not reach the requested confidence, k is 1.
    """
    pairs = n_a * n_b
    if pairs <= MAX_EXACT_PAIRS:
        below = _compute_cumulative_u(n_a, n_b)
        k = max(1, int(np.searchsorted(below, (1 - confidence) / 2, side="right")))
        return k, float(1 - 2 * below[k - 1])
    deviation = math.sqrt(pairs * (n_a + n_b + 1) / 12)
    k = max(1, math.floor(pairs / 2 - NormalDist().inv_cdf((1 + confidence) / 2) * deviation))
    return k, 1 - 2 * NormalDist().cdf((k - 0.5 - pairs / 2) / deviation)


@lru_cache(maxsize=1024)
def _compute_cumulative_u(n_a: int, n_b: int) -> Floats:
    """Return P(U <= u) for u = 0 ... n_a n_b if a and b are from the same distribution and there are no ties.

    The counts are the coefficients of the Gaussian binomial, the product of (1 - q^(n_a + i)) / (1 - q^i) for
    i = 1 ... n_b (Andrews, The Theory of Partitions, 1976, section 3.2). scipy does not export this distribution.
    """
    counts = np.zeros(n_a * n_b + 1, dtype=object)
    counts[0] = 1
    for i in range(1, n_b + 1):
        for u in range(n_a * n_b, n_a + i - 1, -1):
            counts[u] -= counts[u - n_a - i]
        for u in range(i, n_a * n_b + 1):
            counts[u] += counts[u - i]
    total = math.comb(n_a + n_b, n_a)
    return np.array([int(c) / total for c in np.cumsum(counts)])


def _compute_p_values(a: Floats, b: Floats) -> Floats:
    """Return the two-sided p value of U in each row.

    The values equal those of scipy.stats.mannwhitneyu, which takes ten times as long for one row: exact for small
    samples without ties, otherwise from the normal distribution with corrections for ties and continuity. No value is
    below the probability of the most extreme order.
    """
    from scipy.stats import rankdata  # type: ignore[import-untyped]  # importing it takes most of a second

    n_a, n_b = a.shape[1], b.shape[1]
    n, pairs = n_a + n_b, n_a * n_b
    pooled = np.hstack([a, b])
    lowest, highest = (rankdata(pooled, method=method, axis=1) for method in ("min", "max"))
    u = ((lowest + highest) / 2)[:, :n_a].sum(axis=1) - n_a * (n_a + 1) / 2
    # each of t equal values adds t^2 - 1, all of them t^3 - t
    ties = ((highest - lowest + 1.0) ** 2 - 1).sum(axis=1)
    deviation = np.sqrt(pairs / 12 * (n + 1 - ties / (n * (n - 1))))
    z = np.maximum(np.abs(u - pairs / 2) - 0.5, 0) / np.where(deviation > 0, deviation, 1.0)
    p = np.array([math.erfc(value / math.sqrt(2)) for value in z])
    if pairs <= MAX_EXACT_PAIRS:
        untied = ties == 0
        smaller = np.minimum(u, pairs - u)[untied].astype(int)
        p[untied] = np.minimum(2 * _compute_cumulative_u(n_a, n_b)[smaller], 1.0)
    log_min_p = math.log(2) - (math.lgamma(n + 1) - math.lgamma(n_a + 1) - math.lgamma(n_b + 1))
    return np.clip(p, math.exp(log_min_p), 1.0)
