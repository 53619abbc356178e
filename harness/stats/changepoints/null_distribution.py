"""Null distributions of the scans of a series: tables that are simulated once for each length of the series."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from harness.stats import Floats
from harness.stats.changepoints.scan import MAX_CORRELATION, ScanResult, Starts, compute_rank_scores

SEED = 20260415
CORRELATIONS = np.linspace(0.0, MAX_CORRELATION, 7)
N_ORDERS, N_SERIES = 10_000, 2_500  # random orders, and autocorrelated series of each correlation
ORDERS_PER_CHUNK = 2_500
LENGTHS = tuple(round(8 * 2 ** (k / 2)) for k in range(13))  # 8 to 512, each 1.4 times the previous one
BURN_IN = 40  # steps after which 0.9**steps of the initial value is negligible

Scanner = Callable[[Floats], ScanResult]


@dataclass(frozen=True)
class NullDistribution:
    """The distribution of a scan's statistic over series without a change.

    Attributes:
        scale: 99% quantile of the statistic for each of CORRELATIONS.
        ordered: The statistic of random orders divided by the scale, in ascending order.
    """

    scale: Floats
    ordered: Floats

    def compute_p_values(self, scan: ScanResult) -> Floats:
        """Return the share (m,) of random orders whose statistic is at least as large."""
        scaled = scan.statistic / np.interp(scan.correlation, CORRELATIONS, self.scale)
        below = np.searchsorted(self.ordered, scaled * (1 - 1e-12), side="left")
        return (len(self.ordered) - below + 1) / (len(self.ordered) + 1)


def compute_p_values(scanner: Scanner, scan: ScanResult, n: int) -> Floats:
    """Return the p values (m,) of a scan of m series of n >= 8 values.

    If the values are exchangeable, this is a permutation test, exact except for the error of the simulation. The
    statistic is divided by the 99% quantile for noise of the estimated correlation, so that autocorrelated noise gives
    few additional false alarms. Between the tabulated lengths, p is the larger one of the two neighbouring lengths;
    above 512 values, p is that of 512. (The maximum of a scan grows as the root of an iterated logarithm; 0.9% of
    series of 1,500 random values have p below 1%.)
    """
    upper = _find_table_index(n)
    lower = upper if n >= LENGTHS[upper] else upper - 1
    p = np.maximum(*(simulate_null_distribution(scanner, LENGTHS[i]).compute_p_values(scan) for i in (lower, upper)))
    return np.maximum(p, compute_min_p_values(scan.starts, n))


def compute_min_p_values(starts: Starts, n: int) -> Floats:
    """Return the probability (m,) that chance alone puts the values of the smallest level next to each other.

    If all values of a level are equal, no p can be lower; tables of series without ties do not account for that.
    """
    edges = np.hstack([np.zeros((len(starts), 1), dtype=np.intp), starts, np.full((len(starts), 1), n)])
    smallest = np.diff(edges, axis=1).min(axis=1)
    ways = np.array([2 if starts.shape[1] == 1 else n - k + 1 for k in range(n // 2 + 1)])
    log_ways = np.array([math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n // 2 + 1)])
    return np.minimum((ways * np.exp(-log_ways))[smallest], 1.0)


@cache
def simulate_null_distribution(scanner: Scanner, n: int) -> NullDistribution:
    """Simulate the null distribution of a scanner for series of n values."""
    rng = np.random.default_rng([SEED, n])
    quantiles = [
        np.quantile(scanner(compute_rank_scores(simulate_noise(rng, N_SERIES, n, r))).statistic, 0.99)
        for r in CORRELATIONS
    ]
    scale = np.maximum.accumulate(quantiles)
    orders = (compute_rank_scores(rng.random((ORDERS_PER_CHUNK, n))) for _ in range(N_ORDERS // ORDERS_PER_CHUNK))
    return NullDistribution(scale, _compute_scaled_statistics(scanner, orders, scale))


@lru_cache(maxsize=4096)
def simulate_null_distribution_with_ties(scanner: Scanner, tie_sizes: tuple[int, ...]) -> NullDistribution:
    """Simulate the null distribution for series in which tie_sizes[k] values are equal, for each distinct value k."""
    n = sum(tie_sizes)
    rng = np.random.default_rng([SEED, *tie_sizes])
    z = compute_rank_scores(np.repeat(np.arange(len(tie_sizes), dtype=float), tie_sizes)[None])
    scale = simulate_null_distribution(scanner, LENGTHS[_find_table_index(n)]).scale
    orders = rng.permuted(np.repeat(z, ORDERS_PER_CHUNK, axis=0), axis=1)
    return NullDistribution(scale, _compute_scaled_statistics(scanner, [orders], scale))


def simulate_noise(rng: np.random.Generator, count: int, n: int, correlation: float) -> Floats:
    """Simulate Gaussian first-order autoregressive series (count, n) of variance 1."""
    shocks = rng.standard_normal((n + BURN_IN, count)) * math.sqrt(1 - correlation**2)
    for t in range(1, len(shocks)):
        shocks[t] += correlation * shocks[t - 1]
    return shocks[BURN_IN:].T.copy()


def _find_table_index(n: int) -> int:
    """Return the index of the shortest of LENGTHS that is at least n, or of the last."""
    return next((i for i, length in enumerate(LENGTHS) if length >= n), len(LENGTHS) - 1)


def _compute_scaled_statistics(scanner: Scanner, orders: Iterable[Floats], scale: Floats) -> Floats:
    """Return the statistic of randomly ordered scores divided by the scale, in ascending order."""
    scans = map(scanner, orders)
    return np.sort(np.concatenate([s.statistic / np.interp(s.correlation, CORRELATIONS, scale) for s in scans]))
