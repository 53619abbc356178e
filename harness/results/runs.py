"""Run folders -> records and tidy tables; needs nothing but the folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.execution.case_results import EXIT_CODE, exit_of
from harness.host.garbage import without_garbage
from harness.protocol import checks, events
from harness.protocol.case_reader import Unreadable, read_case, read_json, read_log
from harness.protocol.case_schema import find_case_fault, find_provenance_fault
from harness.protocol.checks import State
from harness.protocol.text import sanitize_line

# Events that a record holds by name or as samples; all others are kept by their kind.
NAMED = {"start", "progress", "done", "error", "fact", "sample", "warm_up", "unavailable", "profile"}
# Folders of a campaign that are not cases.
JOBS = "jobs"


@dataclass(frozen=True)
class Record:
    """All that a case left behind; a case that cannot be read has the state "unreadable", the reason, and no figures.

    facts: name -> value. samples: raw measurements. stages: per stage, its warm_up or unavailable event. others: the
    events of kinds that a program has of its own, by kind. began_s, ended_s: Unix times of its first and last event.
    """

    folder: Path
    case: dict[str, Any]
    state: State
    error: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[events.Event] = field(default_factory=list)
    stages: dict[str, events.Event] = field(default_factory=dict)
    profile: events.Event | None = None
    merits: list[checks.Merit] = field(default_factory=list)
    others: dict[str, list[events.Event]] = field(default_factory=dict)
    began_s: float | None = None
    ended_s: float | None = None

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What the numbers rest on, as the job recorded it; nothing where that cannot be read."""
        return self._provenance[0]

    @property
    def provenance_fault(self) -> str | None:
        """Why the provenance cannot be read."""
        return self._provenance[1]

    @cached_property
    def _provenance(self) -> tuple[dict[str, Any], str | None]:
        try:
            found = read_json(f"{self.folder}/provenance.json")
        except FileNotFoundError:
            return {}, None
        except Unreadable as error:
            return {}, sanitize_line(str(error))
        except OSError as error:
            return {}, f"provenance.json: {error.strerror or error}"
        fault = find_provenance_fault(found)
        return (found, None) if fault is None else ({}, f"provenance.json: {fault}")


def load(root: Path) -> list[Record]:
    """The records of every case under root/<campaign>/<case>/, sorted by path.

    A folder that cannot be read as a case, or listed as a campaign, is an unreadable record.
    """
    try:
        campaigns = _folders(root)
    except FileNotFoundError:
        return []
    found: list[Record] = []
    for campaign in campaigns:
        try:
            cases = [place for place in _folders(campaign) if os.path.basename(place) != JOBS]
        except OSError as error:
            found.append(_unreadable(campaign, {}, error.strerror or str(error)))
            continue
        found += load_cases(cases)
    return found


def load_cases(folders: Iterable[str | Path]) -> list[Record]:
    """The records of cases, one a folder, whether it can be read or not."""
    with without_garbage():
        return [load_case(str(folder)) for folder in folders]


def load_case(folder: str) -> Record:
    """The record of one case."""
    case: dict[str, Any] = {}
    try:
        case = read_case(folder)
        return _record(folder, case)
    except Unreadable as error:
        return _unreadable(folder, case, str(error))
    except OSError as error:
        name = os.path.basename(error.filename or "")
        return _unreadable(folder, case, f"{name}: {error.strerror or error}")


def readable(records: Iterable[Record]) -> list[Record]:
    """The records without those of cases that cannot be read."""
    return [record for record in records if record.state != "unreadable"]


def set_aside(record: Record, reason: str) -> Record:
    """The record of a case that turned out to be unreadable."""
    return _unreadable(str(record.folder), record.case, reason)


def _folders(place: str | Path) -> list[str]:
    with os.scandir(place) as entries:
        named = [e for e in entries if (e.is_dir() or e.is_symlink()) and not e.name.startswith(".")]
        return sorted(entry.path for entry in named)


def _unreadable(folder: str, case: dict[str, Any], reason: str) -> Record:
    """A record that says no more than what the case is called."""
    about = {key: case[key] for key in ("id", "suite", "system", "program") if isinstance(case.get(key), str)}
    name = case.get("name")
    about["name"] = name if isinstance(name, str) else os.path.basename(folder)
    # Rows of figures that a check asks for are of use even where the log is not.
    rows = case.get("performance") if "program" in about and find_case_fault(case) is None else None
    return Record(Path(folder), about | ({"performance": rows} if rows else {}), "unreadable", sanitize_line(reason))


def _record(folder: str, case: dict[str, Any]) -> Record:
    facts: dict[str, Any] = {}
    samples: list[events.Event] = []
    stages: dict[str, events.Event] = {}
    others: dict[str, list[events.Event]] = {}
    profile = error = None
    log = read_log(folder, case)
    for event in log:
        match event["event"]:
            case "sample":
                samples.append(event)
            case "fact":
                facts[event["name"]] = event["value"]
            case "warm_up" | "unavailable" if "stage" in event:
                stages[event["stage"]] = event
            case "profile":
                profile = event
            case "error":
                error = sanitize_line(event["message"])
            case kind if kind not in NAMED:
                others.setdefault(kind, []).append(event)
    ended = exit_of(folder)
    if ended is None and os.path.lexists(f"{folder}/{EXIT_CODE}"):
        raise Unreadable(f"{EXIT_CODE}: expected the exit code and perhaps the seconds that the case took")
    state, reason = checks.judge(case, log, ended[0] if ended else None)
    merits = [checks.merit(row, log) for row in case.get("performance", ())] if state == "done" else []
    began_s, ended_s = (log[k].get("time_s") if log else None for k in (0, -1))
    return Record(
        Path(folder), case, state, error or reason or None, facts, samples, stages, profile, merits, others,
        began_s, ended_s,
    )  # fmt: skip
