"""Combine the parts of several log files that belong to one run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.importers.hydragnn.files import READ_ERRORS, is_text, natural_key, read_lines, strip_compression_suffix
from harness.importers.hydragnn.log_parser import Segment, Versions, add_version, split_runs
from harness.importers.hydragnn.tracer import (
    ENERGY_NAME,
    FULL_TRACE_NAME,
    TIMING_NAME,
    Regions,
    drop_impossible_energies,
    read_energy,
    read_full,
    read_timing,
)

CONFIG, LOG = "config.json", "run.log"
MAX_NUMBERS = 8


@dataclass
class Run:
    """One run: its segments of log files, the regions of its tracer by rank, its configuration file, and notes."""

    folder: Path
    segments: list[Segment] = field(default_factory=list)
    regions: dict[int, Regions] = field(default_factory=dict)
    config: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name from a command line, or an empty string."""
        return next((s.name for s in self.segments if s.name), "")

    @property
    def epochs(self) -> Versions:
        """The rows of each epoch in all segments; a restart leaves several rows for one epoch."""
        result: Versions = {}
        for segment in self.segments:
            for epoch, rows in segment.epochs.items():
                for row in rows:
                    add_version(result, epoch, row)
        return result

    def accepts(self, segment: Segment) -> bool:
        """Return whether a segment belongs to this run: it repeats or continues the epochs, or restarts the run."""
        known, new = self.epochs, segment.epochs
        if not known or not new:
            return True
        if any(a.agrees(b) for epoch in known.keys() & new.keys() for a in known[epoch] for b in new[epoch]):
            return True
        return min(new) > min(known) or self._is_restarted_by(segment)

    def _is_restarted_by(self, segment: Segment) -> bool:
        return bool(segment.name) and any(s.options == segment.options for s in self.segments)


@dataclass
class LogFiles:
    """The content of log files.

    Attributes:
        segments: The segments of all log files.
        regions: The regions of the tracer files, by folder and rank.
        configs: The configuration file of each folder.
        skipped: Unusable files, with the reasons.
    """

    segments: list[Segment] = field(default_factory=list)
    regions: dict[Path, dict[int, Regions]] = field(default_factory=lambda: defaultdict(dict))
    configs: dict[Path, Path] = field(default_factory=dict)
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def read_files(files: Iterable[Path]) -> LogFiles:
    """Read the files, and the readable part of damaged ones."""
    logs = LogFiles()
    for path in files:
        if strip_compression_suffix(path) == CONFIG:
            logs.configs[path.parent] = path
            continue
        try:
            if not is_text(path):
                logs.skipped.append((path, "not text"))
            elif not _read_tracer(logs, path):
                _read_text(logs, path)
        except READ_ERRORS as error:
            logs.skipped.append((path, f"damaged: {error}"))
    for ranks in logs.regions.values():
        for regions in ranks.values():
            drop_impossible_energies(regions)
    return logs


def _read_text(logs: LogFiles, path: Path) -> None:
    is_used = False
    for segment in split_runs(read_lines(path), path):  # a damaged file raises after its last readable segment
        if segment.has_results or segment.name or segment.faults:
            logs.segments.append(segment)
            is_used = True
    if not is_used:
        logs.skipped.append((path, "contains no line of a HydraGNN log"))


def _read_tracer(logs: LogFiles, path: Path) -> bool:
    """Read the file if it is a tracer file, and return whether it is one."""
    name = strip_compression_suffix(path)
    if match := FULL_TRACE_NAME.match(name):
        regions = logs.regions[path.parent].setdefault(int(match[1]), Regions())
        # The table gp_timing may have been read before, and counts the same calls.
        regions.calls.clear()
        regions.seconds.clear()
        read_full(read_lines(path), regions)
    elif match := TIMING_NAME.match(name):
        regions = logs.regions[path.parent].setdefault(int(match[1]), Regions())
        if not regions.calls:
            read_timing(read_lines(path), regions)
    elif match := ENERGY_NAME.match(name):
        regions = logs.regions[path.parent].setdefault(int(match[2]), Regions())
        read_energy(read_lines(path), match[1], regions)
    else:
        return name == "gp_timing.summary"
    return True


def find_runs(logs: LogFiles) -> list[Run]:
    """Return the runs in the order of their folders; unusable files are added to logs.skipped."""
    runs: dict[Path, list[Run]] = defaultdict(list)
    folders = {*logs.regions, *logs.configs, *(s.source.parent for s in logs.segments)}
    ordered = sorted(logs.segments, key=lambda s: (s.source.name == LOG, not s.name, natural_key(str(s.source))))
    # Segments with a command line come first, since they name their run; the other segments join these runs.
    for segment in sorted(ordered, key=lambda s: not s.name):
        folder = find_run_folder(segment, folders)
        candidates = [r for r in runs[folder] if not segment.name or r.name in ("", segment.name)]
        accepting = [r for r in candidates if r.accepts(segment)]
        if segment.epochs or len(candidates) <= 1:
            run = accepting[-1] if accepting else None
        else:
            run = next((r for r in reversed(candidates) if segment.name and r.name), None)
        if run is None:
            run = Run(folder)
            runs[folder].append(run)
        run.segments.append(segment)
    for folder, ranks in logs.regions.items():
        run = _get_last_run(runs[folder], folder, "tracer files")
        run.regions = ranks
    for folder, path in logs.configs.items():
        if runs[folder]:
            _get_last_run(runs[folder], folder, CONFIG).config = path
        else:
            logs.skipped.append((path, "no logs of its run in its folder"))
    result = [run for folder in sorted(runs) for run in runs[folder]]
    logs.skipped += [
        (s.source, _format_faults(s.faults)) for run in result if not has_results(run) for s in run.segments if s.faults
    ]
    return [run for run in result if has_results(run)]


def has_results(run: Run) -> bool:
    """Return whether a run contains losses, timers, rates or regions of the tracer."""
    return any(s.has_results for s in run.segments) or any(r.calls or r.joules for r in run.regions.values())


def find_run_folder(segment: Segment, folders: Iterable[Path]) -> Path:
    """Return the only folder with the run's name below the log file's folder; without it, the log file's folder."""
    parent = segment.source.parent
    if not segment.name or parent.name == segment.name:
        return parent
    below = [f for f in folders if f.name == segment.name and parent in f.parents]
    return below[0] if len(below) == 1 else parent


def _get_last_run(runs: list[Run], folder: Path, file_kind: str) -> Run:
    """Return the last run of a folder; add a note to it if files of this kind may belong to another run."""
    if not runs:
        runs.append(Run(folder))
    candidates = [r for r in runs if r.name == folder.name] or runs
    if len(candidates) > 1:
        candidates[-1].notes.append(f"{file_kind}: assigned to the last of {len(candidates)} runs in {folder.name}")
    return candidates[-1]


def collect_notes(run: Run) -> list[str]:
    """Return a note about each restart of a run, and about each kind of missing or unreadable data."""
    notes = list(run.notes)
    for epoch, rows in sorted(run.epochs.items()):
        if len(rows) > 1:
            locations = ", ".join(f"{r.source.name}:{r.line}" for r in rows)
            notes.append(f"epoch {epoch} was repeated after a restart; the last one counts ({locations})")
    missing = sorted(epoch for epoch, rows in run.epochs.items() if None in rows[-1].losses.values())
    if missing:
        notes.append(f"losses that are not numbers: epochs {_format_numbers(missing)}")
    for segment in run.segments:
        if segment.faults:
            notes.append(f"{segment.source.name}: {_format_faults(segment.faults)}")
    faults = sum((r.faults for r in run.regions.values()), Counter[str]())
    if faults:
        ranks = [rank for rank, r in run.regions.items() if r.faults]
        notes.append(f"tracer files of ranks {_format_numbers(ranks)}: {_format_faults(faults)}")
    return notes


def _format_faults(faults: Counter[str]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in sorted(faults.items()))


def _format_numbers(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:MAX_NUMBERS])) + (", ..." if len(numbers) > MAX_NUMBERS else "")
