"""The series of a source, one after another, summed up over windows: of each node and device a number a window."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from harness.telemetry.cumulative import Curve, curve
from harness.telemetry.energy_regression import apportioned, turns_of
from harness.telemetry.metrics import (
    FIGURE_OF_MERIT,
    HARDWARE_COUNTER,
    ORIGINS,
    bounds_of,
    host_of,
    name_of,
    quantity_of,
)
from harness.telemetry.timeseries import Floats, Series, Source
from harness.telemetry.windows import Window

# Below this share of a window (or of its nodes) there is no telling what it used.
ENOUGH = 0.9
MEANS = (
    "accelerator_utilization_percent", "accelerator_memory_percent", "accelerator_clock_mhz",
    "accelerator_temperature_c", "busy_cores",
)  # fmt: skip
# Unit of an energy's or a power's name -> how it tells of energy.
UNITS = {"j": "counter", "w": "power"}
HIGHEST = {
    "accelerator_memory_percent": "accelerator_memory_highest_percent",
    "accelerator_temperature_c": "accelerator_temperature_highest_c",
}


class Place(NamedTuple):
    """One device of one node, as one origin tells of it."""

    host: str
    component: str
    origin: str
    device: str


@dataclass
class Gathered:
    """Sums over a source's series, an array with a number a window each."""

    # place -> "counter" or "power" -> joules, NaN where too little of the window is covered
    joules: dict[Place, dict[str, Floats]] = field(default_factory=lambda: defaultdict(dict))
    # the same of windows that take turns, by regression, and the variance of that
    turns: dict[Place, dict[str, tuple[Floats, Floats]]] = field(default_factory=lambda: defaultdict(dict))
    # host -> name -> (sums, how many series)
    means: dict[str, dict[str, list[Floats]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    highest: dict[str, dict[str, Floats]] = field(default_factory=lambda: defaultdict(dict))
    totals: dict[str, dict[str, Floats]] = field(default_factory=lambda: defaultdict(dict))
    memory: dict[str, dict[str, Floats]] = field(default_factory=lambda: defaultdict(dict))
    samples: dict[str, Floats] = field(default_factory=dict)
    intervals: list[float] = field(default_factory=list)
    merits: dict[str, list[Floats]] = field(default_factory=lambda: defaultdict(list))


class Pieces:
    """The pieces of all windows as arrays, and sums over those of each window."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.owner = np.repeat(np.arange(len(windows)), [len(w.pieces) for w in windows])
        flat = [piece for window in windows for piece in window.pieces]
        self.starts, self.ends = (np.array([p[k] for p in flat], dtype=float) for k in (0, 1))
        self.count = len(windows)
        self.turns = list(turns_of(windows))
        self.seconds = self.summed(self.ends - self.starts)

    def apportioned(self, known: Curve) -> tuple[Floats, Floats]:
        """Of windows that take turns."""
        joules, variance = np.full(self.count, np.nan), np.full(self.count, np.nan)
        for turns in self.turns:
            joules[turns.windows], variance[turns.windows] = apportioned(turns, known)
        return joules, variance

    def summed(self, values: Floats) -> Floats:
        """Sums over each window's pieces."""
        return np.bincount(self.owner, weights=values, minlength=self.count).astype(np.float64)

    def highest(self, values: Floats) -> Floats:
        """The highest of each window's pieces; NaN where none has a value."""
        found = np.full(self.count, -np.inf)
        np.fmax.at(found, self.owner, values)
        return np.where(np.isfinite(found), found, np.nan)

    def lowest(self, values: Floats) -> Floats:
        """The lowest of each window's pieces; NaN where none has a value."""
        return -self.highest(-values)


def take(gathered: Gathered, one: Series, pieces: Pieces, source: Source) -> None:
    """Add a series to the sums; what is wrong with it is counted among the source's faults."""
    host, name = host_of(one.labels), one.labels.get("__name__")
    if name == FIGURE_OF_MERIT:
        inside = np.array([_median_within(one, s, e) for s, e in zip(pieces.starts, pieces.ends, strict=True)])
        gathered.merits[one.labels.get("name", "")].append(pieces.highest(inside))
        return
    quantity = quantity_of(one.labels)
    assert quantity is not None
    with np.errstate(over="ignore"):
        values = one.values * quantity.scale
    known = curve(
        one.times, values, quantity.kind, bounds_of(quantity), source.faults, name_of(one.labels),
        may_start_anew=name == HARDWARE_COUNTER,
    )  # fmt: skip
    component, _, unit = quantity.name.rpartition("_")
    device = one.labels.get(quantity.device, "") if quantity.device else ""
    place = Place(host, component.removesuffix("_energy").removesuffix("_power"), quantity.origin, device)
    tells_energy = quantity.origin in ORIGINS and unit in UNITS
    if known is None:
        source.faults.add("series of fewer than two samples")
        if tells_energy:
            # The device is there; that nothing is known of it must not make the sum of the others its node's.
            gathered.joules[place].setdefault(UNITS[unit], np.full(pieces.count, np.nan))
        return
    gathered.intervals.append(known.interval_s)
    count = pieces.summed(known.samples(pieces.starts, pieces.ends).astype(float))
    gathered.samples[host] = np.maximum(gathered.samples.get(host, np.zeros_like(count)), count)
    if tells_energy:
        _take_energy(gathered, place, UNITS[unit], known, pieces)
    elif quantity.kind == "counter":
        _add(gathered.totals[host], quantity.name, _gained(known, pieces))
    elif quantity.name.startswith("host_memory"):
        gathered.memory[host][quantity.name] = pieces.lowest(known.lowest(pieces.starts, pieces.ends))
    elif quantity.name in MEANS:
        amount, covered, share = _covered(known, pieces)
        with np.errstate(invalid="ignore", divide="ignore"):
            gathered.means[host][quantity.name].append(np.where(share >= ENOUGH, amount / covered, np.nan))
        if quantity.name in HIGHEST:
            top = pieces.highest(known.highest(pieces.starts, pieces.ends))
            before = gathered.highest[host].get(quantity.name)
            gathered.highest[host][quantity.name] = top if before is None else np.fmax(before, top)


def _take_energy(gathered: Gathered, place: Place, kind: str, known: Curve, pieces: Pieces) -> None:
    amount, _, share = _covered(known, pieces)
    with np.errstate(invalid="ignore", divide="ignore"):
        # What a window used in the little that is not covered is taken to be as in the rest.
        gathered.joules[place][kind] = np.where(share >= ENOUGH, amount / share, np.nan)
    if pieces.turns:
        gathered.turns[place][kind] = pieces.apportioned(known)


def _covered(known: Curve, pieces: Pieces) -> tuple[Floats, Floats, Floats]:
    """Of each window: increase or integral, seconds that samples cover, and these as a share of all."""
    amount, covered = (pieces.summed(x) for x in known.over(pieces.starts, pieces.ends))
    return amount, covered, np.divide(covered, pieces.seconds, out=np.zeros_like(covered), where=pieces.seconds > 0)


def _gained(known: Curve, pieces: Pieces) -> Floats:
    """A counter's increase, as it is where it covers part of a window: processes and interfaces come and go."""
    amount, _, share = _covered(known, pieces)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(share >= ENOUGH, amount / share, amount)


def _add(sums: dict[str, Floats], name: str, amount: Floats) -> None:
    sums[name] = sums[name] + amount if name in sums else amount


def _median_within(one: Series, start: float, end: float) -> float:
    inside = one.values[(one.times >= start) & (one.times <= end) & np.isfinite(one.values)]
    return float(np.median(inside)) if len(inside) else math.nan
