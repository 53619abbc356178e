"""Collect the usage of cases, and of parts such as trials and epochs, from the telemetry in run folders.

Sources are raw exports (`omnistat*.jsonl`), folders of exported CSV files (`omnistat-*.csv`) and the sampler's files
(`telemetry/<node>.jsonl`). A source in a case's folder is used for that case; a source in the folder of the campaign or
of its jobs is used for all cases of the campaign.
Results are cached in the campaign's folder, since an export of 700 MB takes about ten seconds to read; the cache can
be deleted at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from harness.host.files import write_bytes
from harness.results.runs import RunRecord
from harness.telemetry.omnistat_csv import PATTERN, CsvExport
from harness.telemetry.prometheus_export import PrometheusExport
from harness.telemetry.timeseries import TelemetrySource, find_collector_version
from harness.telemetry.usage import CachedUsage, Usage, compute_usage
from harness.telemetry.windows import Window, list_windows

RAW_PATTERN = "*omnistat*.jsonl"
SAMPLER_FOLDER = "telemetry"
CACHE_FILE = "telemetry.cache.json"
MAX_CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class SourceSummary:
    """A telemetry source: its campaign, path and kind, the version of the collector, and a summary of its faults."""

    campaign: str
    path: Path
    kind: str
    version: str
    faults: str


@dataclass
class Telemetry:
    """The usage of windows, and the sources from which it was computed."""

    usages: list[Usage] = field(default_factory=list)
    sources: list[SourceSummary] = field(default_factory=list)


class CacheEntry(BaseModel, strict=True, extra="forbid"):
    """The results of one source: usage in the order of the windows, version of the collector, and faults."""

    usages: list[CachedUsage]
    version: str
    faults: str


class Cache(BaseModel, strict=True, extra="forbid"):
    """The entries of the sources of one campaign, by a digest of the files and windows of the source."""

    version: Literal[3] = 3
    sources: dict[str, CacheEntry] = {}


def collect_usage(records: Sequence[RunRecord]) -> Telemetry:
    """Return the usage of every window with telemetry; sources of a campaign or job precede those of a case."""
    telemetry = Telemetry()
    by_campaign: dict[Path, list[RunRecord]] = {}
    for record in records:
        by_campaign.setdefault(record.folder.parent, []).append(record)
    for folder, campaign_records in by_campaign.items():
        by_case = {r.folder: list(list_windows(r)) for r in campaign_records}
        if any(by_case.values()):
            with CampaignCollector(folder, telemetry) as collector:
                collector.collect(by_case)
    return telemetry


class CampaignCollector:
    """A collector of the usage of one campaign, and a context manager that loads and saves its cache."""

    def __init__(self, folder: Path, telemetry: Telemetry) -> None:
        self._folder, self._telemetry = folder, telemetry
        self._usages: dict[Window, Usage] = {}
        self._cached, self._used = _load_cache(folder / CACHE_FILE), Cache()

    def __enter__(self) -> CampaignCollector:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._used.sources and self._used.sources != self._cached.sources:
            with suppress(OSError):  # runs that were copied here may not be writable
                write_bytes(f"{self._folder}/{CACHE_FILE}", self._used.model_dump_json().encode())

    def collect(self, by_case: dict[Path, list[Window]]) -> None:
        """Add the usage of the campaign's windows and the sources of the campaign.

        Args:
            by_case: The windows of each case, by run folder.
        """
        windows = [window for case_windows in by_case.values() for window in case_windows]
        for source in find_sources([self._folder, self._folder / "jobs"]):
            self._add_source(source, _select_overlapping_windows(windows, source))
        for case_folder, case_windows in by_case.items():
            remaining = [window for window in case_windows if not self._has_samples(window)]
            for source in find_sources([case_folder]) if remaining else ():
                self._add_source(source, remaining)
        self._telemetry.usages += [self._usages[window] for window in windows if window in self._usages]

    def _add_source(self, source: TelemetrySource, windows: Sequence[Window]) -> None:
        """List the source, and add the usage of windows that have no samples yet, from the cache if possible."""
        entry = CacheEntry(usages=[], version="", faults=source.faults.format_summary())
        if windows:
            key = _compute_cache_key(source, windows)
            cached = self._cached.sources.get(key)
            if cached is None or len(cached.usages) != len(windows):
                usages = compute_usage(source, windows)
                cached = CacheEntry.model_construct(
                    usages=usages, version=find_collector_version(source), faults=source.faults.format_summary()
                )
            entry = self._used.sources[key] = cached
        for window, cached_usage in zip(windows, entry.usages, strict=True):
            if not self._has_samples(window):
                values = {name: value for name, value in vars(cached_usage).items() if name != "window"}
                self._usages[window] = Usage(window=window, **values)
        summary = SourceSummary(
            self._folder.name, source.path, _describe_source_kind(source), entry.version, entry.faults
        )
        self._telemetry.sources.append(summary)

    def _has_samples(self, window: Window) -> bool:
        return window in self._usages and self._usages[window].samples > 0


def find_sources(folders: Iterable[Path]) -> Iterator[TelemetrySource]:
    """Yield the telemetry sources in these folders; CSV files only where there is no raw export."""
    for folder in folders:
        raw = sorted(path for path in folder.glob(RAW_PATTERN) if path.is_file())
        yield from (PrometheusExport(path) for path in raw)
        sampled = sorted(path for path in (folder / SAMPLER_FOLDER).glob("*.jsonl") if path.is_file())
        if sampled:
            yield PrometheusExport(*sampled)
        if not raw:
            csv_files = [p for pattern in (PATTERN, f"*/{PATTERN}") for p in folder.glob(pattern) if p.is_file()]
            yield from (CsvExport(parent) for parent in sorted({path.parent for path in csv_files}))


def _select_overlapping_windows(windows: Sequence[Window], source: TelemetrySource) -> list[Window]:
    """Return the windows during which any node of the source has samples."""
    spans = list(source.get_spans().values())
    if not spans:
        return []
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    return [w for w in windows if w.intervals[0][0] < last and w.intervals[-1][1] > first]


def _describe_source_kind(source: TelemetrySource) -> str:
    if source.path.parent.name == SAMPLER_FOLDER:
        return "sampler"
    return "CSV export" if isinstance(source, CsvExport) else "raw export"


def _load_cache(path: Path) -> Cache:
    """Load a cache; return an empty one if the file is missing, damaged or too large."""
    with suppress(OSError, ValidationError):
        if path.stat().st_size < MAX_CACHE_BYTES:
            return Cache.model_validate_json(path.read_bytes())
    return Cache()


def _compute_cache_key(source: TelemetrySource, windows: Sequence[Window]) -> str:
    digest = hashlib.sha256(repr(list(windows)).encode())
    for path in getattr(source, "paths", None) or sorted(source.path.glob("*.csv")):
        state = path.stat()
        digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()
