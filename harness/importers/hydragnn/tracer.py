"""Read the tracer's files, one per rank: gp_full (a row for each call), gp_timing (a table) and <tool>_energy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from harness.importers.hydragnn.files import Line
from harness.importers.hydragnn.log_parser import parse_finite

FULL_TRACE_NAME, TIMING_NAME, ENERGY_NAME = (
    re.compile(rf"^{name}\.p(\d{{1,8}})$", re.A) for name in ("gp_full", "gp_timing", r"(rocm|nvml|xpu)_energy")
)
ENERGY_COLUMNS = ("ncalls", "mean", "total", "median", "std_dev", "max", "min")
TABLE = re.compile(
    r"^[\s*]*(\S.*?)\s+(\d{1,18}|\d\.\d+e[+-]?\d+)\s+(-|\d+)\s+([-+]?[\d.]+(?:e[+-]?\d+)?)(?:\s|$)", re.A
)
THREAD = "Stats for thread "
# Limits of plausible values: the duration of a call, and the power of a device.
MAX_CALL_S, MAX_POWER_W = 1e7, 5000.0
JOULES_PER_MICROJOULE = 1e-6


@dataclass
class Regions:
    """The regions of one rank: calls, seconds and joules by name, and counts of unreadable rows by kind."""

    calls: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    joules: dict[str, float] = field(default_factory=dict)
    tool: str = ""
    faults: Counter[str] = field(default_factory=Counter)


def read_full(lines: Iterable[Line], regions: Regions) -> None:
    """Add up the rows `rank,label,count,wallclock`: a row is one call, and its count includes all earlier calls."""
    last: dict[str, int] = {}
    for line in lines:
        rank, _, rest = line.text.partition(",")
        label, *numbers = rest.rsplit(",", 2)
        if rank.strip() == "rank" or not line.text.strip():
            continue
        count, seconds = (numbers[0].strip(), parse_finite(numbers[1])) if len(numbers) == 2 else ("", None)
        if not line.is_whole:
            regions.faults["rows cut off"] += 1
        elif not re.fullmatch(r"[1-9]\d{0,17}", count, re.A) or seconds is None or not 0 <= seconds <= MAX_CALL_S:
            regions.faults["rows that are not a call (its count, and seconds of 0 or more)"] += 1
        else:
            name = label.strip()
            # A decreasing count means that the tracer was started again.
            increase = int(count) - last.get(name, 0)
            regions.calls[name] = regions.calls.get(name, 0) + (increase if increase > 0 else int(count))
            regions.seconds[name] = regions.seconds.get(name, 0.0) + seconds
            last[name] = int(count)


def read_timing(lines: Iterable[Line], regions: Regions) -> None:
    """Read the table of the first thread: region, calls, recursion, seconds, and more."""
    is_inside = False
    for line in lines:
        if line.text.startswith(THREAD):
            if is_inside:
                break
            is_inside = True
        elif is_inside and line.is_whole and (match := TABLE.match(line.text)):
            calls, seconds = parse_finite(match[2]), parse_finite(match[4])
            if calls is None or seconds is None or not 0 <= seconds <= MAX_CALL_S * max(calls, 1.0):
                regions.faults["rows that are not a region (calls, and seconds of 0 or more)"] += 1
            else:
                regions.calls[match[1]] = regions.calls.get(match[1], 0) + int(calls)
                regions.seconds[match[1]] = regions.seconds.get(match[1], 0.0) + seconds


def read_energy(lines: Iterable[Line], tool: str, regions: Regions) -> None:
    """Add up the totals of the rows `name, ncalls, mean, total, ...`, in microjoules."""
    if regions.tool and regions.tool != tool:
        regions.faults[f"{tool}_energy, skipped since {regions.tool}_energy is of the same rank"] += 1
        return
    regions.tool = tool
    for line in lines:
        parts = re.split(r"[,\s]+", line.text.strip())
        if parts[0] == "name" or not line.text.strip():
            continue
        total = parse_finite(parts[-5]) if len(parts) > len(ENERGY_COLUMNS) else None
        if total is None or total < 0 or not line.is_whole:
            regions.faults["rows that are not an energy (0 or more microjoules)"] += 1
        else:
            name = " ".join(parts[: -len(ENERGY_COLUMNS)])
            regions.joules[name] = regions.joules.get(name, 0.0) + JOULES_PER_MICROJOULE * total


def drop_impossible_energies(regions: Regions) -> None:
    """Remove the energies that exceed MAX_POWER_W times the seconds of their region."""
    for name in list(regions.joules):
        seconds = regions.seconds.get(name)
        if seconds is not None and regions.joules[name] > MAX_POWER_W * (seconds + 1.0):
            del regions.joules[name]
            regions.faults[f"energies that imply more than {MAX_POWER_W:,.0f} W"] += 1
