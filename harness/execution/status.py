"""Where the cases of a campaign stand, by journal, scheduler and files; reads only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from harness.execution import case_results
from harness.execution.case_results import Outcome
from harness.execution.journal import Journal
from harness.execution.schedulers.base import Queued
from harness.planning.expand import Plan
from harness.protocol.case import Case
from harness.protocol.checks import State


class Standing:
    """The plan's cases in the campaign's folder, as one journal tells of them."""

    def __init__(self, plan: Plan, folder: Path, journal: Journal) -> None:
        self.plan, self.folder, self.journal = plan, folder, journal
        self._id_of_folder = {case.folder_name: case.id for case in plan.cases}

    def outcomes(self, queue: Mapping[str, Queued] | None) -> list[Outcome]:
        """Every case; queue: what the scheduler says of the open jobs, by name; None: it was not asked."""
        there = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
        return [self._outcome(case, queue, case.folder_name in there) for case in self.plan.cases]

    def begun(self, most: int = 4) -> list[tuple[str, Path]]:
        """Name and folder of open cases that have begun; some of them, where there are many."""
        names = {case.id: (case.name, self.folder / case.folder_name) for case in self.plan.cases}
        some = [names[case] for case in list(self.journal.open_cases)[:50] if case in names]
        return [(name, folder) for name, folder in some if case_results.was_begun(folder)][:most]

    def is_done(self, case: Case) -> bool:
        """Whether the journal knows it as done, and nobody has deleted its folder to have it run anew."""
        ended = self.journal.ended.get(case.id)
        return ended is not None and ended.state == "done" and os.path.isdir(self.folder / case.folder_name)

    def is_left(self, case: Case) -> bool:
        """Whether a run would submit it: it is neither open nor ended, by the journal or, run by hand, by its files."""
        if case.id in self.journal.open_cases:
            return False
        folder = f"{self.folder}/{case.folder_name}"
        if case.id in self.journal.ended:
            return not os.path.isdir(folder)
        if case.after and self.failed_needs(case):
            return False
        ended = case_results.ended(Path(folder))
        return ended is None or ended.state != "done"

    def failed_needs(self, case: Case) -> list[str]:
        """The cases that it needs and that ended otherwise than well."""
        ends = {name: self.journal.ended.get(i) for name in case.after if (i := self._id_of_folder.get(name))}
        return [name for name, ended in ends.items() if ended is not None and ended.state != "done"]

    def _outcome(self, case: Case, queue: Mapping[str, Queued] | None, is_there: bool) -> Outcome:
        folder = self.folder / case.folder_name
        ended = (self.journal.ended.get(case.id) or case_results.ended(folder)) if is_there else None
        if ended is not None:
            return Outcome(case, ended.state, ended.exit_code, ended.reason, folder)
        begun = is_there and case_results.was_begun(folder)
        if queue is None and case.id in self.journal.open_cases:
            return Outcome(case, "running" if begun else "waiting", None, "when the scheduler was last asked", folder)
        job = (queue or {}).get(self.journal.open_cases.get(case.id, ""))
        if job is not None:
            state: State = "running" if begun and job.state == "running" else "waiting"
            hopeless = " (it will not start by itself)" if job.is_hopeless else ""
            return Outcome(case, state, None, job.reason + hopeless if state == "waiting" else "", folder)
        if case.id in self.journal.open_cases:
            said = "its job has left the queue; waiting for its files"
            return Outcome(case, "running" if begun else "waiting", None, said, folder)
        if begun:
            return Outcome(case, "lost", None, "", folder)
        failed = self.failed_needs(case)
        return Outcome(case, "blocked" if failed else "not run", None, f"needs {failed[0]}" if failed else "", folder)
