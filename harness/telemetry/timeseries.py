"""Time series of telemetry sources of any format, and the annotations, collector versions and clock errors in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from harness.telemetry.metrics import ANNOTATION, COLLECTOR_INFO

Floats = NDArray[np.float64]

FIRST_S, LAST_S = 1.0, 1e11  # range of valid times in Unix seconds (the years 1970 to 5138)
NO_TIME = "samples without a time"
ANNOTATION_DELAY_S = 3600.0  # the longest time between the start of an annotation and its first sample
SYNC_TOLERANCE_S = 60.0  # collectors start and stop within this time on nodes whose clocks agree
MIN_NODES_TO_COMPARE = 3  # with fewer nodes there is no majority


@dataclass(frozen=True)
class Series:
    """One metric of one device of one node: labels (including `__name__`), Unix times in seconds, and values."""

    labels: Mapping[str, str]
    times: Floats
    values: Floats


@dataclass
class Faults:
    """The faults of a source, counted by kind, and for some kinds the location of the first fault."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, location: str = "", number: int = 1) -> None:
        """Add `number` faults of one kind; the location is that of the first of them."""
        self.counts[kind] += number
        if location and number:
            self.first.setdefault(kind, location)

    def format_summary(self) -> str:
        """Return `3 lines that are not JSON (first: omnistat.jsonl:17), 2 gaps`, or an empty string."""
        parts = []
        for kind, number in sorted(self.counts.items()):
            if number:
                location = f" (first: {self.first[kind]})" if kind in self.first else ""
                parts.append(f"{number} {kind}{location}")
        return ", ".join(parts)


class TelemetrySource(Protocol):
    """A file, or the files of one export, with telemetry in it."""

    path: Path
    faults: Faults

    def iter_job_series(self) -> Iterator[Series]:
        """Yield the series about the job: annotations, and information about the scheduler and the collector."""

    def iter_series(self) -> Iterator[Series]:
        """Yield the complete series that the harness uses; only one of them is in memory at a time."""

    def get_spans(self) -> Mapping[str, tuple[float, float]]:
        """Return the Unix times of the first and the last sample of each node."""


def drop_untimed(times: Floats, values: Floats, faults: Faults, location: str) -> tuple[Floats, Floats]:
    """Return the samples with a valid time, and count the others as faults."""
    is_valid = (times >= FIRST_S) & (times <= LAST_S)
    if is_valid.all():
        return times, values
    faults.add(NO_TIME, location, int((~is_valid).sum()))
    return times[is_valid], values[is_valid]


def find_annotations(source: TelemetrySource) -> list[tuple[str, float, float]]:
    """Return the annotations of a job, intervals that the job has marked, in order of time.

    Returns:
        The marker of each annotation, and the Unix times of its start and end.
    """
    spans: dict[str, tuple[float, float]] = {}
    for series in source.iter_job_series():
        if series.labels.get("__name__") != ANNOTATION:
            continue
        active = series.times[series.values > 0]  # 0 means that the annotation was stopped
        if len(active):
            # a value is the time at which the annotation began, which is shortly before its first sample
            start = active.min()
            starts = series.values[(series.values > start - ANNOTATION_DELAY_S) & (series.values <= start)]
            first, last = float(starts.min() if len(starts) else start), float(series.times.max())
            marker = series.labels.get("marker", "")
            low, high = spans.get(marker, (first, last))
            spans[marker] = (min(low, first), max(high, last))
    return [(marker, *span) for marker, span in sorted(spans.items(), key=lambda item: item[1])]


def find_collector_version(source: TelemetrySource) -> str:
    """Return the version of the collector; empty if it is unknown."""
    versions = {s.labels.get("version") for s in source.iter_job_series() if s.labels.get("__name__") == COLLECTOR_INFO}
    return ", ".join(sorted(filter(None, versions)))


def find_clock_offsets(spans: Mapping[str, tuple[float, float]], faults: Faults) -> dict[str, float]:
    """Return the seconds by which a node's clock is ahead of most others, by node; nodes that agree are left out.

    A node whose samples begin and end equally early (or late) has a wrong clock; a node whose samples only begin late
    joined late.
    """
    if len(spans) < MIN_NODES_TO_COMPARE:
        return {}
    ends = np.array(list(spans.values()))
    deviations = ends - np.median(ends, axis=0)
    offsets = {}
    for host, (first, last) in zip(spans, deviations, strict=True):
        if abs(first - last) < SYNC_TOLERANCE_S and min(abs(first), abs(last)) > SYNC_TOLERANCE_S:
            offsets[host] = float((first + last) / 2)
            faults.add("clocks that disagree, corrected", f"{host}, {offsets[host]:+.0f} s")
        elif first > SYNC_TOLERANCE_S:
            faults.add("nodes that began late", f"{host}, {first:.0f} s")
        elif last < -SYNC_TOLERANCE_S:
            faults.add("nodes that ended early", f"{host}, {-last:.0f} s")
    return offsets
