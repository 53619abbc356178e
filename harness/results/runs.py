"""Records of runs, read from their folders alone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.execution.case_files import EXIT_CODE, read_exit_code
from harness.host.process import gc_paused
from harness.protocol import checks
from harness.protocol.case import Unreadable, find_case_fault, find_provenance_fault, read_case, read_json, read_log
from harness.protocol.checks import State
from harness.protocol.events import Event
from harness.protocol.text import sanitize_line

# Kinds of events with a field of their own in a record; all others are in events_by_kind.
NAMED = {"start", "progress", "done", "error", "fact", "sample", "warm_up", "unavailable", "profile"}
# The folder of a campaign that is not a case.
JOBS_FOLDER = "jobs"


@dataclass(frozen=True)
class RunRecord:
    """All that one run of a case left behind; one that cannot be read has the reason as its error and nothing else.

    Attributes:
        facts: what is true of the whole case, by name.
        samples: raw measurements.
        stages: the warm_up or unavailable event of each stage.
        merits: the figures of merit that the suite asks for.
        events_by_kind: the events of all other kinds, by kind.
        began_s, ended_s: Unix times of the first and the last event.
    """

    folder: Path
    case: dict[str, Any]
    state: State
    error: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[Event] = field(default_factory=list)
    stages: dict[str, Event] = field(default_factory=dict)
    profile: Event | None = None
    merits: list[checks.FigureOfMerit] = field(default_factory=list)
    events_by_kind: dict[str, list[Event]] = field(default_factory=dict)
    began_s: float | None = None
    ended_s: float | None = None

    @property
    def campaign(self) -> str:
        """The name of the campaign's folder."""
        return self.folder.parent.name

    @property
    def program(self) -> str:
        """The program that ran; empty where case.json does not say."""
        return str(self.case.get("program") or "")

    @property
    def duration_s(self) -> float | None:
        """The time from the first event to the last; None where there is none."""
        if self.began_s is None or self.ended_s is None or self.ended_s <= self.began_s:
            return None
        return self.ended_s - self.began_s

    def events(self, kind: str) -> list[Event]:
        """Return the events of a kind, in the order of the log."""
        return self.events_by_kind.get(kind, [])

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Code, environment and machine as the job recorded them; empty where that cannot be read."""
        return self._provenance[0]

    @property
    def provenance_fault(self) -> str | None:
        """The reason why the provenance cannot be read."""
        return self._provenance[1]

    @cached_property
    def _provenance(self) -> tuple[dict[str, Any], str | None]:
        try:
            content = read_json(f"{self.folder}/provenance.json")
        except FileNotFoundError:
            return {}, None
        except Unreadable as error:
            return {}, sanitize_line(str(error))
        except OSError as error:
            return {}, f"provenance.json: {error.strerror or error}"
        fault = find_provenance_fault(content)
        return (content, None) if fault is None else ({}, f"provenance.json: {fault}")


def load_runs(root: Path) -> list[RunRecord]:
    """Return the record of every case under root/<campaign>/<case>/, sorted by path.

    A folder that cannot be read as a case, or listed as a campaign, becomes an unreadable record.
    """
    try:
        campaigns = _folders(root)
    except FileNotFoundError:
        return []
    records: list[RunRecord] = []
    for campaign in campaigns:
        try:
            cases = [folder for folder in _folders(campaign) if os.path.basename(folder) != JOBS_FOLDER]
        except OSError as error:
            records.append(_unreadable(campaign, {}, error.strerror or str(error)))
            continue
        records += load_run_folders(cases)
    return records


def load_run_folders(folders: Iterable[str | Path]) -> list[RunRecord]:
    """Return the record of each folder, whether it can be read or not."""
    with gc_paused():
        return [load_run_folder(str(folder)) for folder in folders]


def load_run_folder(folder: str) -> RunRecord:
    """Return the record of one case."""
    case: dict[str, Any] = {}
    try:
        case = read_case(folder)
        return _build_record(folder, case)
    except Unreadable as error:
        return _unreadable(folder, case, str(error))
    except OSError as error:
        name = os.path.basename(error.filename or "")
        return _unreadable(folder, case, f"{name}: {error.strerror or error}")


def readable(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Return the records of cases that can be read."""
    return [record for record in records if record.state != "unreadable"]


def mark_unreadable(record: RunRecord, reason: str) -> RunRecord:
    """Return the record of a case that turned out to be unreadable."""
    return _unreadable(str(record.folder), record.case, reason)


def _folders(parent: str | Path) -> list[str]:
    with os.scandir(parent) as entries:
        named = [e for e in entries if (e.is_dir() or e.is_symlink()) and not e.name.startswith(".")]
        return sorted(entry.path for entry in named)


def _unreadable(folder: str, case: dict[str, Any], reason: str) -> RunRecord:
    """Return a record that holds only what the case is called, and the figures of merit that it was to measure."""
    about = {key: case[key] for key in ("id", "suite", "system", "program") if isinstance(case.get(key), str)}
    name = case.get("name")
    about["name"] = name if isinstance(name, str) else os.path.basename(folder)
    rows = case.get("performance") if "program" in about and find_case_fault(case) is None else None
    return RunRecord(Path(folder), about | ({"performance": rows} if rows else {}), "unreadable", sanitize_line(reason))


def _build_record(folder: str, case: dict[str, Any]) -> RunRecord:
    facts: dict[str, Any] = {}
    samples: list[Event] = []
    stages: dict[str, Event] = {}
    events_by_kind: dict[str, list[Event]] = {}
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
                events_by_kind.setdefault(kind, []).append(event)
    ended = read_exit_code(folder)
    if ended is None and os.path.lexists(f"{folder}/{EXIT_CODE}"):
        raise Unreadable(f"{EXIT_CODE}: expected the exit code and, optionally, the seconds that the case took")
    state, reason = checks.evaluate_case(case, log, ended[0] if ended else None)
    merits = [checks.measure_merit(row, log) for row in case.get("performance", ())] if state == "done" else []
    began_s, ended_s = (log[k].get("time_s") if log else None for k in (0, -1))
    return RunRecord(
        folder=Path(folder),
        case=case,
        state=state,
        error=error or reason or None,
        facts=facts,
        samples=samples,
        stages=stages,
        profile=profile,
        merits=merits,
        events_by_kind=events_by_kind,
        began_s=began_s,
        ended_s=ended_s,
    )
