"""Compute the usage of windows from one telemetry source: energy, utilization and traffic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field

from harness.telemetry.aggregate import MAXIMA, MEANS, MIN_COVERAGE, Aggregates, SensorKey, WindowIntervals, add_series
from harness.telemetry.metrics import COMPONENTS, SENSOR_PRIORITY, get_host
from harness.telemetry.timeseries import Floats, Series, TelemetrySource, find_clock_offsets
from harness.telemetry.windows import Window

# The shortest usable interval of a window, in sampling intervals: each end of it is uncertain by a sampling interval.
MIN_INTERVALS = 2.0
# The energy from a regression is used if two standard errors are at most this share of it.
MAX_REGRESSION_ERROR = 0.2
TOO_SHORT = "too short"
FLOP_PREFIX = "flop_"
# On an MI250X, the even die reports the power of both dies, and the odd die reports 0 W.
ZERO_POWER = "devices that report 0 W"
Joules = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(kw_only=True)
class CachedUsage:
    """The usage of a window without the window itself, as it is written to the cache.

    Attributes:
        source: File name of the source.
        nodes_sampled: Number of nodes with samples.
        nodes: Number of nodes of the window.
        interval_s: Median time between samples; NaN without samples.
        samples: Number of samples of all nodes.
        energy_j: Component -> joules of the nodes with samples.
        methods: Component -> method of measurement.
        quantities: Name with the unit -> mean, maximum, total or rate.
        unavailable_reason: The reason why the energy is unknown; empty if it is known.
        omitted_component: A component whose energy is unknown, with the reason; empty if there is none.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", ser_json_inf_nan="constants")

    source: str
    nodes_sampled: int = 0
    nodes: int = 0
    interval_s: float = math.nan
    samples: int = 0
    energy_j: dict[str, Joules] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)
    quantities: dict[str, float] = field(default_factory=dict)
    unavailable_reason: str = ""
    omitted_component: str = ""


@dataclass(kw_only=True)
class Usage(CachedUsage):
    """The energy, utilization and traffic of a window from one source."""

    window: Window


def compute_usage(source: TelemetrySource, windows: Sequence[Window]) -> list[Usage]:
    """Compute the usage of each window from a source, and add the problems of the source to source.faults."""
    offsets = find_clock_offsets(source.get_spans(), source.faults)
    window_intervals = WindowIntervals(windows)
    aggregates = Aggregates()
    for series in source.iter_series():
        corrected = Series(series.labels, series.times - offsets.get(get_host(series.labels), 0.0), series.values)
        add_series(aggregates, corrected, window_intervals, source)
    interval_s = float(np.median(aggregates.intervals)) if aggregates.intervals else math.nan
    source.faults.counts[ZERO_POWER] += sum(
        bool(key.device) and "power" in joules and not np.nansum(joules["power"])
        for key, joules in aggregates.joules.items()
    )
    hosts = set(source.get_spans())
    usages = [Usage(window=window, source=source.path.name, interval_s=interval_s) for window in windows]
    return [_WindowUsage(aggregates, hosts, k, usage).compute() for k, usage in enumerate(usages)]


class _WindowUsage:
    """The computation of the usage of window k from aggregates over all windows."""

    def __init__(self, aggregates: Aggregates, hosts: set[str], k: int, usage: Usage) -> None:
        nodes = usage.window.nodes
        if nodes is None:
            nodes = tuple(frozenset([host]) for host in hosts)
        known = hosts & frozenset().union(*nodes)
        self.hosts = [h for h in sorted(known) if h in aggregates.samples and aggregates.samples[h][k] > 0]
        self.aggregates, self.k, self.usage = aggregates, k, usage
        usage.nodes_sampled = sum(not node.isdisjoint(self.hosts) for node in nodes)
        usage.nodes = len(nodes)
        usage.samples = int(sum(aggregates.samples[h][k] for h in self.hosts))

    def compute(self) -> Usage:
        usage = self.usage
        usage.unavailable_reason = self._explain_missing_energy()
        if usage.unavailable_reason.startswith(TOO_SHORT) and len(usage.window.intervals) > 1:
            self._add_regressed_energy()
        if usage.unavailable_reason or usage.energy_j:
            return usage
        for component in COMPONENTS:
            self._add_energy(component)
        usage.quantities.update(self._iter_quantities())
        if not usage.energy_j:
            usage.unavailable_reason = usage.omitted_component or "no power or energy sensor"
        return usage

    def _explain_missing_energy(self) -> str:
        """Return why the samples do not determine the energy of the window; empty if they do."""
        usage = self.usage
        if not usage.samples or not usage.nodes_sampled:
            return "no samples"
        if usage.nodes_sampled < MIN_COVERAGE * usage.nodes:
            return f"only {usage.nodes_sampled} of {usage.nodes} nodes sent samples"
        shortest = min(end - start for start, end in usage.window.intervals)
        if not shortest >= MIN_INTERVALS * usage.interval_s:
            return f"{TOO_SHORT}: intervals of {shortest:.3g} s, samples every {usage.interval_s:.3g} s"
        return ""

    def _add_energy(self, component: str) -> None:
        """Add the joules of a component on all the window's nodes.

        For each node the best sensor is used, and for each device the energy counter if it increases, or else the
        power. The component is left out if the energy of a node is unknown, or if nodes differ in the number of
        devices.
        """
        joules: list[float] = []
        methods: set[str] = set()
        device_counts: set[int] = set()
        n_unknown = 0
        for host in self.hosts:
            for sensor in SENSOR_PRIORITY:
                keys = self.aggregates.devices.get((host, component, sensor), [])
                devices = [_select_device_energy(self.aggregates.joules[key], self.k) for key in keys]
                known = [device for device in devices if device is not None]
                n_unknown += len(devices) - len(known)
                if devices and len(known) == len(devices):
                    joules.append(sum(value for value, _ in known))
                    methods |= {method for _, method in known}
                    device_counts.add(len(devices))
                    break
        usage = self.usage
        if len(device_counts) > 1:
            usage.omitted_component = (
                f"{component}: nodes with {min(device_counts)} and with {max(device_counts)} devices"
            )
        elif joules and len(joules) == len(self.hosts):
            usage.energy_j[component] = sum(joules)
            usage.methods[component] = " and ".join(sorted(methods))
        elif n_unknown:
            usage.omitted_component = f"{component}: {n_unknown} devices with too few valid samples"

    def _add_regressed_energy(self) -> None:
        """Add the joules of a window that alternates with others, for components with a sufficiently small error."""
        usage = self.usage
        errors = []
        for component in COMPONENTS:
            per_host = [list(self._list_regressed_devices(host, component)) for host in self.hosts]
            devices = [device for host_devices in per_host for device in host_devices]
            joules = sum(float(value[self.k]) for value, _ in devices)
            if not per_host or not all(per_host) or not joules > 0:
                continue
            error = 2.0 * math.sqrt(sum(float(variance[self.k]) for _, variance in devices)) / joules
            errors.append(error)
            if error <= MAX_REGRESSION_ERROR:
                usage.energy_j[component] = joules
                usage.methods[component] = f"regression over alternating windows, within {error:.0%}"
        if usage.energy_j:
            usage.unavailable_reason = ""
        elif errors and not math.isnan(min(errors)):
            usage.unavailable_reason += f"; regression over alternating windows has an uncertainty of {min(errors):.0%}"

    def _list_regressed_devices(self, host: str, component: str) -> Iterator[tuple[Floats, Floats]]:
        """Yield joules and variance of each device of a host, from its best sensor."""
        for sensor in SENSOR_PRIORITY:
            known = self.aggregates.devices.get((host, component, sensor), [])
            keys = [key for key in known if key in self.aggregates.regressed]
            if keys:
                for key in keys:
                    yield from self._select_regressed_device(key)
                return

    def _select_regressed_device(self, key: SensorKey) -> Iterator[tuple[Floats, Floats]]:
        by_method = self.aggregates.regressed[key]
        # a counter that never increases is not connected to the device, whatever the fit gives
        if "counter" in by_method and np.nansum(self.aggregates.joules[key]["counter"]) > 0:
            yield by_method["counter"]
        elif "power" in by_method:
            yield by_method["power"]

    def _iter_quantities(self) -> Iterator[tuple[str, float]]:
        """Yield means, maxima, totals and rates by name."""
        aggregates, hosts, k = self.aggregates, self.hosts, self.k
        for name in MEANS:
            means = [float(series[k]) for h in hosts for series in aggregates.means[h].get(name, [])]
            known = [v for v in means if not math.isnan(v)]
            if known:
                yield name, sum(known) / (len(hosts) if name == "busy_cores" else len(known))
        for name, maximum_name in MAXIMA.items():
            largest = [float(aggregates.maxima[h][name][k]) for h in hosts if name in aggregates.maxima[h]]
            if largest and not all(map(math.isnan, largest)):
                yield maximum_name, float(np.nanmax(largest))
        totals = {
            name: sum(float(aggregates.totals[h][name][k]) for h in hosts if name in aggregates.totals[h])
            for name in sorted({n for h in hosts for n in aggregates.totals[h]})
        }
        yield from totals.items()
        seconds = self.usage.window.seconds
        flop = [total for name, total in totals.items() if name.startswith(FLOP_PREFIX)]
        if flop:
            yield "counter_gflop_per_s", sum(flop) / seconds / 1e9
        if "memory_traffic_bytes" in totals:
            yield "counter_gb_per_s", totals["memory_traffic_bytes"] / seconds / 1e9
        memory = [_compute_used_memory(aggregates.memory[h], k) for h in hosts]
        if memory and not any(map(math.isnan, memory)):
            yield "host_memory_used_max_bytes", max(memory)
        for name, medians in aggregates.figures_of_merit.items():
            known = [float(values[k]) for values in medians if not math.isnan(values[k])]
            if known:
                yield f"merit {name}", float(np.median(known))


def _select_device_energy(by_method: Mapping[str, Floats], k: int) -> tuple[float, str] | None:
    """Return joules of a device in window k and the method of measurement; None if they are unknown."""
    counter, power = (float(by_method[m][k]) if m in by_method else math.nan for m in ("counter", "power"))
    if counter > 0 or (counter == 0 and not power > 0):
        return counter, "counter"
    return None if math.isnan(power) else (power, "power integrated")


def _compute_used_memory(memory: Mapping[str, Floats], k: int) -> float:
    total, available = (memory.get(f"host_memory_{n}_bytes") for n in ("total", "available"))
    return float(total[k] - available[k]) if total is not None and available is not None else math.nan
