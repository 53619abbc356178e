"""What pieces of cases used: one source of telemetry and the windows that it covers -> energy, utilisation, traffic."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from harness.collect.telemetry.clocks import offsets_of
from harness.collect.telemetry.curves import Floats, curve
from harness.collect.telemetry.quantities import (
    ABOUT,
    ANNOTATION,
    COMPONENTS,
    FIGURE_OF_MERIT,
    HARDWARE_COUNTER,
    ORIGINS,
    host_of,
    quantity_of,
)
from harness.collect.telemetry.series import Series, Source
from harness.collect.telemetry.windows import Window

# Below this share of a window (or of its nodes) there is no telling what it used.
ENOUGH = 0.9
# A window (and each of its pieces) must hold so many sampling intervals: its ends are known to one.
LEAST_INTERVALS = 2.0
MEANS = (
    "accelerator_utilization_percent", "accelerator_memory_percent", "accelerator_clock_mhz",
    "accelerator_temperature_c", "busy_cores",
)  # fmt: skip
HIGHEST = {
    "accelerator_memory_percent": "accelerator_memory_highest_percent",
    "accelerator_temperature_c": "accelerator_temperature_highest_c",
}
TOTALS = ("received_bytes", "sent_bytes", "read_bytes", "written_bytes", "local_read_bytes", "local_written_bytes",
          "memory_traffic_bytes", "sampler_cpu_s")  # fmt: skip
FLOP = "flop_"
# The even die of an MI250X carries the power of both.
SILENT = "devices that report 0 W"


@dataclass
class Usage:
    """What a window used.

    energy_j: component -> joules, of as many nodes as were seen; how: component -> where the joules are from.
    figures: means, highest values, totals and rates, by name. why_not: why there is no energy, if there is none.
    """

    window: Window
    source: str
    nodes_seen: int = 0
    nodes: int = 0
    interval_s: float = math.nan
    samples: int = 0
    energy_j: dict[str, float] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    why_not: str = ""


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
    # host -> name -> (sums, how many series)
    means: dict[str, dict[str, list[Floats]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    highest: dict[str, dict[str, Floats]] = field(default_factory=lambda: defaultdict(dict))
    totals: dict[str, dict[str, Floats]] = field(default_factory=lambda: defaultdict(dict))
    memory: dict[str, dict[str, Floats]] = field(default_factory=lambda: defaultdict(dict))
    samples: dict[str, Floats] = field(default_factory=dict)
    intervals: list[float] = field(default_factory=list)
    merits: dict[str, list[Floats]] = field(default_factory=lambda: defaultdict(list))


def usages(source: Source, windows: Sequence[Window]) -> list[Usage]:
    """What each window used, as far as the source tells; its faults are complete afterwards."""
    offsets = offsets_of(source.spans(), source.faults)
    pieces = _Pieces(windows)
    gathered = Gathered()
    for one in source.series():
        shifted = Series(one.labels, one.times - offsets.get(host_of(one.labels), 0.0), one.values)
        _take(gathered, shifted, pieces, source)
    interval = float(np.median(gathered.intervals)) if gathered.intervals else math.nan
    hosts = set(source.spans())
    silent = [p for p, told in gathered.joules.items() if p.device and "power" in told and not np.nansum(told["power"])]
    source.faults.counts[SILENT] += len(silent)
    return [_usage(k, window, gathered, source, interval, hosts) for k, window in enumerate(windows)]


class _Pieces:
    """The pieces of all windows as arrays, and sums over those of each window."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.owner = np.repeat(np.arange(len(windows)), [len(w.pieces) for w in windows])
        flat = [piece for window in windows for piece in window.pieces]
        self.starts, self.ends = (np.array([p[k] for p in flat], dtype=float) for k in (0, 1))
        self.count = len(windows)
        self.seconds = self.summed(self.ends - self.starts)

    def summed(self, values: Floats) -> Floats:
        return np.bincount(self.owner, weights=values, minlength=self.count).astype(np.float64)

    def highest(self, values: Floats) -> Floats:
        found = np.full(self.count, -np.inf)
        np.fmax.at(found, self.owner, values)
        return np.where(np.isfinite(found), found, np.nan)

    def lowest(self, values: Floats) -> Floats:
        return -self.highest(-values)


def _take(gathered: Gathered, one: Series, pieces: _Pieces, source: Source) -> None:
    host, name = host_of(one.labels), one.labels.get("__name__")
    if name == FIGURE_OF_MERIT:
        inside = np.array([_median_within(one, s, e) for s, e in zip(pieces.starts, pieces.ends, strict=True)])
        gathered.merits[one.labels.get("name", "")].append(pieces.highest(inside))
        return
    quantity = quantity_of(one.labels)
    assert quantity is not None
    known = curve(
        one.times, one.values * quantity.scale, quantity.kind, source.faults.counts,
        may_start_anew=name == HARDWARE_COUNTER,
    )  # fmt: skip
    if known is None:
        source.faults.add("series of fewer than two samples")
        return
    gathered.intervals.append(known.interval_s)
    amount, covered = (pieces.summed(x) for x in known.over(pieces.starts, pieces.ends))
    known_share = np.divide(covered, pieces.seconds, out=np.zeros_like(covered), where=pieces.seconds > 0)
    count = pieces.summed(known.samples(pieces.starts, pieces.ends).astype(float))
    gathered.samples[host] = np.maximum(gathered.samples.get(host, np.zeros_like(count)), count)
    with np.errstate(invalid="ignore", divide="ignore"):
        # What a window used in the little that is not covered is taken to be as in the rest.
        whole = np.where(known_share >= ENOUGH, amount / known_share, np.nan)
        mean = np.where(known_share >= ENOUGH, amount / covered, np.nan)
    component, _, unit = quantity.name.rpartition("_")
    device = one.labels.get(quantity.device, "") if quantity.device else ""
    if quantity.origin in ORIGINS and unit in ("j", "w"):
        place = Place(host, component.removesuffix("_energy").removesuffix("_power"), quantity.origin, device)
        gathered.joules[place]["counter" if unit == "j" else "power"] = whole
    elif quantity.kind == "counter":
        before = gathered.totals[host].get(quantity.name)
        # Processes come and go: what a series that covers part of a window has gained is counted as it is.
        gained = np.where(np.isfinite(whole), whole, amount)
        gathered.totals[host][quantity.name] = gained if before is None else before + gained
    elif quantity.name.startswith("host_memory"):
        gathered.memory[host][quantity.name] = pieces.lowest(known.lowest(pieces.starts, pieces.ends))
    elif quantity.name in MEANS:
        gathered.means[host][quantity.name].append(mean)
        if quantity.name in HIGHEST:
            top = pieces.highest(known.highest(pieces.starts, pieces.ends))
            before = gathered.highest[host].get(quantity.name)
            gathered.highest[host][quantity.name] = top if before is None else np.fmax(before, top)


def _median_within(one: Series, start: float, end: float) -> float:
    inside = one.values[(one.times >= start) & (one.times <= end)]
    return float(np.median(inside)) if len(inside) else math.nan


def _usage(k: int, window: Window, gathered: Gathered, source: Source, interval: float, hosts: set[str]) -> Usage:
    nodes = tuple(frozenset([host]) for host in hosts) if window.nodes is None else window.nodes
    seen = [
        h
        for h in sorted(hosts.intersection(*nodes and [frozenset.union(*nodes)]))
        if h in gathered.samples and gathered.samples[h][k] > 0
    ]
    usage = Usage(window, source.path.name, sum(not node.isdisjoint(seen) for node in nodes), len(nodes), interval)
    usage.samples = int(sum(gathered.samples[h][k] for h in seen))
    usage.why_not = _why_not(usage, interval)
    if usage.why_not:
        return usage
    for component in COMPONENTS:
        _energy(usage, component, k, seen, gathered)
    _figures(usage, k, seen, gathered)
    if not usage.energy_j:
        usage.why_not = "no power or energy sensor"
    return usage


def _why_not(usage: Usage, interval: float) -> str:
    if not usage.samples or not usage.nodes_seen:
        return "no samples"
    if usage.nodes_seen < ENOUGH * usage.nodes:
        return f"only {usage.nodes_seen} of {usage.nodes} nodes sent samples"
    shortest = min(end - start for start, end in usage.window.pieces)
    if not shortest >= LEAST_INTERVALS * interval:
        return f"too short: pieces of {shortest:.3g} s, samples every {interval:.3g} s"
    return ""


def _energy(usage: Usage, component: str, k: int, hosts: Sequence[str], gathered: Gathered) -> None:
    """Joules of a component on all the window's nodes: of each node from its best origin, of each device by its counter
    where that moved, else by its power. A node that tells nothing leaves the component without a number."""
    found: list[float] = []
    how: set[str] = set()
    for host in hosts:
        for origin in ORIGINS:
            own = [v for place, v in gathered.joules.items() if place[:3] == (host, component, origin)]
            told = [_device(device, k) for device in own]
            if own and all(joules is not None for joules, _ in told):
                found.append(sum(joules for joules, _ in told if joules is not None))
                how |= {word for _, word in told}
                break
    if found and len(found) == len(hosts):
        usage.energy_j[component] = sum(found)
        usage.how[component] = " and ".join(sorted(how))


def _device(device: Mapping[str, Floats], k: int) -> tuple[float | None, str]:
    counter, power = (float(device[name][k]) if name in device else math.nan for name in ("counter", "power"))
    if counter > 0 or (counter == 0 and not power > 0):
        return counter, "counter"
    return (power, "power integrated") if not math.isnan(power) else (None, "")


def _figures(usage: Usage, k: int, hosts: Sequence[str], gathered: Gathered) -> None:
    figures, seconds = usage.figures, usage.window.seconds
    for name in MEANS:
        values = [float(series[k]) for h in hosts for series in gathered.means[h].get(name, [])]
        known = [v for v in values if not math.isnan(v)]
        if known:
            figures[name] = sum(known) / (len(hosts) if name == "busy_cores" else len(known))
    for name, said in HIGHEST.items():
        highest = [float(gathered.highest[h][name][k]) for h in hosts if name in gathered.highest[h]]
        if highest and not all(map(math.isnan, highest)):
            figures[said] = float(np.nanmax(highest))
    for name in sorted({n for h in hosts for n in gathered.totals[h]}):
        figures[name] = sum(float(gathered.totals[h][name][k]) for h in hosts if name in gathered.totals[h])
    flop = [value for name, value in figures.items() if name.startswith(FLOP)]
    if flop:
        figures["counted_gflop_per_s"] = sum(flop) / seconds / 1e9
    if "memory_traffic_bytes" in figures:
        figures["counted_gb_per_s"] = figures["memory_traffic_bytes"] / seconds / 1e9
    used = [_used(gathered.memory[h], k) for h in hosts]
    if used and not any(map(math.isnan, used)):
        figures["host_memory_used_highest_bytes"] = max(used)
    for name, series in gathered.merits.items():
        values = [float(one[k]) for one in series if not math.isnan(one[k])]
        if values:
            figures[f"merit {name}"] = float(np.median(values))


def _used(memory: Mapping[str, Floats], k: int) -> float:
    total, available = (memory.get(f"host_memory_{n}_bytes") for n in ("total", "available"))
    return float(total[k] - available[k]) if total is not None and available is not None else math.nan


def markers(source: Source) -> list[tuple[str, float, float]]:
    """Annotations: marker, and the times of its first and last sample that stood (0 says that it was stopped)."""
    found: dict[str, tuple[float, float]] = {}
    for one in source.job_series():
        if one.labels.get("__name__") != ANNOTATION:
            continue
        standing = one.times[one.values > 0]
        if len(standing):
            first, last = float(min(standing.min(), one.values[one.values > 0].min())), float(one.times.max())
            low, high = found.get(one.labels.get("marker", ""), (first, last))
            found[one.labels.get("marker", "")] = (min(low, first), max(high, last))
    return [(marker, *span) for marker, span in sorted(found.items(), key=lambda item: item[1])]


def version_of(source: Source) -> str:
    """The collector's version, where it says."""
    said = {one.labels.get("version", "") for one in source.job_series() if one.labels.get("__name__") == ABOUT}
    return ", ".join(sorted(said - {""}))
