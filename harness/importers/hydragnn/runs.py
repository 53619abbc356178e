"""Files of a place -> runs: what several files say of one run is brought together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.importers.hydragnn.files import DAMAGED, bare_name, is_text, natural_key, read_lines
from harness.importers.hydragnn.segments import Segment, Versions, add_version, split_runs
from harness.importers.hydragnn.tracer import (
    ENERGY,
    FULL,
    TIMING,
    Regions,
    drop_impossible,
    read_energy,
    read_full,
    read_timing,
)

CONFIG, LOG = "config.json", "run.log"


@dataclass
class Run:
    """One run: what its parts of files say, its tracer's regions by rank, and its configuration file."""

    folder: Path
    segments: list[Segment] = field(default_factory=list)
    regions: dict[int, Regions] = field(default_factory=dict)
    config: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name that a command line gives, or nothing."""
        return next((s.name for s in self.segments if s.name), "")

    @property
    def epochs(self) -> Versions:
        """The epochs of all segments, with their versions."""
        result: Versions = {}
        for segment in self.segments:
            for epoch, rows in segment.epochs.items():
                for row in rows:
                    add_version(result, epoch, row)
        return result

    def continues(self, other: Segment) -> bool:
        """Whether a segment belongs to this run: it repeats one of its epochs, or goes on from it."""
        known, new = self.epochs, other.epochs
        if not known or not new:
            return True
        if any(a.agrees(b) for epoch in known.keys() & new.keys() for a in known[epoch] for b in new[epoch]):
            return True
        return min(new) > min(known) or self._is_restarted_by(other)

    def _is_restarted_by(self, other: Segment) -> bool:
        return bool(other.name) and any(s.words == other.words for s in self.segments)


@dataclass
class Place:
    """All that the files of a place say, by folder; passed_over: files of which nothing could be used, and why."""

    segments: list[Segment] = field(default_factory=list)
    regions: dict[Path, dict[int, Regions]] = field(default_factory=lambda: defaultdict(dict))
    configs: dict[Path, Path] = field(default_factory=dict)
    passed_over: list[tuple[Path, str]] = field(default_factory=list)


def read_place(files: Iterable[Path]) -> Place:
    """Read the files; one that is damaged counts as far as it can be read."""
    place = Place()
    for path in files:
        if bare_name(path) == CONFIG:
            place.configs[path.parent] = path
            continue
        try:
            if not is_text(path):
                place.passed_over.append((path, "not text"))
            elif not _read_tracer(place, path):
                _read_text(place, path)
        except DAMAGED as error:
            place.passed_over.append((path, f"damaged: {error}"))
    for ranks in place.regions.values():
        for regions in ranks.values():
            drop_impossible(regions)
    return place


def _read_text(place: Place, path: Path) -> None:
    result = 0
    for segment in split_runs(read_lines(path), path):
        if segment.has_results or segment.name or segment.faults:
            place.segments.append(segment)
            result += 1
    if not result:
        place.passed_over.append((path, "no line of a log"))


def _read_tracer(place: Place, path: Path) -> bool:
    name = bare_name(path)
    if match := FULL.match(name):
        regions = place.regions[path.parent].setdefault(int(match[1]), Regions())
        # The table of the same calls, if it was read before.
        regions.calls.clear()
        regions.seconds.clear()
        read_full(read_lines(path), regions)
    elif match := TIMING.match(name):
        regions = place.regions[path.parent].setdefault(int(match[1]), Regions())
        if not regions.calls:
            read_timing(read_lines(path), regions)
    elif match := ENERGY.match(name):
        regions = place.regions[path.parent].setdefault(int(match[2]), Regions())
        read_energy(read_lines(path), match[1], regions)
    else:
        return name == "gp_timing.summary"
    return True


def find_runs(place: Place) -> list[Run]:
    """Bring together what belongs to one run, in the order of their folders."""
    runs: dict[Path, list[Run]] = defaultdict(list)
    folders = {*place.regions, *place.configs, *(s.source.parent for s in place.segments)}
    ordered = sorted(place.segments, key=lambda s: (s.source.name == LOG, not s.name, natural_key(str(s.source))))
    # Command lines name their runs; parts without one join them afterwards.
    for segment in sorted(ordered, key=lambda s: not s.name):
        folder = home_of(segment, folders)
        own = [r for r in runs[folder] if not segment.name or r.name in ("", segment.name)]
        fitting = [r for r in own if r.continues(segment)]
        if segment.epochs or len(own) <= 1:
            run = fitting[-1] if fitting else None
        else:
            run = next((r for r in reversed(own) if segment.name and r.name), None)
        if run is None:
            run = Run(folder)
            runs[folder].append(run)
        run.segments.append(segment)
    for folder, ranks in place.regions.items():
        run = _last(runs[folder], folder, "tracer files")
        run.regions = ranks
    for folder, path in place.configs.items():
        if runs[folder]:
            _last(runs[folder], folder, CONFIG).config = path
        else:
            place.passed_over.append((path, "no logs of its run beside it"))
    result = [run for folder in sorted(runs) for run in runs[folder]]
    place.passed_over += [
        (s.source, _count(s.faults)) for run in result if not has_results(run) for s in run.segments if s.faults
    ]
    return [run for run in result if has_results(run)]


def has_results(run: Run) -> bool:
    """Whether there is anything to report of it."""
    return any(s.has_results for s in run.segments) or any(r.calls or r.joules for r in run.regions.values())


def home_of(segment: Segment, folders: Iterable[Path]) -> Path:
    """The folder of logs that bears the run's name, below the file; else the file's own."""
    here = segment.source.parent
    if not segment.name or here.name == segment.name:
        return here
    below = [f for f in folders if f.name == segment.name and here in f.parents]
    return below[0] if len(below) == 1 else here


def _last(runs: list[Run], folder: Path, what: str) -> Run:
    if not runs:
        runs.append(Run(folder))
    named = [r for r in runs if r.name == folder.name] or runs
    if len(named) > 1:
        named[-1].notes.append(f"{what}: taken to be of the last of {len(named)} runs in {folder.name}")
    return named[-1]


def notes_of(run: Run) -> list[str]:
    """Return what was restarted, left out or missing, a line each."""
    notes = list(run.notes)
    for epoch, rows in sorted(run.epochs.items()):
        if len(rows) > 1:
            places = ", ".join(f"{r.source.name}:{r.line}" for r in rows)
            notes.append(f"epoch {epoch} was repeated after a restart, and the last one counts ({places})")
    lost = sorted(epoch for epoch, rows in run.epochs.items() if None in rows[-1].losses.values())
    if lost:
        notes.append(f"losses that are no numbers: epochs {_shortened(lost)}")
    for segment in run.segments:
        if segment.faults:
            notes.append(f"{segment.source.name}: {_count(segment.faults)}")
    faults = sum((r.faults for r in run.regions.values()), Counter[str]())
    if faults:
        ranks = [rank for rank, r in run.regions.items() if r.faults]
        notes.append(f"tracer files of ranks {_shortened(ranks)}: {_count(faults)}")
    return notes


def _count(faults: Counter[str]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in sorted(faults.items()))


def _shortened(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
