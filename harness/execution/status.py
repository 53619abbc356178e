"""The state of a campaign's cases according to journal, scheduler and files; nothing is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.execution import case_files
from harness.execution.journal import Journal
from harness.execution.schedulers.base import QueueEntry
from harness.planning.expand import Plan
from harness.protocol.case import Case
from harness.protocol.checks import State

MAX_CASES_EXAMINED, MAX_CASES_SHOWN = 50, 4


@dataclass(frozen=True)
class Outcome:
    """The state of a case, the reason why it is not done, and the folder with its files."""

    case: Case
    state: State
    exit_code: int | None
    reason: str
    folder: Path


class CampaignStatus:
    """The state of the plan's cases in the campaign's folder, according to one journal."""

    def __init__(self, plan: Plan, folder: Path, journal: Journal) -> None:
        self.plan, self.folder, self.journal = plan, folder, journal
        self._ids = {case.folder_name: case.id for case in plan.cases}

    def list_outcomes(self, queue: Mapping[str, QueueEntry] | None) -> list[Outcome]:
        """Return the outcome of every case.

        Args:
            queue: the scheduler's entries for the active jobs, by name; None if the scheduler was not queried.
        """
        folders = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
        return [self._find_outcome(case, queue, case.folder_name in folders) for case in self.plan.cases]

    def list_started_cases(self) -> list[tuple[str, Path]]:
        """Return name and folder of some active cases that have started, enough to show progress."""
        names = {case.id: (case.name, self.folder / case.folder_name) for case in self.plan.cases}
        active = [names[case] for case in list(self.journal.active_cases)[:MAX_CASES_EXAMINED] if case in names]
        return [(name, folder) for name, folder in active if case_files.is_started(folder)][:MAX_CASES_SHOWN]

    def is_done(self, case: Case) -> bool:
        """Return whether the journal lists the case as done and its folder exists; without it the case is run again."""
        result = self.journal.results.get(case.id)
        return result is not None and result.state == "done" and os.path.isdir(self.folder / case.folder_name)

    def is_pending(self, case: Case) -> bool:
        """Return whether a run would submit the case: it is not active and has not ended, even by hand."""
        if case.id in self.journal.active_cases:
            return False
        folder = f"{self.folder}/{case.folder_name}"
        if case.id in self.journal.results:
            return not os.path.isdir(folder)
        if case.after and self.find_failed_dependencies(case):
            return False
        result = case_files.read_result(Path(folder))
        return result is None or result.state != "done"

    def find_failed_dependencies(self, case: Case) -> list[str]:
        """Return the folders of the cases that this one depends on and that ended without being done."""
        results = {name: self.journal.results.get(id_) for name in case.after if (id_ := self._ids.get(name))}
        return [name for name, result in results.items() if result is not None and result.state != "done"]

    def _find_outcome(self, case: Case, queue: Mapping[str, QueueEntry] | None, has_folder: bool) -> Outcome:
        folder = self.folder / case.folder_name
        result = (self.journal.results.get(case.id) or case_files.read_result(folder)) if has_folder else None
        if result is not None:
            return Outcome(case, result.state, result.exit_code, result.reason, folder)
        is_started = has_folder and case_files.is_started(folder)
        is_active = case.id in self.journal.active_cases
        if queue is None and is_active:
            reason = "when the scheduler was last asked"
            return Outcome(case, "running" if is_started else "waiting", None, reason, folder)
        entry = (queue or {}).get(self.journal.active_cases.get(case.id, ""))
        if entry is not None:
            state: State = "running" if is_started and entry.state == "running" else "waiting"
            suffix = " (it will not start by itself)" if entry.is_stuck else ""
            return Outcome(case, state, None, entry.reason + suffix if state == "waiting" else "", folder)
        if is_active:
            reason = "its job has left the queue; waiting for its files"
            return Outcome(case, "running" if is_started else "waiting", None, reason, folder)
        if is_started:
            return Outcome(case, "lost", None, "", folder)
        failed = self.find_failed_dependencies(case)
        return Outcome(case, "blocked" if failed else "not run", None, f"needs {failed[0]}" if failed else "", folder)
