"""Samples of one series as cumulative curves, from which any window's increase, integral and coverage are read.

A counter's increase and a power's integral over a window are differences of such a curve at its two ends, with straight
lines between samples. What lies beyond the first and last sample, or in a gap of a gauge, is not covered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.telemetry.bounds import drop_impossible
from harness.telemetry.metrics import Kind
from harness.telemetry.timeseries import Faults, Floats

# An interval so many times longer than the median one is a gap.
GAP = 3.0
# A step so many times faster than the median one, just after a fall, is a counter that came back from nonsense.
LEAP = 50.0
# A counter of which more than this share of steps fall counts each interval for itself.
ANEW = 0.2


@dataclass(frozen=True)
class Curve:
    """One series, ascending in time. total: what has accumulated up to each sample, of a gauge its time integral.
    covered: seconds known up to each sample. levels: a gauge's own values."""

    times: Floats
    total: Floats
    covered: Floats
    levels: Floats
    interval_s: float

    def over(self, starts: Floats, ends: Floats) -> tuple[Floats, Floats]:
        """Increase (or integral) and seconds covered, in each window."""
        found = [np.interp(ends, self.times, y) - np.interp(starts, self.times, y) for y in (self.total, self.covered)]
        return found[0], found[1]

    def highest(self, starts: Floats, ends: Floats) -> Floats:
        """The highest sample in each window; NaN where there is none."""
        return self._extreme(starts, ends, np.max)

    def lowest(self, starts: Floats, ends: Floats) -> Floats:
        """The lowest sample in each window; NaN where there is none."""
        return self._extreme(starts, ends, np.min)

    def _extreme(self, starts: Floats, ends: Floats, of: Callable[[Floats], Any]) -> Floats:
        first = np.searchsorted(self.times, starts, side="left")
        last = np.searchsorted(self.times, ends, side="right")
        found = np.full(len(starts), np.nan)
        for k in np.flatnonzero(last > first):
            found[k] = of(self.levels[first[k] : last[k]])
        return found

    def samples(self, starts: Floats, ends: Floats) -> NDArray[np.int64]:
        """How many samples lie in each window."""
        first = np.searchsorted(self.times, starts, side="left")
        return np.maximum(np.searchsorted(self.times, ends, side="right") - first, 0)


def curve(
    times: Floats, values: Floats, kind: Kind, bounds: tuple[float, float], faults: Faults, name: str,
    *, may_start_anew: bool = False,
) -> Curve | None:  # fmt: skip
    """A series' curve; None with fewer than two samples. What had to be mended is counted in faults.

    Samples are sorted, those with a time twice are dropped but the first, and so are those that are no numbers or
    beyond the bounds. may_start_anew: the counter may be one that counts each interval for itself; one that falls all
    the time is.
    """
    times, values = cleaned(times, values, faults.counts)
    starts_anew = may_start_anew and len(values) > 1 and (np.diff(values) < 0).mean() > ANEW
    times, values, unknown = drop_impossible(times, values, kind, bounds, faults, name, starts_anew=starts_anew)
    if len(times) < 2:
        return None
    steps = np.diff(times)
    usual = float(np.median(steps))
    gaps = steps > GAP * usual
    faults.counts["gaps"] += int(gaps.sum())
    if kind == "counter":
        if starts_anew:
            faults.counts["counters that start anew with each sample"] += 1
            increments = values[1:]
        else:
            increments = increases(values, steps, unknown, faults.counts)
    else:
        unknown = unknown | gaps
        increments = steps * (values[1:] + values[:-1]) / 2.0
    increments, known = np.where(unknown, 0.0, increments), np.where(unknown, 0.0, steps)
    return Curve(times, _summed(increments), _summed(known), values, usual)


def cleaned(times: Floats, values: Floats, faults: Counter[str]) -> tuple[Floats, Floats]:
    """Ascending in time, each time once, numbers alone."""
    sound = np.isfinite(values) & np.isfinite(times)
    if not sound.all():
        faults["values not finite"] += int((~sound).sum())
        times, values = times[sound], values[sound]
    steps = np.diff(times)
    if (steps <= 0).any():
        faults["samples out of order"] += int((steps < 0).sum())
        order = np.argsort(times, kind="stable")
        times, values = times[order], values[order]
        first = np.concatenate([[True], np.diff(times) > 0])
        faults["samples twice"] += int((~first).sum())
        times, values = times[first], values[first]
    return times, values


def increases(values: Floats, steps: Floats, unknown: NDArray[np.bool_], faults: Counter[str]) -> Floats:
    """What a counter has gained between samples; in unknown intervals that is of no use.

    Where it fell it was set back, and how far it had come since the sample before is lost: the median rate of its other
    steps stands in. A sample that fell and from which the counter leapt back to where it was is nonsense, and passed
    over.
    """
    gained = np.diff(values)
    fell = gained < 0
    if not fell.any():
        return gained
    rates = gained / steps
    usable = ~fell & ~unknown
    usual = float(np.median(rates[usable])) if usable.any() else 0.0
    returned = fell[:-1] & (values[2:] >= values[:-2]) & (rates[1:] > LEAP * max(usual, 0.0))
    faults["counter samples that were nonsense"] += int(returned.sum())
    faults["counters set back"] += int(fell.sum() - returned.sum())
    gained = np.where(fell, usual * steps, gained)
    for k in np.flatnonzero(returned):
        whole = values[k + 2] - values[k]
        gained[k : k + 2] = whole * steps[k : k + 2] / steps[k : k + 2].sum()
    return gained


def _summed(increments: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(increments)])
