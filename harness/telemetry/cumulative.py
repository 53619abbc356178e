"""Cumulative curves of one series, from which the increase, integral and coverage of any window are computed.

The increase of a counter and the integral of a power over a window are differences of such a curve at the ends of the
window, with linear interpolation between samples. Times before the first sample, after the last, or in a gap of a gauge
are not covered. Implausible samples are counted as faults and dropped first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.telemetry.metrics import Kind
from harness.telemetry.timeseries import Faults, Floats

OUT_OF_BOUNDS, LEAPS = "samples out of bounds", "counter leaps out of bounds"
INVALID_COUNTER = "invalid counter samples"
GAP_FACTOR = 3.0  # an interval between samples above this multiple of the median interval is a gap
SPIKE_FACTOR = 50.0  # a rate above this multiple of the median rate, just after a fall, ends an invalid sample
RESET_FRACTION = 0.2  # a counter with a larger share of falling steps restarts with each sample
COUNTER_LAG_S = 1.0  # maximum delay of a counter relative to the clock
MAX_LEAPS = 100  # a counter with more leaps (increases above its maximum rate) is unusable
MAX_COUNT = 1e30  # larger than the value of any counter
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class CumulativeSeries:
    """The cumulative curve of one series, ascending in time; all arrays have the shape (n_samples,).

    Attributes:
        times: Unix times of the samples, in seconds.
        total: Increase of a counter up to each sample, or time integral of a gauge.
        covered: Covered seconds up to each sample.
        samples: The samples themselves.
        interval_s: Median time between samples.
    """

    times: Floats
    total: Floats
    covered: Floats
    samples: Floats
    interval_s: float

    def integrate(self, starts: Floats, ends: Floats) -> tuple[Floats, Floats]:
        """Return the increase (or integral) and the covered seconds of each window, (n_windows,).

        Args:
            starts: Unix times (n_windows,) at which the windows start, in seconds.
            ends: Unix times (n_windows,) at which the windows end.
        """
        total, covered = (
            np.interp(ends, self.times, y) - np.interp(starts, self.times, y) for y in (self.total, self.covered)
        )
        return total, covered

    def compute_max(self, starts: Floats, ends: Floats) -> Floats:
        """Return the largest sample of each window; NaN for a window without samples."""
        return self._reduce(starts, ends, np.max)

    def compute_min(self, starts: Floats, ends: Floats) -> Floats:
        """Return the smallest sample of each window; NaN for a window without samples."""
        return self._reduce(starts, ends, np.min)

    def count_samples(self, starts: Floats, ends: Floats) -> NDArray[np.int64]:
        """Return the number of samples in each window."""
        first, last = self._find_sample_range(starts, ends)
        return np.maximum(last - first, 0)

    def _reduce(self, starts: Floats, ends: Floats, function: Callable[[Floats], Any]) -> Floats:
        first, last = self._find_sample_range(starts, ends)
        reduced = np.full(len(starts), np.nan)
        for k in np.flatnonzero(last > first):
            reduced[k] = function(self.samples[first[k] : last[k]])
        return reduced

    def _find_sample_range(self, starts: Floats, ends: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.searchsorted(self.times, starts, side="left"), np.searchsorted(self.times, ends, side="right")


def build_cumulative(
    times: Floats, values: Floats, kind: Kind, bounds: tuple[float, float], faults: Faults, *, name: str,
    may_restart: bool = False,
) -> CumulativeSeries | None:  # fmt: skip
    """Build the curve of a series, or return None if fewer than two samples are usable.

    Samples are sorted; repeated times, non-finite values and values out of bounds are dropped and counted in `faults`.

    Args:
        times: Unix times (n,) in seconds.
        values: Samples (n,).
        kind: Gauge or counter.
        bounds: Range of a gauge's values, or of a counter's increase in a second.
        faults: Faults of the source; this function adds to them.
        name: Name of the series in messages.
        may_restart: Whether the counter may restart with each sample; it is treated so if its values fall often.
    """
    times, values = _sanitize(times, values, faults.counts)
    restarts = may_restart and len(values) > 1 and (np.diff(values) < 0).mean() > RESET_FRACTION
    if kind == "gauge":
        times, values, is_unknown = _drop_invalid_gauge(times, values, bounds, faults, name)
    else:
        times, values, is_unknown = _drop_invalid_counter(times, values, bounds[1], faults, name, restarts=restarts)
    if len(times) < 2:
        return None
    steps = np.diff(times)
    interval_s = float(np.median(steps))
    gaps = steps > GAP_FACTOR * interval_s
    faults.counts["gaps"] += int(gaps.sum())
    if kind == "gauge":
        is_unknown = is_unknown | gaps
        increments = steps * (values[1:] + values[:-1]) / 2.0
    elif restarts:
        faults.counts["counters that restart with each sample"] += 1
        increments = values[1:]
    else:
        increments = _compute_increments(values, steps, is_unknown, faults.counts)
    increments, known_s = np.where(is_unknown, 0.0, increments), np.where(is_unknown, 0.0, steps)
    return CumulativeSeries(times, _accumulate(increments), _accumulate(known_s), values, interval_s)


def _sanitize(times: Floats, values: Floats, counts: Counter[str]) -> tuple[Floats, Floats]:
    """Return the finite samples in ascending order of time, with one sample for each time."""
    is_finite = np.isfinite(values) & np.isfinite(times)
    if not is_finite.all():
        counts["values not finite"] += int((~is_finite).sum())
        times, values = times[is_finite], values[is_finite]
    steps = np.diff(times)
    if (steps <= 0).any():
        counts["samples out of order"] += int((steps < 0).sum())
        order = np.argsort(times, kind="stable")
        times, values = times[order], values[order]
        is_first = np.concatenate([[True], np.diff(times) > 0])
        counts["duplicate samples"] += int((~is_first).sum())
        times, values = times[is_first], values[is_first]
    return times, values


def _drop_invalid_gauge(
    times: Floats, values: Floats, bounds: tuple[float, float], faults: Faults, name: str
) -> tuple[Floats, Floats, Mask]:
    """Return times and values of the samples within bounds, and whether samples were dropped between two of them."""
    is_valid = (values >= bounds[0]) & (values <= bounds[1])
    faults.add(OUT_OF_BOUNDS, name, int((~is_valid).sum()))
    retained = np.flatnonzero(is_valid)
    return times[retained], values[retained], np.diff(retained) > 1


def _drop_invalid_counter(
    times: Floats, values: Floats, max_rate: float, faults: Faults, name: str, *, restarts: bool
) -> tuple[Floats, Floats, Mask]:
    """Return times and values of the plausible samples, and whether the increase between two of them is unknown.

    Args:
        times: Unix times (n,) in seconds.
        values: Samples (n,).
        max_rate: Maximum increase of the counter in a second.
        faults: Faults of the source; this function adds to them.
        name: Name of the series in messages.
        restarts: Whether the counter restarts with each sample.
    """
    is_valid = (values >= 0) & (values <= MAX_COUNT)
    faults.add(OUT_OF_BOUNDS, name, int((~is_valid).sum()))
    times, values = times[is_valid], values[is_valid]
    max_gain = max_rate * (np.diff(times) + COUNTER_LAG_S)
    if restarts:
        leapt = values[1:] > max_gain
        faults.add(LEAPS, name, int(leapt.sum()))
        return times, values, leapt
    dips = _find_dips(times, values, max_rate, max_gain)
    faults.add(INVALID_COUNTER, name, int(dips.sum()))
    return _drop_leaps(times[~dips], values[~dips], max_rate, faults, name)


def _find_dips(times: Floats, values: Floats, max_rate: float, max_gain: Floats) -> Mask:
    """Return a mask of single samples at which the counter falls and after which it returns to its level."""
    dips = np.zeros(len(values), dtype=bool)
    if len(values) > 2:
        across = values[2:] - values[:-2]
        fits = (across >= 0) & (across <= max_rate * (times[2:] - times[:-2] + COUNTER_LAG_S))
        dips[1:-1] = (values[1:-1] < values[:-2]) & (np.diff(values)[1:] > max_gain[1:]) & fits
        dips[1:] &= ~dips[:-1]
    return dips


def _drop_leaps(
    times: Floats, values: Floats, max_rate: float, faults: Faults, name: str
) -> tuple[Floats, Floats, Mask]:
    """Drop samples after a leap of the counter if it returns later; otherwise mark the increase as unknown."""
    gains = np.diff(values)
    leaps = np.flatnonzero(gains > max_rate * (np.diff(times) + COUNTER_LAG_S))
    faults.add(LEAPS, name, len(leaps))
    if len(leaps) > MAX_LEAPS:
        return times[:0], values[:0], np.zeros(0, dtype=bool)
    is_valid, is_unknown = np.ones(len(values), dtype=bool), np.zeros(len(values), dtype=bool)
    falls = np.flatnonzero(gains < 0) + 1
    for k in leaps:
        later = falls[falls > k + 1]
        if len(later):
            returned = later[0]
            gained = values[returned] - values[k]
            if is_valid[k] and 0 <= gained <= max_rate * (times[returned] - times[k] + COUNTER_LAG_S):
                is_valid[k + 1 : returned] = False
                continue
        is_unknown[k] = True
    retained = np.flatnonzero(is_valid)
    return times[retained], values[retained], is_unknown[retained[:-1]]


def _compute_increments(values: Floats, steps: Floats, is_unknown: Mask, counts: Counter[str]) -> Floats:
    """Return the increments of a counter between samples; those of unknown intervals are arbitrary.

    A fall is a reset with an unknown increment, for which the median rate of the other steps is assumed. If the counter
    returns to its level after the fall, the lower sample is invalid and is skipped.
    """
    gained = np.diff(values)
    fell = gained < 0
    if not fell.any():
        return gained
    rates = gained / steps
    usable = ~fell & ~is_unknown
    median_rate = float(np.median(rates[usable])) if usable.any() else 0.0
    returned = fell[:-1] & (values[2:] >= values[:-2]) & (rates[1:] > SPIKE_FACTOR * max(median_rate, 0.0))
    counts[INVALID_COUNTER] += int(returned.sum())
    counts["counter resets"] += int(fell.sum() - returned.sum())
    gained = np.where(fell, median_rate * steps, gained)
    for k in np.flatnonzero(returned):
        increase = values[k + 2] - values[k]
        gained[k : k + 2] = increase * steps[k : k + 2] / steps[k : k + 2].sum()
    return gained


def _accumulate(increments: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(increments)])
