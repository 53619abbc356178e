"""What pieces of cases used: one source of telemetry and the windows that it covers -> energy, utilisation, traffic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.telemetry.aggregate import ENOUGH, HIGHEST, MEANS, Gathered, Pieces, take
from harness.telemetry.clock_skew import offsets_of
from harness.telemetry.metrics import COMPONENTS, ORIGINS, host_of
from harness.telemetry.timeseries import Floats, Series, Source
from harness.telemetry.windows import Window

# A window (and each of its pieces) must hold so many sampling intervals: its ends are known to one.
LEAST_INTERVALS = 2.0
# Energy by regression counts where two standard errors are at most this share of it.
CLOSE = 0.2
SHORT = "too short"
FLOP = "flop_"
# The even die of an MI250X carries the power of both.
SILENT = "devices that report 0 W"


@dataclass
class Usage:
    """What a window used.

    energy_j: component -> joules, of as many nodes as were seen; how: component -> where the joules are from.
    figures: means, highest values, totals and rates, by name. why_not: why there is no energy, if there is none.
    missing: a component that some nodes do not tell of in full, and that is left out.
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
    missing: str = ""


def usages(source: Source, windows: Sequence[Window]) -> list[Usage]:
    """What each window used, as far as the source tells; its faults are complete afterwards."""
    offsets = offsets_of(source.spans(), source.faults)
    pieces = Pieces(windows)
    gathered = Gathered()
    for one in source.series():
        shifted = Series(one.labels, one.times - offsets.get(host_of(one.labels), 0.0), one.values)
        take(gathered, shifted, pieces, source)
    interval = float(np.median(gathered.intervals)) if gathered.intervals else math.nan
    hosts = set(source.spans())
    silent = [p for p, told in gathered.joules.items() if p.device and "power" in told and not np.nansum(told["power"])]
    source.faults.counts[SILENT] += len(silent)
    return [_usage(k, window, gathered, source, interval, hosts) for k, window in enumerate(windows)]


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
    if usage.why_not.startswith(SHORT) and len(window.pieces) > 1:
        _regressed(usage, k, seen, gathered)
    if usage.why_not or usage.energy_j:
        return usage
    for component in COMPONENTS:
        _energy(usage, component, k, seen, gathered)
    _figures(usage, k, seen, gathered)
    if not usage.energy_j:
        usage.why_not = usage.missing or "no power or energy sensor"
    return usage


def _why_not(usage: Usage, interval: float) -> str:
    if not usage.samples or not usage.nodes_seen:
        return "no samples"
    if usage.nodes_seen < ENOUGH * usage.nodes:
        return f"only {usage.nodes_seen} of {usage.nodes} nodes sent samples"
    shortest = min(end - start for start, end in usage.window.pieces)
    if not shortest >= LEAST_INTERVALS * interval:
        return f"{SHORT}: pieces of {shortest:.3g} s, samples every {interval:.3g} s"
    return ""


def _energy(usage: Usage, component: str, k: int, hosts: Sequence[str], gathered: Gathered) -> None:
    """Joules of a component on all the window's nodes: of each node from its best origin, of each device by its counter
    where that moved, else by its power. A node that tells nothing, or of fewer devices than others do, leaves the
    component without a number."""
    found: list[float] = []
    how: set[str] = set()
    devices: set[int] = set()
    silent = 0
    for host in hosts:
        for origin in ORIGINS:
            own = [v for place, v in gathered.joules.items() if place[:3] == (host, component, origin)]
            told = [_device(device, k) for device in own]
            silent += sum(joules is None for joules, _ in told)
            if own and all(joules is not None for joules, _ in told):
                found.append(sum(joules for joules, _ in told if joules is not None))
                how |= {word for _, word in told}
                devices.add(len(own))
                break
    if len(devices) > 1:
        usage.missing = f"{component}: nodes with {min(devices)} and with {max(devices)} devices"
    elif found and len(found) == len(hosts):
        usage.energy_j[component] = sum(found)
        usage.how[component] = " and ".join(sorted(how))
    elif silent:
        usage.missing = f"{component}: {silent} devices with too few samples that are no fault"


def _regressed(usage: Usage, k: int, hosts: Sequence[str], gathered: Gathered) -> None:
    """Joules of a window that took turns with others, of the components whose sum is known well enough."""
    spreads = []
    for component in COMPONENTS:
        joules = variance = 0.0
        known = 0
        for host in hosts:
            for origin in ORIGINS:
                own = [(v, gathered.joules[p]) for p, v in gathered.turns.items() if p[:3] == (host, component, origin)]
                if own:
                    # a sensor that never moved says nothing of the device, whatever least squares make of it
                    told = [
                        v["counter" if "counter" in v and np.nansum(j["counter"]) > 0 else "power"]
                        for v, j in own
                        if "power" in v or np.nansum(j["counter"]) > 0
                    ]
                    joules += sum(float(amount[k]) for amount, _ in told)
                    variance += sum(float(off[k]) for _, off in told)
                    known += 1
                    break
        if known and known == len(hosts) and joules > 0:
            spread = 2.0 * math.sqrt(variance) / joules
            spreads.append(spread)
            if spread <= CLOSE:
                usage.energy_j[component] = joules
                usage.how[component] = f"regression over turns, within {spread:.0%}"
    if usage.energy_j:
        usage.why_not = ""
    elif spreads and not math.isnan(min(spreads)):
        usage.why_not += f"; by regression over turns known within {min(spreads):.0%} alone"


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
