"""One metric of one device of one node, whatever file it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """Labels (`__name__` among them), times in Unix seconds and values, as the file has them."""

    labels: Mapping[str, str]
    times: Floats
    values: Floats


# Times outside of these Unix seconds (1970 and 5138) are none.
FIRST_S, LAST_S = 1.0, 1e11
NO_TIME = "samples without a time"


@dataclass
class Faults:
    """What was wrong with a file, counted by kind; of some kinds, where first."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, where: str = "", number: int = 1) -> None:
        """Count more of a kind."""
        self.counts[kind] += number
        if where and number:
            self.first.setdefault(kind, where)

    def told(self) -> str:
        """`3 lines that are no JSON (first: omnistat.jsonl:17), 2 gaps`, or nothing."""
        parts = []
        for kind, number in sorted(self.counts.items()):
            if number:
                where = f" (first: {self.first[kind]})" if kind in self.first else ""
                parts.append(f"{number} {kind}{where}")
        return ", ".join(parts)


def timed(times: Floats, values: Floats, faults: Faults, where: str) -> tuple[Floats, Floats]:
    """Return the samples that have a time; the others are counted."""
    known = (times >= FIRST_S) & (times <= LAST_S)
    if known.all():
        return times, values
    faults.add(NO_TIME, where, int((~known).sum()))
    return times[known], values[known]


class Source(Protocol):
    """A file, or files of one export, with telemetry in it."""

    path: Path
    faults: Faults

    def job_series(self) -> Iterator[Series]:
        """Those that tell of the job: annotations, the scheduler's facts, the collector's own."""

    def series(self) -> Iterator[Series]:
        """Those that the harness has a use for, each whole; memory holds one at a time."""

    def spans(self) -> Mapping[str, tuple[float, float]]:
        """Node -> times of its first and last sample."""
