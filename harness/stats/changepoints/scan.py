"""Scans of many series at once for one step or for two steps, in the ranks of their values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.stats import Floats

MIN_LEVEL = 2  # minimum number of values of a level: a single value is an outlier
MAX_CANDIDATES = 32  # maximum number of positions that a scan for two steps tries for each step
MAX_CORRELATION = 0.9  # maximum autocorrelation that is corrected: above it, a step and a drift look alike
ROWS_PER_CHUNK = 500

Starts = NDArray[np.intp]


@dataclass(frozen=True)
class ScanResult:
    """The best split of each of m series.

    Attributes:
        statistic: The evidence for a step, (m,).
        correlation: Lag-1 autocorrelation (m,) of the ranks around the best fit, unbiased to first order, between 0 and
            MAX_CORRELATION.
        starts: Index of the first value of each new level, (m, 1) or (m, 2).
    """

    statistic: Floats
    correlation: Floats
    starts: Starts

    def row(self, i: int) -> ScanResult:
        """Return the result of series i alone."""
        return ScanResult(self.statistic[i : i + 1], self.correlation[i : i + 1], self.starts[i : i + 1])


def compute_rank_scores(rows: Floats) -> Floats:
    """Return midranks of each row of (m, n), scaled to mean 0 and variance 1; a constant row becomes 0."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]  # takes most of a second to import

    ranks = np.asarray(rankdata(rows, axis=1), dtype=np.float64)
    ranks -= ranks.mean(axis=1, keepdims=True)
    deviation = ranks.std(axis=1, keepdims=True)
    return ranks / np.where(deviation > 0, deviation, 1.0)


def scan_one_step(z: Floats) -> ScanResult:
    """Find the likeliest step in each row of scores (m, n), given the lag-1 correlation of the noise around it.

    The statistic is the largest |t| of a step in a regression with first-order autoregressive errors (Prais and
    Winsten, Cowles Commission Discussion Paper 383, 1954). The correlation of the errors is estimated around the best
    split of the plain rank sums (Pettitt, Appl. Statist. 28, 126, 1979).
    """
    split = compute_rank_sums(z, MIN_LEVEL).argmax(axis=1) + MIN_LEVEL
    correlation = _estimate_correlation(z, split[:, None])
    statistic, start = _maximize_autoregressive_t(z, correlation)
    return ScanResult(statistic, correlation, start[:, None])


def scan_two_steps(z: Floats) -> ScanResult:
    """Find the likeliest two steps in each row of scores (m, n): opposite steps, or two steps in the same direction.

    A scan for one step does not see a temporary level, since neither of its ends splits the ranks well. The statistic
    is the largest value over pairs of starts of Kruskal and Wallis's statistic (J. Am. Stat. Assoc. 47, 583, 1952) as
    an F, divided by the factor by which autocorrelation increases the variance of a mean.
    """
    n = z.shape[1]
    between, pair = find_best_levels(z, MIN_LEVEL)
    share = np.minimum(between / n, 1 - 1e-9)
    correlation = _estimate_correlation(z, pair)
    f = (n - 3) / 2 * share / (1 - share) * (1 - correlation) / (1 + correlation)
    return ScanResult(np.sqrt(f), correlation, pair)


def compute_rank_sums(z: Floats, min_level: int) -> Floats:
    """Return |sum of the first k scores| / its standard deviation under the null hypothesis, (m, splits).

    The splits k run from min_level to n - min_level, so that both levels have at least min_level values.
    """
    n = z.shape[1]
    k = np.arange(min_level, n - min_level + 1)
    return np.abs(np.cumsum(z, axis=1)[:, k - 1]) / np.sqrt(k * (n - k) / n)


def find_best_levels(z: Floats, min_level: int) -> tuple[Floats, Starts]:
    """Return the largest sum of squares between three successive levels (m,), and the starts of the last two (m, 2).

    In series longer than MAX_CANDIDATES, only every n-th position is tried.
    """
    m, n = z.shape
    candidates = np.arange(min_level, n - min_level + 1, -(-n // MAX_CANDIDATES))
    first, second = np.triu_indices(len(candidates), 1)
    is_apart = candidates[second] - candidates[first] >= min_level
    i, j = candidates[first[is_apart]], candidates[second[is_apart]]
    largest, pair = np.empty(m), np.empty((m, 2), dtype=np.intp)
    for start in range(0, m, ROWS_PER_CHUNK):
        rows = slice(start, start + ROWS_PER_CHUNK)
        sums = np.cumsum(z[rows], axis=1)
        before, until = sums[:, i - 1], sums[:, j - 1]
        between = before**2 / i + (until - before) ** 2 / (j - i) + until**2 / (n - j)
        top = between.argmax(axis=1)
        largest[rows] = between[np.arange(len(top)), top]
        pair[rows] = np.stack([i[top], j[top]], axis=1)
    return largest, pair


def _estimate_correlation(z: Floats, starts: Starts) -> Floats:
    """Return the lag-1 correlation (m,) around the levels that begin at 0 and at starts (m, levels - 1).

    The expected estimate of a correlation r around l levels is r - (l + (l + 2) r) / n; this bias is removed to first
    order (for l = 1, see Marriott and Pope, Biometrika 41, 390, 1954).
    """
    m, n = z.shape
    level = (np.arange(n) >= starts[:, :, None]).sum(axis=1)
    levels = starts.shape[1] + 1
    cell = level + levels * np.arange(m)[:, None]
    counts = np.bincount(cell.ravel(), minlength=m * levels)
    means = np.bincount(cell.ravel(), weights=z.ravel(), minlength=m * levels) / np.maximum(counts, 1)
    residual = z - means[cell]
    power = (residual**2).sum(axis=1)
    raw = (residual[:, 1:] * residual[:, :-1]).sum(axis=1) / np.where(power > 0, power, 1.0)
    return np.clip((raw * n + levels) / (n - levels - 2), 0.0, MAX_CORRELATION)


def _maximize_autoregressive_t(z: Floats, correlation: Floats) -> tuple[Floats, Starts]:
    """Return the largest |t| of a step in rows z (m, n) with errors of the given correlation (m,), and its start.

    The row and the regressors (a constant, and a step at k) are whitened, which removes the correlation of the errors.
    Products of the row with a step are then cumulative sums.
    """
    n = z.shape[1]
    r = correlation[:, None]
    first_weight = np.sqrt(1 - r**2)
    white = np.hstack([first_weight * z[:, :1], z[:, 1:] - r * z[:, :-1]])
    constant_squared = first_weight**2 + (n - 1) * (1 - r) ** 2
    constant_row = first_weight * white[:, :1] + (1 - r) * white[:, 1:].sum(axis=1, keepdims=True)
    residual = (white**2).sum(axis=1, keepdims=True) - constant_row**2 / constant_squared
    k = np.arange(MIN_LEVEL, n - MIN_LEVEL + 1)
    n_after = n - 1 - k
    sum_after = np.cumsum(white[:, ::-1], axis=1)[:, n_after - 1]
    step_row = white[:, k] + (1 - r) * sum_after
    step_squared = 1 + (1 - r) ** 2 * n_after
    step_constant = (1 - r) * (1 + (1 - r) * n_after)
    covariance = step_row - step_constant * constant_row / constant_squared
    share = covariance**2 / (step_squared - step_constant**2 / constant_squared) / np.where(residual > 0, residual, 1.0)
    top = share.argmax(axis=1)
    largest = np.minimum(share[np.arange(len(top)), top], 1 - 1e-9)
    return np.sqrt((n - 2) * largest / (1 - largest)), k[top]
