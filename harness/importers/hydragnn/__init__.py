"""Logs of the original code, HydraGNN (github.com/ORNL/HydraGNN) -> run folders like those of the harness's own runs.

Read are, of every text file at or below a place, compressed or not: lines of standard output and run.log (epochs with
their losses, errors of the tasks, local timers, throughput of inference, command lines), config.json, and the files of
its tracer (gp_full.p<rank>, or gp_timing.p<rank> where there is none, and <tool>_energy.p<rank>). What several files
say of one run counts once; a file of several runs gives several. What is none of these is counted and named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.host.atomic_files import write_text
from harness.importers.hydragnn.files import list_files
from harness.importers.hydragnn.parameters import parameters_of
from harness.importers.hydragnn.runs import Place, Run, find_runs, notes_of, read_place
from harness.protocol.errors import UsageError
from harness.protocol.events import FILE_NAME
from harness.protocol.text import sanitize_line

PROGRAM, CAMPAIGN = "hydragnn", "hydragnn-original"
SHOWN, LONGEST_NAME = 5, 150


def take_in(place: Path, out: Path) -> list[Path]:
    """Make a run folder below out/runs for each run whose logs lie at or below `place`, and return them.

    Raises UsageError where there is nothing of that name, and where no file is a log of the original's.
    """
    if not place.exists():
        raise UsageError(f"{place}: no such file or folder")
    files = read_place(list_files(place))
    runs = find_runs(files)
    if not runs:
        raise UsageError(
            f"{place}: no log of HydraGNN here; expected lines such as `0: Epoch: 00, Train Loss: 0.1, Val Loss: 0.1,"
            f" Test Loss: 0.1`, or files gp_full.p0{_passed_over(files, '; ')}"
        )
    if files.passed_over:
        print(f"{place}{_passed_over(files, ': ')}")
    names = name_runs(runs, place)
    return [_write(out / "runs" / CAMPAIGN / name, name, run) for name, run in zip(names, runs, strict=True)]


def name_runs(runs: Sequence[Run], place: Path) -> list[str]:
    """Return a name for each run: its folder, below the place, and where that has several its own name or file."""
    alone = {folder: len([r for r in runs if r.folder == folder]) == 1 for folder in {r.folder for r in runs}}
    root = place if place.is_dir() else place.parent
    names: list[str] = []
    for run in runs:
        parts = [root.resolve().name, *run.folder.relative_to(root).parts] if place.is_dir() else [place.name]
        if not alone[run.folder]:
            parts.append(run.name or (run.segments[0].source.name if run.segments else "tracer"))
        name = plain = re.sub(r"[^\w.=+-]+", "-", "-".join(parts)).strip("-.")[-LONGEST_NAME:] or "run"
        number = 1
        while name in names:
            number += 1
            name = f"{plain}-{number}"
        names.append(name)
    return names


def events_of(run: Run) -> Iterator[dict[str, Any]]:
    """Yield what a run's files say, as events."""
    for epoch, rows in sorted(run.epochs.items()):
        row = rows[-1]
        at = {"source": sanitize_line(row.source.name), "line": row.line}
        losses = {name: row.losses.get(name) for name in ("loss", "validation_loss", "test_loss")}
        yield {"event": "epoch", "epoch": epoch, **losses, **at}
        for split, errors in row.errors.items():
            yield {"event": "tasks", "epoch": epoch, "split": split, "errors": list(errors), **at}
    timers = {key: value for segment in run.segments for key, value in segment.timers.items()}
    for (rank, name), seconds in timers.items():
        yield {"event": "timer", "rank": rank, "name": sanitize_line(name), "seconds": seconds}
    yield from ({"event": "sample", "structures_per_s": rate} for rate in _rates(run))
    for rank, regions in sorted(run.regions.items()):
        for name in sorted(regions.calls.keys() | regions.joules.keys()):
            at = {"rank": rank, "name": sanitize_line(name), "calls": regions.calls.get(name, 0)}
            if name in regions.seconds:
                yield {"event": "region", **at, "seconds": regions.seconds[name]}
            if name in regions.joules:
                yield {"event": "energy", "tool": regions.tool, **at, "joule": regions.joules[name]}


def _rates(run: Run) -> list[float]:
    """Every rate as often as the file says that has it most often: the others are copies."""
    files: dict[Path, list[float]] = {}
    for segment in run.segments:
        files.setdefault(segment.source, []).extend(segment.rates)
    often = {rate: max(rates.count(rate) for rates in files.values()) for rates in files.values() for rate in rates}
    return [rate for rate, number in often.items() for _ in range(number)]


def _passed_over(files: Place, before: str) -> str:
    if not files.passed_over:
        return ""
    shown = ", ".join(f"{sanitize_line(path.name)} ({sanitize_line(why)})" for path, why in files.passed_over[:SHOWN])
    more = f", and {len(files.passed_over) - SHOWN} more" if len(files.passed_over) > SHOWN else ""
    return f"{before}{len(files.passed_over)} files passed over: {shown}{more}"


def _write(folder: Path, name: str, run: Run) -> Path:
    """Write the run folder; one of an earlier call is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    parameters = parameters_of(run)
    size: dict[str, Any] = {key: parameters[key] for key in ("ranks", "nodes") if key in parameters}
    case: dict[str, Any] = {"id": name, "name": name, "suite": CAMPAIGN, "system": "original", "program": PROGRAM,
            "parameters": parameters, "point": {}, "source": sanitize_line(str(run.folder)), **size}  # fmt: skip
    notes = [sanitize_line(note) for note in notes_of(run)]
    events: list[dict[str, Any]] = [{"event": "start"}, *events_of(run)]
    events += [{"event": "fact", "name": "notes", "value": notes}, {"event": "done"}]
    write_text(folder / "case.json", json.dumps(case, indent=2) + "\n")
    write_text(folder / FILE_NAME, "".join(json.dumps({**e, "time_s": 0.0}, allow_nan=False) + "\n" for e in events))
    write_text(folder / "exit_code", "0\n")
    return folder
