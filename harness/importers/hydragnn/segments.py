"""The part of a text file that belongs to one run: its epochs, timers and rates, and how it was started."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.importers.hydragnn.files import Line
from harness.importers.hydragnn.lines import SPLITS, Statement, parse_line

# LossComponents and Epoch lines print the same loss with different numbers of digits.
SAME = 1e-6


@dataclass
class Row:
    """One epoch as a file states it: losses by name, errors of the tasks by split, and where it stands."""

    source: Path
    line: int
    losses: dict[str, float | None] = field(default_factory=dict)
    errors: dict[str, tuple[float | None, ...]] = field(default_factory=dict)

    def agrees(self, other: Row) -> bool:
        """Whether no loss that both have differs."""
        return all(_same(self.losses[k], other.losses[k]) for k in self.losses.keys() & other.losses.keys())

    def add(self, other: Row) -> None:
        """Take over what this row lacks."""
        self.losses = {**other.losses, **self.losses}
        self.errors = {**other.errors, **self.errors}


Versions = dict[int, list[Row]]


@dataclass
class Segment:
    """rows: rank -> epoch -> its versions, of which there are several after a restart."""

    source: Path
    words: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    rows: dict[int, Versions] = field(default_factory=dict)
    timers: dict[tuple[int, str], float] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """The name of the run, by which its folder of logs is called; empty where no command line gives it."""
        return self.words.get("log", "")

    @property
    def has_results(self) -> bool:
        """Whether it holds more than a command line."""
        return bool(self.rows or self.timers or self.rates)

    @property
    def epochs(self) -> Versions:
        """Those of the lowest rank that prints them."""
        return self.rows[min(self.rows)] if self.rows else {}

    def begins_again(self, at: Statement) -> bool:
        """Whether an epoch is the first one once more, with other losses: another run."""
        known = self.rows.get(at.rank, {})
        if not known or at.epoch != min(known):
            return False
        return not known[at.epoch][-1].agrees(Row(self.source, 0, dict(at.losses)))


def split_runs(lines: Iterable[Line], source: Path) -> Iterator[Segment]:
    """Yield a segment for each run of a file, in their order."""
    current = Segment(source)
    for line in lines:
        statement = parse_line(line)
        if statement is None:
            continue
        is_new = current.has_results and statement.kind in ("command", "launch")
        is_other = statement.kind == "command" and current.name not in ("", statement.words.get("log", ""))
        if is_new or is_other or (statement.kind == "epoch" and current.begins_again(statement)):
            yield current
            current = Segment(source)
        _take(current, statement, line)
    yield current


def _take(segment: Segment, statement: Statement, line: Line) -> None:
    match statement.kind:
        case "command" | "launch":
            segment.words.update(statement.words)
            segment.counts.update(statement.counts)
        case "cut":
            segment.faults["lines that could not be read" if line.is_whole else "last line cut off"] += 1
        case "epoch":
            row = Row(segment.source, line.number, dict(statement.losses))
            if statement.errors:
                row.errors[SPLITS[statement.split]] = statement.errors
            add_version(segment.rows.setdefault(statement.rank, {}), statement.epoch, row)
        case "tasks":
            known = segment.rows.get(statement.rank)
            if known:
                known[next(reversed(known))][-1].errors.setdefault(statement.split, statement.errors)
            else:
                segment.faults["lines of tasks before any epoch"] += 1
        case _ if statement.value is None or statement.value < 0:
            segment.faults["timers and rates that are no number of 0 or more"] += 1
        case "timer":
            segment.timers[statement.rank, statement.name] = statement.value
        case "rate":
            segment.rates.append(statement.value)


def add_version(versions: Versions, epoch: int, row: Row) -> None:
    """Add an epoch, the latest version last; what agrees with a version completes it."""
    rows = versions.pop(epoch, [])
    twin = next((k for k, other in enumerate(rows) if other.agrees(row)), None)
    if twin is not None:
        row, other = rows.pop(twin), row
        row.add(other)
    versions[epoch] = [*rows, row]


def _same(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=SAME, abs_tol=1e-8)
