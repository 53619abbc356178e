"""Run folders -> what every piece of every case used, from whichever telemetry lies there.

Looked for are raw exports (`omnistat*.jsonl`), folders of exported CSV files (`omnistat-*.csv`) and the sampler's files
(`telemetry/<node>.jsonl`): in a case's folder for that case, in the campaign's and its jobs' for all of its cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.results.runs import Record
from harness.telemetry import usage_cache
from harness.telemetry.job_annotations import version_of
from harness.telemetry.omnistat_csv import PATTERN, CsvExport
from harness.telemetry.prometheus_export import Export
from harness.telemetry.timeseries import Source
from harness.telemetry.usage import Usage, usages
from harness.telemetry.windows import Window, windows_of

RAW = "*omnistat*.jsonl"
SAMPLED = "telemetry"


@dataclass(frozen=True)
class Told:
    """What a source said of itself: campaign, path, collector, and what was wrong with it."""

    campaign: str
    path: Path
    kind: str
    version: str
    faults: str


@dataclass
class Telemetry:
    """Usages by window, and the sources that they are from."""

    usages: list[Usage] = field(default_factory=list)
    sources: list[Told] = field(default_factory=list)


def gather(records: Sequence[Record]) -> Telemetry:
    """The usage of every window of every record that has telemetry; the case's own files count where no job's do."""
    found = Telemetry()
    by_campaign: dict[Path, list[Record]] = {}
    for record in records:
        by_campaign.setdefault(record.folder.parent, []).append(record)
    for folder, own in by_campaign.items():
        of_case = {r.folder: list(windows_of(r)) for r in own}
        windows = [w for some in of_case.values() for w in some]
        if not windows:
            continue
        with usage_cache.Memory(folder) as memory:
            told: dict[Window, Usage] = {}
            for source in sources_of([folder, folder / "jobs"]):
                _add(found, told, source, overlapping(windows, source), memory)
            for place, some in of_case.items():
                left = [w for w in some if not _sampled(told.get(w))]
                for source in sources_of([place]) if left else ():
                    _add(found, told, source, left, memory)
        found.usages += [told[w] for w in windows if w in told]
    return found


def sources_of(folders: Iterable[Path]) -> Iterator[Source]:
    """The telemetry in these folders; CSV files count where there is no raw export beside them."""
    for folder in folders:
        raw = sorted(path for path in folder.glob(RAW) if path.is_file())
        yield from (Export(path) for path in raw)
        sampled = sorted(path for path in (folder / SAMPLED).glob("*.jsonl") if path.is_file())
        if sampled:
            yield Export(*sampled)
        if not raw:
            yield from (CsvExport(place) for place in sorted({path.parent for path in _csv_files(folder)}))


def overlapping(windows: Sequence[Window], source: Source) -> list[Window]:
    """Those that any node of the source has samples for, by time."""
    spans = list(source.spans().values())
    if not spans:
        return []
    first, last = min(s for s, _ in spans), max(e for _, e in spans)
    return [w for w in windows if w.pieces[0][0] < last and w.pieces[-1][1] > first]


def _csv_files(folder: Path) -> Iterator[Path]:
    yield from (path for pattern in (PATTERN, f"*/{PATTERN}") for path in folder.glob(pattern) if path.is_file())


def _sampled(usage: Usage | None) -> bool:
    return usage is not None and usage.samples > 0


def _add(
    found: Telemetry, told: dict[Window, Usage], source: Source, windows: Sequence[Window], memory: usage_cache.Memory
) -> None:
    """Take in a source, from memory if it has been read before, and is as it was."""
    kind = "CSV export" if isinstance(source, CsvExport) else "raw export"
    if source.path.parent.name == SAMPLED:
        kind = "sampler"
    known = memory.recall(source, windows) if windows else usage_cache.Entry([], "", source.faults.told())
    if known is None:
        new = usages(source, windows)
        known = usage_cache.Entry(new, version_of(source), source.faults.told())
        memory.keep(source, windows, known)
    for usage in known.usages:
        if not _sampled(told.get(usage.window)):
            told[usage.window] = usage
    found.sources.append(Told(memory.folder.name, source.path, kind, known.version, known.faults))
