"""Where a series of measurements, one a commit, changes its level, with few false alarms whatever its noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from harness.stats.changepoints import blocked
from harness.stats.changepoints import series as trace
from harness.stats.changepoints.segmentation import segmented
from harness.stats.intervals import median_interval
from harness.stats.ranks import Floats
from harness.stats.two_sample import Shift, ratio

LEAST_ALPHA = 0.001


@dataclass(frozen=True)
class Change:
    """A change of level: index is the first of the new level, shift the ratio of the level after over that before.

    p: of all that would have been found as well. The p of shift is as if the place had been known before.
    """

    index: int
    p: float
    shift: Shift


def change_points(values: ArrayLike, alpha: float = 0.01) -> list[Change]:
    """Changes of level in values (n,), one a commit, or (rounds, n), interleaved: each row measures every commit once.

    NaN is not measured. alpha is the chance of any change in a series that has none, whatever the distribution and
    scale of its noise; noise with lag-1 correlation 0.5 gives 2 to 3 times as many at 60 values, more in shorter
    series (reports/measured/detection). Rounds remove what drifts from round to round; two commits take 8 rounds at
    alpha 0.01, 6 at 0.05. Order commits at random within a round: what depends on the place in a round stays.
    ValueError: alpha below 0.001, which the tables do not resolve.
    """
    _check(alpha)
    x = np.asarray(values, dtype=float)
    if x.ndim == 1 or len(x) == 1:
        return change_points_of_many(x.reshape(1, -1), alpha)[0]
    measured = np.flatnonzero(~np.isnan(x).all(axis=0))
    block = x[:, measured]
    return [
        Change(int(measured[step.start]), step.p, _ratio_of_rounds(block[:, step.before], block[:, step.after], step.p))
        for step in segmented([block], blocked.findings, alpha)[0]
    ]


def change_points_of_many(series: ArrayLike, alpha: float = 0.01) -> list[list[Change]]:
    """As change_points, for m series of one value a commit, (m, n); alpha is for each series by itself."""
    _check(alpha)
    x = np.asarray(series, dtype=float)
    measured = [np.flatnonzero(~np.isnan(row)) for row in x]
    rows = [row[places] for row, places in zip(x, measured, strict=True)]
    return [
        [Change(int(places[step.start]), step.p, ratio(row[step.before], row[step.after])) for step in steps]
        for row, places, steps in zip(rows, measured, segmented(rows, trace.findings, alpha), strict=True)
    ]


def _check(alpha: float) -> None:
    if not LEAST_ALPHA <= alpha < 1:
        raise ValueError(f"alpha is {alpha:g}; it must be at least {LEAST_ALPHA:g} and below 1")


def _ratio_of_rounds(before: Floats, after: Floats, p: float) -> Shift:
    """Median over rounds of after (rounds, n_b) over before (rounds, n_a), each round compared within itself."""
    both = ~(np.isnan(before).all(axis=1) | np.isnan(after).all(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.log(np.nanmedian(after[both], axis=1)) - np.log(np.nanmedian(before[both], axis=1))
    found = median_interval(gain[~np.isnan(gain)].tolist())
    low, middle, high = np.exp([found.low, found.median, found.high]).tolist()
    return Shift(middle, low, high, p, found.coverage, _count(before), _count(after))


def _count(block: Floats) -> int:
    return int((~np.isnan(block)).sum())
