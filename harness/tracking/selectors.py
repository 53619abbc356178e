"""What is compared with what: a side is a place with runs, a condition on them, or both, as `PATH`, `KEY=VALUE` or
`PATH@KEY=VALUE,...`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.experiments.metrics import Measured, measured
from harness.protocol.errors import UsageError, did_you_mean
from harness.results.containment import MISFITS, describe_misfit
from harness.results.runs import JOBS, Record, load, load_cases, set_aside

# Keys that tell runs apart without changing what ran: beside these, cases of one name are the same.
ELSEWHERE = {"campaign", "system", "commit", "host", "cpu", "id", "repeat"}
OF_CASE = ("suite", "system", "program", "id", "repeat")
OF_PROVENANCE = ("commit", "host", "cpu")


@dataclass(frozen=True)
class Side:
    """Where to look, None for the results folder, and what must hold: key -> value."""

    text: str
    place: Path | None
    conditions: Mapping[str, str]


@dataclass(frozen=True)
class Observation:
    """Samples of one metric of one run, and everything by which it may be told apart from others."""

    record: Record
    measured: Measured

    def value(self, key: str) -> str | None:
        """What the run, or the part of it, is by a key; None if it has no such key."""
        case = self.record.case
        if key in OF_PROVENANCE:
            return self.record.provenance.get(key)
        named = {"campaign": self.record.folder.parent.name, "case": case.get("name"),
                 "metric": self.measured.metric.name}  # fmt: skip
        places = (self.measured.part, named, case if key in OF_CASE else {}, case.get("point", {}),
                  case.get("parameters", {}))  # fmt: skip
        found = next((own[key] for own in places if own.get(key) is not None), None)
        return None if found is None else str(found)

    def keys(self) -> set[str]:
        """The keys that it has."""
        case = self.record.case
        parameters = {k for k, v in case.get("parameters", {}).items() if not isinstance(v, (dict, list))}
        fixed = {"campaign", "case", "metric", *OF_CASE, *OF_PROVENANCE}
        return {*fixed, *self.measured.part, *case.get("point", {}), *parameters}


def side(text: str) -> Side:
    """Read one side; raises UsageError for what is neither a place nor a condition."""
    place, at, conditions = text.partition("@")
    if not at and "=" in text and not Path(text).exists():
        place, conditions = "", text
    if place and not Path(place).is_dir():
        raise UsageError(f"{place}: no such folder; a side is PATH, KEY=VALUE or PATH@KEY=VALUE (stage=baseline, ...)")
    pairs = [pair.partition("=") for pair in conditions.split(",") if pair]
    wrong = next((key for key, equals, value in pairs if not (key and equals and value)), None)
    if wrong is not None or (at and not pairs):
        raise UsageError(f"{text}: expected KEY=VALUE,... got {conditions!r}")
    return Side(text, Path(place) if place else None, {key: value for key, _, value in pairs})


class Shelf:
    """Runs by place, each read once; unreadable: the cases that could not be."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._known: dict[Path, list[Observation]] = {}
        self.unreadable: list[Record] = []

    def observations(self, wanted: Side) -> list[Observation]:
        """Those of a side; raises UsageError if there are none, naming the key or value that may have been meant."""
        place = (wanted.place or self._out).resolve()
        if place not in self._known:
            self._known[place] = self._read(place)
        all_there = self._known[place]
        if not all_there:
            raise UsageError(f"{wanted.place or self._out}: no finished runs here")
        found = [o for o in all_there if all(_holds(o.value(k), k, v) for k, v in wanted.conditions.items())]
        if not found:
            raise UsageError(f"{wanted.text}: {_why(all_there, wanted.conditions)}")
        return found

    def _read(self, place: Path) -> list[Observation]:
        records = _records(place) if place.is_dir() else []
        found = []
        for record in records:
            if record.state == "unreadable":
                self.unreadable.append(record)
            elif record.state == "done":
                try:
                    found += [Observation(record, one) for one in measured(record)]
                except MISFITS as error:
                    self.unreadable.append(set_aside(record, describe_misfit(error)))
        return found


def _records(place: Path) -> list[Record]:
    """Of a results folder, a folder of campaigns, a campaign, or a case."""
    if (place / "case.json").is_file():
        return load_cases([place])
    if (place / "runs").is_dir():
        return load(place / "runs")
    folders = sorted(p for p in place.iterdir() if p.is_dir() or p.is_symlink())
    is_campaign = any((folder / "case.json").exists() for folder in folders)
    return load_cases(f for f in folders if f.name != JOBS) if is_campaign else load(place)


def _holds(value: str | None, key: str, wanted: str) -> bool:
    if value is None:
        return False
    return value.startswith(wanted) if key in ("commit", "id") else value == wanted


def _why(all_there: list[Observation], conditions: Mapping[str, str]) -> str:
    for key, wanted in conditions.items():
        values = {v for o in all_there if (v := o.value(key)) is not None}
        if not values:
            known = set().union(*(o.keys() for o in _some(all_there)))
            return f"no run has a key {key!r}{did_you_mean(key, known)}"
        if not any(_holds(v, key, wanted) for v in values):
            some = ", ".join(sorted(values)[:8])
            return f"no run with {key}={wanted}{did_you_mean(wanted, values)}; there are: {some}"
    return "no run that is all of this"


def _some(all_there: list[Observation]) -> Iterator[Observation]:
    """One of each program and part."""
    seen: dict[Any, Observation] = {}
    for one in all_there:
        seen.setdefault((one.record.case.get("program"), *one.measured.part), one)
    yield from seen.values()
