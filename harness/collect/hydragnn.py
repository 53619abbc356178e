"""Logs of the original code, HydraGNN (github.com/ORNL/HydraGNN) -> run folders like those of the harness's own runs.

Read are, of every file below a folder: lines of standard output, with or without the launcher's `rank:` before them
(epochs with their losses, errors of the tasks in validation, local timers, throughput of inference), and the files of
its tracer (gp_full.p<rank> and <tool>_energy.p<rank>). What is none of these is passed over and counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.events import FILE_NAME
from harness.jobs.files import write_text

PROGRAM, CAMPAIGN = "hydragnn", "hydragnn-original"
NUMBER = r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))"
PREFIX = r"^\s*(?:\d+:\s*)?"
EPOCH = re.compile(
    rf"{PREFIX}Epoch:\s*(\d+),\s*Train Loss:\s*{NUMBER},\s*Val Loss:\s*{NUMBER},\s*Test Loss:\s*{NUMBER}"
)
TASKS = re.compile(rf"{PREFIX}Tasks (Train|Val|Test) Loss:\s*\[([^\]]*)\]")
TIMER = re.compile(rf"{PREFIX}Process (\d+) - Local timer:\s*(\S+)\s*:\s*{NUMBER}")
RATE = re.compile(rf"{PREFIX}Throughput:\s*{NUMBER}\s*structures/s")
TRACE = re.compile(r"^gp_full\.p(\d+)$")
ENERGY = re.compile(r"^(\w+)_energy\.p(\d+)$")
SPLITS = {"Train": "train", "Val": "validation", "Test": "test"}
ENERGY_COLUMNS = ("ncalls", "mean", "total", "median", "std_dev", "max", "min")
TEXT = (".log", ".out", ".txt", ".err", "")
LARGEST = 2 * 2**30


def take_in(place: Path, out: Path) -> list[Path]:
    """Make a run folder below out/runs for each folder of logs under `place`, and return them.

    Raises UsageError where there is no folder, and where no file in it is a log of the original's.
    """
    if not place.is_dir():
        raise UsageError(f"{place}: no such folder")
    made = []
    for folder in sorted({place, *(p for p in place.rglob("*") if p.is_dir())}):
        events = list(events_of(folder))
        if events:
            name = "-".join(folder.resolve().relative_to(place.resolve().parent).parts)
            made.append(_written(out / "runs" / CAMPAIGN / name, name, folder, events))
    if not made:
        raise UsageError(
            f"{place}: no log of HydraGNN here; expected lines such as `0: Epoch: 00, Train Loss: 0.1, Val Loss: 0.1,"
            " Test Loss: 0.1`, or files gp_full.p0"
        )
    return made


def events_of(folder: Path) -> Iterator[dict[str, Any]]:
    """What the files of one folder, not those below it, tell."""
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.stat().st_size < LARGEST):
        if match := TRACE.match(path.name):
            yield from regions(_lines(path), int(match[1]))
        elif match := ENERGY.match(path.name):
            yield from energies(_lines(path), match[1], int(match[2]))
        elif path.suffix in TEXT:
            yield from told(_lines(path), path.name)


def told(lines: Iterable[str], source: str) -> Iterator[dict[str, Any]]:
    """Events of the lines of a log; a number that is none is null."""
    epoch = -1
    for number, line in enumerate(lines, start=1):
        at = {"source": source, "line": number}
        if match := EPOCH.match(line):
            epoch = int(match[1])
            losses = dict(zip(("loss", "validation_loss", "test_loss"), map(_finite, match.groups()[1:]), strict=True))
            yield {"event": "epoch", "epoch": epoch, **losses, **at}
        elif match := TASKS.match(line):
            values = [_finite(v) for v in re.findall(NUMBER, match[2])]
            yield {"event": "tasks", "epoch": epoch, "split": SPLITS[match[1]], "errors": values, **at}
        elif match := TIMER.match(line):
            yield {"event": "timer", "rank": int(match[1]), "name": match[2], "seconds": _finite(match[3]), **at}
        elif match := RATE.match(line):
            yield {"event": "sample", "structures_per_s": _finite(match[1]), **at}


def regions(lines: Iterable[str], rank: int) -> Iterator[dict[str, Any]]:
    """Of gp_full: rank, label, count, wallclock seconds."""
    for line in lines:
        parts = [part.strip() for part in line.split(",")]
        if len(parts) >= 4 and parts[2].isdigit() and (seconds := _finite(parts[3])) is not None:
            yield {"event": "region", "rank": rank, "name": parts[1], "calls": int(parts[2]), "seconds": seconds}


def energies(lines: Iterable[str], tool: str, rank: int) -> Iterator[dict[str, Any]]:
    """Of <tool>_energy: name, calls, and microjoule."""
    for line in lines:
        parts = re.split(r"[,\s]+", line.strip())
        if len(parts) == 1 + len(ENERGY_COLUMNS) and parts[1].isdigit():
            total = _finite(parts[1 + ENERGY_COLUMNS.index("total")])
            if total is not None:
                yield {"event": "energy", "tool": tool, "rank": rank, "name": parts[0], "calls": int(parts[1]),
                       "joule": 1e-6 * total}  # fmt: skip


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from file


def _written(folder: Path, name: str, source: Path, events: list[dict[str, Any]]) -> Path:
    """The run folder; one that is there already is written anew."""
    folder.mkdir(parents=True, exist_ok=True)
    case = {"id": name, "name": name, "suite": CAMPAIGN, "system": "original", "program": PROGRAM, "parameters": {},
            "point": {}, "source": str(source)}  # fmt: skip
    stamped = [{**event, "time_s": 0.0} for event in ({"event": "start"}, *events, {"event": "done"})]
    write_text(folder / "case.json", json.dumps(case, indent=2) + "\n")
    write_text(folder / FILE_NAME, "".join(json.dumps(e, allow_nan=False) + "\n" for e in stamped))
    write_text(folder / "exit_code", "0\n")
    return folder
