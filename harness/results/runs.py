"""Records of runs, which are read from run folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.execution.case_files import EXIT_CODE_FILE, read_exit_code
from harness.host.process import pause_gc
from harness.protocol import checks
from harness.protocol.case import Unreadable, find_case_problem, find_provenance_problem, read_case, read_json, read_log
from harness.protocol.checks import State
from harness.protocol.events import Event
from harness.protocol.text import sanitize_line

# Kinds of events that a record does not keep as events.
DROPPED_KINDS = {"start", "progress", "done", "error", "fact"}
# The folder in a campaign that contains the jobs, not a case.
JOBS_FOLDER = "jobs"


@dataclass(frozen=True)
class RunRecord:
    """The content of one run folder; an unreadable one only has the names of the case and, in `error`, the reason.

    Attributes:
        location: the path of the folder.
        case: the content of case.json.
        state: the state of the case according to its files.
        error: the message of the error, or the reason why the case is not done or cannot be read.
        facts: the facts about the whole case, by name.
        samples: raw measurements.
        stages: the event `warm_up` or `unavailable` of each stage, by name of the stage.
        profile: the last event `profile`, if there is one.
        figures_of_merit: the figures of merit that the suite requests.
        events_by_kind: the events of all kinds but `sample` and DROPPED_KINDS, by kind.
        start_time_s, end_time_s: Unix times of the first and the last event.
        is_campaign: whether the folder is that of a campaign whose cases cannot be listed.
    """

    location: str
    case: dict[str, Any]
    state: State
    error: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[Event] = field(default_factory=list)
    stages: dict[str, Event] = field(default_factory=dict)
    profile: Event | None = None
    figures_of_merit: list[checks.FigureOfMerit] = field(default_factory=list)
    events_by_kind: dict[str, list[Event]] = field(default_factory=dict)
    start_time_s: float | None = None
    end_time_s: float | None = None
    is_campaign: bool = False

    @cached_property
    def folder(self) -> Path:
        """The folder of the case."""
        return Path(self.location)

    @property
    def campaign(self) -> str:
        """The name of the campaign's folder."""
        return self.folder.name if self.is_campaign else self.folder.parent.name

    @property
    def program(self) -> str:
        """The program that ran; empty if case.json does not contain it."""
        return str(self.case.get("program") or "")

    @property
    def duration_s(self) -> float | None:
        """The time from the first event to the last; None if the log does not have two different times."""
        if self.start_time_s is None or self.end_time_s is None or self.end_time_s <= self.start_time_s:
            return None
        return self.end_time_s - self.start_time_s

    def events(self, kind: str) -> list[Event]:
        """Return the events of a kind in the order of the log; an empty list for DROPPED_KINDS."""
        return self.samples if kind == "sample" else self.events_by_kind.get(kind, [])

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Code, environment and machine as the job recorded them; empty if the file cannot be read."""
        return self._provenance[0]

    @property
    def provenance_error(self) -> str | None:
        """The reason why the provenance cannot be read; None if it can, or if there is none."""
        return self._provenance[1]

    @cached_property
    def _provenance(self) -> tuple[dict[str, Any], str | None]:
        try:
            content = read_json(f"{self.location}/provenance.json")
        except FileNotFoundError:
            return {}, None
        except Unreadable as error:
            return {}, sanitize_line(str(error))
        except OSError as error:
            return {}, f"provenance.json: {error.strerror or error}"
        fault = find_provenance_problem(content)
        return (content, None) if fault is None else ({}, f"provenance.json: {fault}")


def load_runs(root: Path) -> list[RunRecord]:
    """Return the record of every case under root/<campaign>/<case>/, sorted by path.

    A folder that cannot be read as a case, or listed as a campaign, becomes an unreadable record.

    Raises:
        OSError: root exists and cannot be listed.
    """
    try:
        campaigns = _list_folders(root)
    except FileNotFoundError:
        return []
    records: list[RunRecord] = []
    for campaign in campaigns:
        try:
            cases = [folder for folder in _list_folders(campaign) if os.path.basename(folder) != JOBS_FOLDER]
        except OSError as error:
            record = _create_unreadable(campaign, {}, error.strerror or str(error))
            records.append(replace(record, is_campaign=True))
            continue
        records += load_run_folders(cases)
    return records


def load_run_folders(folders: Iterable[str | Path]) -> list[RunRecord]:
    """Return the record of each folder, including unreadable ones."""
    with pause_gc():
        return [load_run_folder(str(folder)) for folder in folders]


def load_run_folder(folder: str) -> RunRecord:
    """Return the record of one case."""
    case: dict[str, Any] = {}
    try:
        case = read_case(folder)
        return _build_record(folder, case)
    except Unreadable as error:
        return _create_unreadable(folder, case, str(error))
    except OSError as error:
        name = os.path.basename(error.filename or "")
        return _create_unreadable(folder, case, f"{name}: {error.strerror or error}")


def select_readable(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Return the records of cases that can be read."""
    return [record for record in records if record.state != "unreadable"]


def mark_unreadable(record: RunRecord, reason: str) -> RunRecord:
    """Return the record of a case that turned out to be unreadable."""
    return _create_unreadable(record.location, record.case, reason)


def _list_folders(parent: str | Path) -> list[str]:
    with os.scandir(parent) as entries:
        folders = [e for e in entries if (e.is_dir() or e.is_symlink()) and not e.name.startswith(".")]
        return sorted(entry.path for entry in folders)


def _create_unreadable(folder: str, case: dict[str, Any], reason: str) -> RunRecord:
    """Return a record with only the names of the case, and the figures of merit that its suite requests."""
    names: dict[str, Any] = {
        key: case[key] for key in ("id", "suite", "system", "program") if isinstance(case.get(key), str)
    }
    name = case.get("name")
    names["name"] = name if isinstance(name, str) else os.path.basename(folder)
    rows = case.get("performance") if "program" in names and find_case_problem(case) is None else None
    return RunRecord(folder, names | ({"performance": rows} if rows else {}), "unreadable", sanitize_line(reason))


def _build_record(folder: str, case: dict[str, Any]) -> RunRecord:
    """Return the record of a case from its log and its exit code; raise Unreadable or OSError if they are not valid."""
    facts: dict[str, Any] = {}
    samples: list[Event] = []
    stages: dict[str, Event] = {}
    events_by_kind: dict[str, list[Event]] = {}
    profile = error = None
    log = read_log(folder, case)
    for event in log:
        kind = event["event"]
        match kind:
            case "sample":
                samples.append(event)
                continue
            case "fact":
                facts[event["name"]] = event["value"]
            case "warm_up" | "unavailable" if "stage" in event:
                stages[event["stage"]] = event
            case "profile":
                profile = event
            case "error":
                error = sanitize_line(event["message"])
        if kind not in DROPPED_KINDS:
            events_by_kind.setdefault(kind, []).append(event)
    exit_record = read_exit_code(folder)
    if exit_record is None and os.path.lexists(f"{folder}/{EXIT_CODE_FILE}"):
        raise Unreadable(f"{EXIT_CODE_FILE}: expected the exit code and, optionally, the seconds that the case took")
    state, reason = checks.evaluate_case(case, log, exit_record[0] if exit_record else None)
    figures_of_merit = (
        [checks.compute_figure_of_merit(row, log) for row in case.get("performance", ())] if state == "done" else []
    )
    start_time_s, end_time_s = (log[k].get("time_s") if log else None for k in (0, -1))
    return RunRecord(
        location=folder,
        case=case,
        state=state,
        error=error or reason or None,
        facts=facts,
        samples=samples,
        stages=stages,
        profile=profile,
        figures_of_merit=figures_of_merit,
        events_by_kind=events_by_kind,
        start_time_s=start_time_s,
        end_time_s=end_time_s,
    )
