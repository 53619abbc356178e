"""Files of the tracer, one a rank: gp_full (a row a call), gp_timing (a table) and <tool>_energy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from harness.importers.hydragnn.files import Line
from harness.importers.hydragnn.lines import finite

FULL, TIMING, ENERGY = (
    re.compile(rf"^{name}\.p(\d{{1,8}})$", re.A) for name in ("gp_full", "gp_timing", r"(rocm|nvml|xpu)_energy")
)
ENERGY_COLUMNS = ("ncalls", "mean", "total", "median", "std_dev", "max", "min")
TABLE = re.compile(
    r"^[\s*]*(\S.*?)\s+(\d{1,18}|\d\.\d+e[+-]?\d+)\s+(-|\d+)\s+([-+]?[\d.]+(?:e[+-]?\d+)?)(?:\s|$)", re.A
)
THREAD = "Stats for thread "
# A call of more seconds, or a device that draws more watts over a region, is none.
LONGEST_S, MOST_WATTS = 1e7, 5000.0
MICRO = 1e-6


@dataclass
class Regions:
    """Of one rank: region -> calls and seconds, and joules by tool; what could not be read, counted."""

    calls: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    joules: dict[str, float] = field(default_factory=dict)
    tool: str = ""
    faults: Counter[str] = field(default_factory=Counter)


def read_full(lines: Iterable[Line], into: Regions) -> None:
    """Sum up the rows `rank,label,count,wallclock`: a row is one call, its count is of all calls so far."""
    last: dict[str, int] = {}
    for line in lines:
        rank, _, rest = line.text.partition(",")
        label, *numbers = rest.rsplit(",", 2)
        if rank.strip() == "rank" or not line.text.strip():
            continue
        count, seconds = (numbers[0].strip(), finite(numbers[1])) if len(numbers) == 2 else ("", None)
        if not line.is_whole:
            into.faults["rows cut off"] += 1
        elif not re.fullmatch(r"[1-9]\d{0,17}", count, re.A) or seconds is None or not 0 <= seconds <= LONGEST_S:
            into.faults["rows that are no call (its count, and seconds of 0 or more)"] += 1
        else:
            name = label.strip()
            # A count that falls begins another run of the tracer.
            gained = int(count) - last.get(name, 0)
            into.calls[name] = into.calls.get(name, 0) + (gained if gained > 0 else int(count))
            into.seconds[name] = into.seconds.get(name, 0.0) + seconds
            last[name] = int(count)


def read_timing(lines: Iterable[Line], into: Regions) -> None:
    """Read the table of the first thread: region, calls, recursion, seconds, and more."""
    is_inside = False
    for line in lines:
        if line.text.startswith(THREAD):
            if is_inside:
                break
            is_inside = True
        elif is_inside and line.is_whole and (match := TABLE.match(line.text)):
            calls, seconds = finite(match[2]), finite(match[4])
            if calls is None or seconds is None or not 0 <= seconds <= LONGEST_S * max(calls, 1.0):
                into.faults["rows that are no region (calls, and seconds of 0 or more)"] += 1
            else:
                into.calls[match[1]] = into.calls.get(match[1], 0) + int(calls)
                into.seconds[match[1]] = into.seconds.get(match[1], 0.0) + seconds


def read_energy(lines: Iterable[Line], tool: str, into: Regions) -> None:
    """Read `name, ncalls, mean, total, ...`, in microjoules."""
    if into.tool and into.tool != tool:
        into.faults[f"{tool}_energy, passed over since {into.tool}_energy is of the same rank"] += 1
        return
    into.tool = tool
    for line in lines:
        parts = re.split(r"[,\s]+", line.text.strip())
        if parts[0] == "name" or not line.text.strip():
            continue
        total = finite(parts[-5]) if len(parts) > len(ENERGY_COLUMNS) else None
        if total is None or total < 0 or not line.is_whole:
            into.faults["rows that are no energy (0 or more microjoules)"] += 1
        else:
            name = " ".join(parts[: -len(ENERGY_COLUMNS)])
            into.joules[name] = into.joules.get(name, 0.0) + MICRO * total


def drop_impossible(into: Regions) -> None:
    """Leave out energies that no device draws in the seconds of their region."""
    for name in list(into.joules):
        seconds = into.seconds.get(name)
        if seconds is not None and into.joules[name] > MOST_WATTS * (seconds + 1.0):
            del into.joules[name]
            into.faults[f"energies of more than {MOST_WATTS:,.0f} W"] += 1
