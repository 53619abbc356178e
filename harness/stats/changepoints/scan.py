"""Scans of many series at once for one step, or for two, in the ranks of their values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.stats.ranks import Floats, midranks

LEAST = 2  # values that make a level: one alone is an outlier
MOST_PLACES = 32  # at which a scan for two steps looks, however long the series
STRONGEST = 0.9  # autocorrelation that is corrected for: beyond it, a step and a drift look alike
ROWS_AT_ONCE = 500

Places = NDArray[np.intp]


@dataclass(frozen=True)
class Scan:
    """The best of all places in each of m series.

    statistic: (m,), grows with the evidence. correlation: (m,), lag-1, of the ranks about the best fit, unbiased to
    first order, in [0, STRONGEST]. places: (m, 1 or 2), the first value of each new level.
    """

    statistic: Floats
    correlation: Floats
    places: Places

    def of(self, i: int) -> Scan:
        """What was found in series i alone."""
        return Scan(self.statistic[i : i + 1], self.correlation[i : i + 1], self.places[i : i + 1])


def scores(rows: Floats) -> Floats:
    """Midranks of each row of (m, n), to mean 0 and variance 1; all 0 where a row is constant."""
    ranks = midranks(rows)
    ranks -= ranks.mean(axis=1, keepdims=True)
    spread = ranks.std(axis=1, keepdims=True)
    return ranks / np.where(spread > 0, spread, 1.0)


def one_step(z: Floats) -> Scan:
    """The likeliest step of each row of scores (m, n), under noise with the lag-1 correlation that is left about it.

    The statistic is the largest |t| of a step in a regression with first-order autoregressive errors (Prais and
    Winsten, Cowles Commission Discussion Paper 383, 1954), its correlation taken about the best split of the plain
    rank sums (Pettitt, Appl. Statist. 28, 126, 1979).
    """
    split = rank_sums(z, LEAST).argmax(axis=1) + LEAST
    correlation = _correlation(z, split[:, None])
    statistic, place = _autoregressive_t(z, correlation)
    return Scan(statistic, correlation, place[:, None])


def two_steps(z: Floats) -> Scan:
    """The likeliest two steps of each row of scores (m, n): up and back, or two the same way.

    A level that comes and goes hides from a scan for one step: neither of its ends splits the ranks well. The statistic
    is Kruskal and Wallis's (J. Am. Stat. Assoc. 47, 583, 1952) as an F, at its largest over pairs of places, divided by
    what autocorrelation does to the variance of a mean.
    """
    n = z.shape[1]
    best, pair = explained(z, LEAST)
    share = np.minimum(best / n, 1 - 1e-9)
    correlation = _correlation(z, pair)
    f = (n - 3) / 2 * share / (1 - share) * (1 - correlation) / (1 + correlation)
    return Scan(np.sqrt(f), correlation, pair)


def rank_sums(z: Floats, least: int) -> Floats:
    """|sum of the first k scores| over its standard deviation under the null, (m, splits), k from least on."""
    n = z.shape[1]
    k = np.arange(least, n - least + 1)
    return np.abs(np.cumsum(z, axis=1)[:, k - 1]) / np.sqrt(k * (n - k) / n)


def explained(z: Floats, least: int) -> tuple[Floats, Places]:
    """The largest sum of squares between three successive levels (m,), and where the later two start (m, 2).

    In series longer than MOST_PLACES, places are looked at in strides.
    """
    m, n = z.shape
    at = np.arange(least, n - least + 1, -(-n // MOST_PLACES))
    first, second = np.triu_indices(len(at), 1)
    apart = at[second] - at[first] >= least
    i, j = at[first[apart]], at[second[apart]]
    best, pair = np.empty(m), np.empty((m, 2), dtype=np.intp)
    for begin in range(0, m, ROWS_AT_ONCE):
        rows = slice(begin, begin + ROWS_AT_ONCE)
        sums = np.cumsum(z[rows], axis=1)
        before, until = sums[:, i - 1], sums[:, j - 1]
        between = before**2 / i + (until - before) ** 2 / (j - i) + until**2 / (n - j)
        top = between.argmax(axis=1)
        best[rows] = between[np.arange(len(top)), top]
        pair[rows] = np.stack([i[top], j[top]], axis=1)
    return best, pair


def _correlation(z: Floats, starts: Places) -> Floats:
    """Lag-1 correlation (m,) about the levels that start at 0 and at starts (m, levels - 1).

    A correlation r about l levels comes out near r - (l + (l + 2) r) / n, which is undone to first order (the
    case l = 1: Marriott and Pope, Biometrika 41, 390, 1954).
    """
    m, n = z.shape
    level = (np.arange(n) >= starts[:, :, None]).sum(axis=1)
    levels = starts.shape[1] + 1
    cell = level + levels * np.arange(m)[:, None]
    counts = np.bincount(cell.ravel(), minlength=m * levels)
    means = np.bincount(cell.ravel(), weights=z.ravel(), minlength=m * levels) / np.maximum(counts, 1)
    rest = z - means[cell]
    power = (rest**2).sum(axis=1)
    raw = (rest[:, 1:] * rest[:, :-1]).sum(axis=1) / np.where(power > 0, power, 1.0)
    return np.clip((raw * n + levels) / (n - levels - 2), 0.0, STRONGEST)


def _autoregressive_t(z: Floats, correlation: Floats) -> tuple[Floats, Places]:
    """The largest |t| of a step in rows z (m, n) with errors of the given correlation (m,), and its place.

    Both the row and the regressors (a constant, and a step at k) are whitened; their products are cumulative sums.
    """
    n = z.shape[1]
    r = correlation[:, None]
    start = np.sqrt(1 - r**2)
    white = np.hstack([start * z[:, :1], z[:, 1:] - r * z[:, :-1]])
    constant_squared = start**2 + (n - 1) * (1 - r) ** 2
    constant_row = start * white[:, :1] + (1 - r) * white[:, 1:].sum(axis=1, keepdims=True)
    left = (white**2).sum(axis=1, keepdims=True) - constant_row**2 / constant_squared
    k = np.arange(LEAST, n - LEAST + 1)
    later = n - 1 - k
    after = np.cumsum(white[:, ::-1], axis=1)[:, later - 1]
    step_row = white[:, k] + (1 - r) * after
    step_squared = 1 + (1 - r) ** 2 * later
    step_constant = (1 - r) * (1 + (1 - r) * later)
    covariance = step_row - step_constant * constant_row / constant_squared
    share = covariance**2 / (step_squared - step_constant**2 / constant_squared) / np.where(left > 0, left, 1.0)
    top = share.argmax(axis=1)
    largest = np.minimum(share[np.arange(len(top)), top], 1 - 1e-9)
    return np.sqrt((n - 2) * largest / (1 - largest)), k[top]
