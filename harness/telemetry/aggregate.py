"""Aggregate the series of a telemetry source over windows: one number per window, node and device."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from harness.telemetry.cumulative import CumulativeSeries, build_cumulative
from harness.telemetry.metrics import (
    FIGURE_OF_MERIT,
    HARDWARE_COUNTER,
    SENSOR_PRIORITY,
    format_name,
    get_bounds,
    get_host,
    identify_quantity,
)
from harness.telemetry.timeseries import Floats, Series, TelemetrySource
from harness.telemetry.windows import Window, group_alternating

MIN_COVERAGE = 0.9  # if samples cover a smaller share of a window (or of its nodes), its usage is unknown
# The gauges whose mean over each window is computed, and the names of the maxima of some of them.
MEANS = (
    "accelerator_utilization_percent", "accelerator_memory_percent", "accelerator_clock_mhz",
    "accelerator_temperature_c", "busy_cores",
)  # fmt: skip
MAXIMA = {
    "accelerator_memory_percent": "accelerator_memory_max_percent",
    "accelerator_temperature_c": "accelerator_temperature_max_c",
}
# Unit of an energy or power -> method of measurement.
ENERGY_METHODS = {"j": "counter", "w": "power"}


class SensorKey(NamedTuple):
    """One device of one node, as measured by one sensor."""

    host: str
    component: str
    sensor: str
    device: str


@dataclass
class Aggregates:
    """Aggregates over a source's series; every array has one number per window.

    Attributes:
        joules: Sensor -> "counter" or "power" -> joules; NaN if samples cover too little of the window.
        regressed: Sensor -> "counter" or "power" -> joules and their variances from a regression, for windows of a case
            that alternate.
        means: Host -> quantity -> mean of each series.
        maxima: Host -> quantity -> largest sample.
        totals: Host -> quantity -> increase of counters.
        memory: Host -> quantity (total or available memory of the host) -> smallest sample.
        samples: Host -> number of samples.
        intervals: Sampling interval of each series in seconds, whatever the window.
        figures_of_merit: Name -> median of each series.
    """

    joules: dict[SensorKey, dict[str, Floats]] = field(default_factory=lambda: defaultdict(dict))
    regressed: dict[SensorKey, dict[str, tuple[Floats, Floats]]] = field(default_factory=lambda: defaultdict(dict))
    means: dict[str, dict[str, list[Floats]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    maxima: dict[str, dict[str, Floats]] = field(default_factory=lambda: defaultdict(dict))
    totals: dict[str, dict[str, Floats]] = field(default_factory=lambda: defaultdict(dict))
    memory: dict[str, dict[str, Floats]] = field(default_factory=lambda: defaultdict(dict))
    samples: dict[str, Floats] = field(default_factory=dict)
    intervals: list[float] = field(default_factory=list)
    figures_of_merit: dict[str, list[Floats]] = field(default_factory=lambda: defaultdict(list))

    @cached_property
    def devices(self) -> dict[tuple[str, str, str], list[SensorKey]]:
        """The keys of `joules` by host, component and sensor, once all series are added."""
        keys: dict[tuple[str, str, str], list[SensorKey]] = {}
        for key in self.joules:
            keys.setdefault(key[:3], []).append(key)
        return keys


class WindowIntervals:
    """The intervals of all windows as arrays of Unix times, and reductions over the intervals of each window."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.window_of_interval = np.repeat(np.arange(len(windows)), [len(w.intervals) for w in windows])
        intervals = np.array([interval for window in windows for interval in window.intervals], dtype=float).reshape(
            -1, 2
        )
        self.starts, self.ends = intervals.T
        self.count = len(windows)
        self.alternating = list(group_alternating(windows))
        self.seconds = self.sum(self.ends - self.starts)

    def regress_energy(self, energy: CumulativeSeries) -> tuple[Floats, Floats]:
        """Return energy (J) and variance (J^2) of each alternating window; NaN for the other windows."""
        joules, variance = np.full((2, self.count), np.nan)
        for group in self.alternating:
            joules[group.indices], variance[group.indices] = group.regress_energy(energy)
        return joules, variance

    def integrate(self, curve: CumulativeSeries) -> tuple[Floats, Floats, Floats]:
        """Return the increase or integral, the covered seconds, and the covered share of each window."""
        amount, covered = (self.sum(values) for values in curve.integrate(self.starts, self.ends))
        return amount, covered, np.divide(covered, self.seconds, out=np.zeros_like(covered), where=self.seconds > 0)

    def sum(self, values: Floats) -> Floats:
        """Return the sum over each window's intervals, (n_windows,), of one value for each interval."""
        return np.bincount(self.window_of_interval, weights=values, minlength=self.count).astype(np.float64)

    def max(self, values: Floats) -> Floats:
        """Return the maximum over each window's intervals, (n_windows,); NaN if all values are NaN."""
        largest = np.full(self.count, -np.inf)
        np.fmax.at(largest, self.window_of_interval, values)
        return np.where(np.isfinite(largest), largest, np.nan)

    def min(self, values: Floats) -> Floats:
        """Return the minimum over each window's intervals, (n_windows,); NaN if all values are NaN."""
        return -self.max(-values)


def add_series(
    aggregates: Aggregates, series: Series, window_intervals: WindowIntervals, source: TelemetrySource
) -> None:
    """Add a series to the aggregates, and its faults to those of the source."""
    host, name = get_host(series.labels), series.labels.get("__name__")
    if name == FIGURE_OF_MERIT:
        medians = [
            _compute_median(series, s, e) for s, e in zip(window_intervals.starts, window_intervals.ends, strict=True)
        ]
        aggregates.figures_of_merit[series.labels.get("name", "")].append(window_intervals.max(np.array(medians)))
        return
    quantity = identify_quantity(series.labels)
    assert quantity is not None
    with np.errstate(over="ignore"):
        values = series.values * quantity.scale
    curve = build_cumulative(
        series.times, values, quantity.kind, get_bounds(quantity), source.faults, name=format_name(series.labels),
        may_restart=name == HARDWARE_COUNTER,
    )  # fmt: skip
    component, _, unit = quantity.name.rpartition("_")
    device = series.labels.get(quantity.device, "") if quantity.device else ""
    key = SensorKey(host, component.removesuffix("_energy").removesuffix("_power"), quantity.sensor, device)
    measures_energy = quantity.sensor in SENSOR_PRIORITY and unit in ENERGY_METHODS
    if curve is None:
        source.faults.add("series of fewer than two samples")
        if measures_energy:
            # without the energy of this device, the sum over the others is not the energy of the node
            aggregates.joules[key].setdefault(ENERGY_METHODS[unit], np.full(window_intervals.count, np.nan))
        return
    aggregates.intervals.append(curve.interval_s)
    n_samples = window_intervals.sum(curve.count_samples(window_intervals.starts, window_intervals.ends).astype(float))
    aggregates.samples[host] = np.maximum(aggregates.samples.get(host, np.zeros_like(n_samples)), n_samples)
    if measures_energy:
        _add_energy(aggregates, key, ENERGY_METHODS[unit], curve, window_intervals)
    elif quantity.kind == "counter":
        totals = aggregates.totals[host]
        totals[quantity.name] = totals.get(quantity.name, 0.0) + _compute_counter_increase(curve, window_intervals)
    elif quantity.name.startswith("host_memory"):
        smallest = window_intervals.min(curve.compute_min(window_intervals.starts, window_intervals.ends))
        aggregates.memory[host][quantity.name] = smallest
    elif quantity.name in MEANS:
        _add_gauge(aggregates, host, quantity.name, curve, window_intervals)


def _add_energy(
    aggregates: Aggregates, key: SensorKey, method: str, curve: CumulativeSeries, window_intervals: WindowIntervals
) -> None:
    amount, _, share = window_intervals.integrate(curve)
    with np.errstate(invalid="ignore", divide="ignore"):
        # assume that the rate in the small uncovered part equals the rate in the covered part
        aggregates.joules[key][method] = np.where(share >= MIN_COVERAGE, amount / share, np.nan)
    if window_intervals.alternating:
        aggregates.regressed[key][method] = window_intervals.regress_energy(curve)


def _add_gauge(
    aggregates: Aggregates, host: str, name: str, curve: CumulativeSeries, window_intervals: WindowIntervals
) -> None:
    amount, covered, share = window_intervals.integrate(curve)
    with np.errstate(invalid="ignore", divide="ignore"):
        aggregates.means[host][name].append(np.where(share >= MIN_COVERAGE, amount / covered, np.nan))
    if name in MAXIMA:
        largest = window_intervals.max(curve.compute_max(window_intervals.starts, window_intervals.ends))
        previous = aggregates.maxima[host].get(name, largest)
        aggregates.maxima[host][name] = np.fmax(previous, largest)


def _compute_counter_increase(curve: CumulativeSeries, window_intervals: WindowIntervals) -> Floats:
    """Return a counter's increase, scaled to the whole window only if samples cover most of it.

    If they cover less, the process or network interface may have existed only during a part of the window.
    """
    amount, _, share = window_intervals.integrate(curve)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(share >= MIN_COVERAGE, amount / share, amount)


def _compute_median(series: Series, start: float, end: float) -> float:
    inside = series.values[(series.times >= start) & (series.times <= end) & np.isfinite(series.values)]
    return float(np.median(inside)) if len(inside) else math.nan
