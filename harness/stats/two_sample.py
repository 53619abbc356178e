"""How far one set of samples lies from another: estimate, interval and p without a distribution assumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from harness.stats.ranks import Floats, runs_of_equals

EXACT_PAIRS = 2_500  # pairs of samples up to which the null of U is counted, not approximated
PAIRS_AT_ONCE = 4_000_000
MOST_SAMPLES = 4_000  # of a set whose pairwise differences are taken; a longer one is represented by as many quantiles


@dataclass(frozen=True)
class Shift:
    """b against a: estimate and interval (low, high) in their unit (a ratio has none), and the two-sided p.

    coverage: the interval's confidence in truth; below what was asked for where samples are too few.
    """

    estimate: float
    low: float
    high: float
    p: float
    coverage: float
    n_a: int
    n_b: int


@dataclass(frozen=True)
class Shifts:
    """As Shift for m comparisons of equal sizes: estimate, low, high and p are (m,)."""

    estimate: Floats
    low: Floats
    high: Floats
    p: Floats
    coverage: float
    n_a: int
    n_b: int


def shift(a: Sequence[float] | Floats, b: Sequence[float] | Floats, confidence: float = 0.95) -> Shift:
    """Samples b minus samples a, NaN left out: see shifts. All fields NaN where either is empty."""
    found = shifts(_measured(a)[None], _measured(b)[None], confidence)
    estimate, low, high, p = (float(x[0]) for x in (found.estimate, found.low, found.high, found.p))
    return Shift(estimate, low, high, p, found.coverage, found.n_a, found.n_b)


def ratio(a: Sequence[float] | Floats, b: Sequence[float] | Floats, confidence: float = 0.95) -> Shift:
    """Samples b over samples a, NaN left out: 1.06 is 6% more. All fields NaN where a value is not positive."""
    found = ratios(_measured(a)[None], _measured(b)[None], confidence)
    estimate, low, high, p = (float(x[0]) for x in (found.estimate, found.low, found.high, found.p))
    return Shift(estimate, low, high, p, found.coverage, found.n_a, found.n_b)


def shifts(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Shifts:
    """Each row of b (m, n_b) minus the same row of a (m, n_a); NaN where a row holds a value that is not finite.

    The estimate is the median of all pairwise differences, the interval two of their order statistics (Hodges and
    Lehmann, Ann. Math. Statist. 34, 598, 1963; Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 3rd
    ed., 2014, section 4.3): unbiased by outliers, and true where b is a moved by a constant. p is that of Mann and
    Whitney's U (Ann. Math. Statist. 18, 50, 1947).
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    (m, n_a), n_b = x.shape, y.shape[1]
    estimate, low, high, p = np.full((4, m), math.nan)
    if n_a == 0 or n_b == 0:
        return Shifts(estimate, low, high, p, math.nan, n_a, n_b)
    k, coverage = _order(n_a, n_b, confidence)
    usable = np.flatnonzero(np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1))
    rows_at_once = max(1, PAIRS_AT_ONCE // (n_a * n_b))
    for begin in range(0, len(usable), rows_at_once):
        rows = usable[begin : begin + rows_at_once]
        estimate[rows], low[rows], high[rows] = _differences(x[rows], y[rows], k)
    p[usable] = _p_values(x[usable], y[usable])
    return Shifts(estimate, low, high, p, coverage, n_a, n_b)


def ratios(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Shifts:
    """Each row of b over the same row of a: shifts of logarithms; NaN where a value of a row is not positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = shifts(np.log(np.asarray(a, dtype=float)), np.log(np.asarray(b, dtype=float)), confidence)
    estimate, low, high = (np.exp(x) for x in (found.estimate, found.low, found.high))
    return Shifts(estimate, low, high, found.p, found.coverage, found.n_a, found.n_b)


def _measured(samples: Sequence[float] | Floats) -> Floats:
    x = np.asarray(samples, dtype=float)
    return x[~np.isnan(x)]


def _differences(a: Floats, b: Floats, k: int) -> tuple[Floats, Floats, Floats]:
    """Median, k-th smallest and k-th largest of the pairwise differences b - a of each row."""
    pairs = a.shape[1] * b.shape[1]
    a, b = _represented(a), _represented(b)
    d = (b[:, None, :] - a[:, :, None]).reshape(len(a), -1)
    n = d.shape[1]
    outer = (k - 1) * n // pairs
    middle = (n - 1) // 2, n // 2
    d.partition(sorted({outer, *middle, n - 1 - outer}), axis=1)
    return (d[:, middle[0]] + d[:, middle[1]]) / 2, d[:, outer], d[:, n - 1 - outer]


def _represented(x: Floats) -> Floats:
    if x.shape[1] <= MOST_SAMPLES:
        return x
    return np.quantile(x, (np.arange(MOST_SAMPLES) + 0.5) / MOST_SAMPLES, axis=1).T


def _order(n_a: int, n_b: int, confidence: float) -> tuple[int, float]:
    """The k whose k-th smallest and largest difference make the narrowest interval that covers, and its coverage.

    1, the extremes, where even these do not cover with the confidence asked for.
    """
    pairs = n_a * n_b
    if pairs <= EXACT_PAIRS:
        below = _cumulative_u(n_a, n_b)
        k = max(1, int(np.searchsorted(below, (1 - confidence) / 2, side="right")))
        return k, float(1 - 2 * below[k - 1])
    spread = math.sqrt(pairs * (n_a + n_b + 1) / 12)
    k = max(1, math.floor(pairs / 2 - NormalDist().inv_cdf((1 + confidence) / 2) * spread))
    return k, 1 - 2 * NormalDist().cdf((k - 0.5 - pairs / 2) / spread)


@lru_cache(maxsize=1024)
def _cumulative_u(n_a: int, n_b: int) -> Floats:
    """P(U <= u) for u = 0 ... n_a n_b where a and b are alike and no values are equal.

    The counts are the coefficients of the Gaussian binomial, the product of (1 - q^(n_a + i)) / (1 - q^i) for
    i = 1 ... n_b (Andrews, The Theory of Partitions, 1976, section 3.2).
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


def _p_values(a: Floats, b: Floats) -> Floats:
    """Two-sided p of each row: exact without ties in small samples, else normal, with ties and continuity corrected.

    Never below the share of the most extreme of all orders, which is the floor of the exact p.
    """
    n_a, n_b = a.shape[1], b.shape[1]
    n, pairs = n_a + n_b, n_a * n_b
    order, first, last = runs_of_equals(np.hstack([a, b]))
    ranks = (first + last) / 2 + 1
    u = np.where(order < n_a, ranks, 0.0).sum(axis=1) - n_a * (n_a + 1) / 2
    # every value of a run of t equals adds t^2 - 1: a run adds t^3 - t
    ties = ((last - first + 1.0) ** 2 - 1).sum(axis=1)
    spread = np.sqrt(pairs / 12 * (n + 1 - ties / (n * (n - 1))))
    away = np.maximum(np.abs(u - pairs / 2) - 0.5, 0) / np.where(spread > 0, spread, 1.0)
    p = np.array([math.erfc(z / math.sqrt(2)) for z in away])
    if pairs <= EXACT_PAIRS:
        untied = ties == 0
        least = np.minimum(u, pairs - u)[untied].astype(int)
        p[untied] = np.minimum(2 * _cumulative_u(n_a, n_b)[least], 1.0)
    log_floor = math.log(2) - (math.lgamma(n + 1) - math.lgamma(n_a + 1) - math.lgamma(n_b + 1))
    return np.clip(p, math.exp(log_floor), 1.0)
