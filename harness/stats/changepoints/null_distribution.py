"""What the scans of one series give where nothing changes: tables made once for each length, by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from harness.stats.changepoints.scan import STRONGEST, Places, Scan, scores
from harness.stats.ranks import Floats

SEED = 20260415
CORRELATIONS = np.linspace(0.0, STRONGEST, 7)
ORDERS, NOISES = 10_000, 2_500  # random orders, and autocorrelated series of each correlation
AT_ONCE = 2_500
LENGTHS = tuple(round(8 * 2 ** (k / 2)) for k in range(13))  # 8 to 512, each 1.4 times the last
SETTLING = 40  # steps after which 0.9**steps of a start is forgotten

Scanner = Callable[[Floats], Scan]


@dataclass(frozen=True)
class Null:
    """scale: 99% quantile of the statistic at each of CORRELATIONS. ordered: statistic / scale of random orders."""

    scale: Floats
    ordered: Floats

    def p(self, scan: Scan) -> Floats:
        """How often a random order gives as much, (m,)."""
        found = scan.statistic / np.interp(scan.correlation, CORRELATIONS, self.scale)
        below = np.searchsorted(self.ordered, found * (1 - 1e-12), side="left")
        return (len(self.ordered) - below + 1) / (len(self.ordered) + 1)


def p_values(scanner: Scanner, scan: Scan, n: int) -> Floats:
    """The p (m,) of what a scanner found in m series of n >= 8 values.

    Exact but for simulation where values are exchangeable: a permutation test. Its statistic is measured by the 99%
    quantile that noise with the correlation found would have, so that noise that is autocorrelated passes hardly more
    often. Between the lengths of the tables, the larger p of the two neighbours; beyond 512 values, that of 512 (the
    largest of a scan grows as the root of a doubled logarithm; of 1,500 random values, 0.9% pass at 1%).
    """
    upper = _upper(n)
    lower = upper if n >= LENGTHS[upper] else upper - 1
    p = np.maximum(*(null(scanner, LENGTHS[i]).p(scan) for i in (lower, upper)))
    return np.maximum(p, floors(scan.places, n))


def floors(places: Places, n: int) -> Floats:
    """How often chance alone puts the values of the smallest level side by side, (m,).

    No p can be below this where all values of a level are equal, which tables without ties do not know.
    """
    edges = np.hstack([np.zeros((len(places), 1), dtype=np.intp), places, np.full((len(places), 1), n)])
    smallest = np.diff(edges, axis=1).min(axis=1)
    ways = np.array([2 if places.shape[1] == 1 else n - k + 1 for k in range(n // 2 + 1)])
    log_ways = np.array([math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n // 2 + 1)])
    return np.minimum((ways * np.exp(-log_ways))[smallest], 1.0)


@cache
def null(scanner: Scanner, n: int) -> Null:
    """The table of a scanner at one length."""
    rng = np.random.default_rng([SEED, n])
    quantiles = [np.quantile(scanner(scores(noise(rng, NOISES, n, r))).statistic, 0.99) for r in CORRELATIONS]
    scale = np.maximum.accumulate(quantiles)
    orders = (scores(rng.random((AT_ONCE, n))) for _ in range(ORDERS // AT_ONCE))
    return Null(scale, _statistics(scanner, orders, scale))


@lru_cache(maxsize=4096)
def null_of_ties(scanner: Scanner, equals: tuple[int, ...]) -> Null:
    """The table for series in which equals[0] values are the least, equals[1] the next, and so on."""
    n = sum(equals)
    rng = np.random.default_rng([SEED, *equals])
    z = scores(np.repeat(np.arange(len(equals), dtype=float), equals)[None])
    scale = null(scanner, LENGTHS[_upper(n)]).scale
    return Null(scale, _statistics(scanner, [rng.permuted(np.repeat(z, AT_ONCE, axis=0), axis=1)], scale))


def _upper(n: int) -> int:
    """Index of the shortest of LENGTHS that is at least n, or of the last."""
    return next((i for i, length in enumerate(LENGTHS) if length >= n), len(LENGTHS) - 1)


def _statistics(scanner: Scanner, orders: Iterable[Floats], scale: Floats) -> Floats:
    """Statistics over their scale, of scores that are ordered at random, sorted."""
    scans = map(scanner, orders)
    return np.sort(np.concatenate([s.statistic / np.interp(s.correlation, CORRELATIONS, scale) for s in scans]))


def noise(rng: np.random.Generator, count: int, n: int, correlation: float) -> Floats:
    """Gaussian first-order autoregressive series (count, n) of variance 1."""
    shocks = rng.standard_normal((n + SETTLING, count)) * math.sqrt(1 - correlation**2)
    for t in range(1, len(shocks)):
        shocks[t] += correlation * shocks[t - 1]
    return shocks[SETTLING:].T.copy()
