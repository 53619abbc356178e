"""Samples that no device can show: left out and counted by the name of their series, before anything is summed up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.telemetry.metrics import Kind
from harness.telemetry.timeseries import Faults, Floats

OUTSIDE, LEAPS = "samples out of bounds", "counter leaps out of bounds"
NONSENSE = "counter samples that were nonsense"
# A counter may lag behind the clock by so many seconds.
LAG_S = 1.0
# A counter that leaps more often is of no use.
MOST_LEAPS = 100
# No counter gets so far, whatever it counts.
MOST_COUNTED = 1e30
Mask = NDArray[np.bool_]


def drop_impossible(
    times: Floats, values: Floats, kind: Kind, bounds: tuple[float, float], faults: Faults, name: str,
    *, starts_anew: bool = False,
) -> tuple[Floats, Floats, Mask]:  # fmt: skip
    """Return the samples within bounds, and of each interval between them whether what it holds is unknown.

    A gauge's interval is unknown where samples between are left out, a counter's where it leapt. bounds: of a gauge's
    values; of a counter's gain in a second. starts_anew: the counter counts each interval for itself.
    """
    low, high = bounds
    if kind == "gauge":
        good = (values >= low) & (values <= high)
        faults.add(OUTSIDE, name, int((~good).sum()))
        retained = np.flatnonzero(good)
        return times[retained], values[retained], np.diff(retained) > 1
    good = (values >= 0) & (values <= MOST_COUNTED)
    faults.add(OUTSIDE, name, int((~good).sum()))
    times, values = times[good], values[good]
    most = high * (np.diff(times) + LAG_S)
    if starts_anew:
        beyond = values[1:] > most
        faults.add(LEAPS, name, int(beyond.sum()))
        return times, values, beyond
    dips = _dips(times, values, high, most)
    faults.add(NONSENSE, name, int(dips.sum()))
    times, values = times[~dips], values[~dips]
    return _without_leaps(times, values, high, faults, name)


def _dips(times: Floats, values: Floats, high: float, most: Floats) -> Mask:
    """Single samples that fell and from which the counter leapt back to where it was."""
    dips = np.zeros(len(values), dtype=bool)
    if len(values) > 2:
        across = values[2:] - values[:-2]
        fits = (across >= 0) & (across <= high * (times[2:] - times[:-2] + LAG_S))
        dips[1:-1] = (values[1:-1] < values[:-2]) & (np.diff(values)[1:] > most[1:]) & fits
        dips[1:] &= ~dips[:-1]
    return dips


def _without_leaps(
    times: Floats, values: Floats, high: float, faults: Faults, name: str
) -> tuple[Floats, Floats, Mask]:
    """Leave out samples to which a counter leapt and came back from; where it stayed, that interval is unknown."""
    gains = np.diff(values)
    leaps = np.flatnonzero(gains > high * (np.diff(times) + LAG_S))
    faults.add(LEAPS, name, len(leaps))
    if len(leaps) > MOST_LEAPS:
        return times[:0], values[:0], np.zeros(0, dtype=bool)
    good, unknown = np.ones(len(values), dtype=bool), np.zeros(len(values), dtype=bool)
    falls = np.flatnonzero(gains < 0) + 1
    for k in leaps:
        later = falls[falls > k + 1]
        if len(later):
            m = later[0]
            gained = values[m] - values[k]
            if good[k] and 0 <= gained <= high * (times[m] - times[k] + LAG_S):
                good[k + 1 : m] = False
                continue
        unknown[k] = True
    retained = np.flatnonzero(good)
    return times[retained], values[retained], unknown[retained[:-1]]
