"""The states of a campaign's cases according to journal, scheduler and files, and the display of progress."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBars

from harness.execution import case_files
from harness.execution.journal import CaseResult, Journal
from harness.execution.pace import Pace, format_remaining
from harness.execution.schedulers.base import QueueEntry
from harness.planning.expand import Plan
from harness.protocol.case import Case
from harness.protocol.checks import State
from harness.protocol.text import pluralize, sanitize

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

    def list_started_cases(self) -> list[tuple[Case, Path]]:
        """Return at most MAX_CASES_SHOWN active cases that have started, with their folders."""
        cases = {case.id: (case, self.folder / case.folder_name) for case in self.plan.cases}
        active = [cases[id_] for id_ in list(self.journal.active_cases)[:MAX_CASES_EXAMINED] if id_ in cases]
        return [(case, folder) for case, folder in active if case_files.has_started(folder)][:MAX_CASES_SHOWN]

    def list_unfinished(self) -> list[Case]:
        """Return the cases that have not ended."""
        return [case for case in self.plan.cases if case.id not in self.journal.results]

    def is_done(self, case: Case) -> bool:
        """Return whether the journal lists the case as done and the folder of the case still exists."""
        result = self.journal.results.get(case.id)
        return result is not None and result.state == "done" and os.path.isdir(self.folder / case.folder_name)

    def is_pending(self, case: Case) -> bool:
        """Return whether a run would submit the case.

        It would if the case is not active, no case that it needs has failed, and it has not ended. A case whose folder
        was deleted, or that was run by hand and is not done, counts as not ended.
        """
        if case.id in self.journal.active_cases:
            return False
        folder = f"{self.folder}/{case.folder_name}"
        if case.id in self.journal.results:
            return not os.path.isdir(folder)
        if case.depends_on and self.find_failed_dependencies(case):
            return False
        result = case_files.read_result(Path(folder))
        return result is None or result.state != "done"

    def find_failed_dependencies(self, case: Case) -> list[str]:
        """Return the folders of the cases that this one depends on and that ended without being done."""
        results = {name: self.journal.results.get(id_) for name in case.depends_on if (id_ := self._ids.get(name))}
        return [name for name, result in results.items() if result is not None and result.state != "done"]

    def _find_outcome(self, case: Case, queue: Mapping[str, QueueEntry] | None, has_folder: bool) -> Outcome:
        folder = self.folder / case.folder_name
        result = (self.journal.results.get(case.id) or case_files.read_result(folder)) if has_folder else None
        if result is not None:
            return Outcome(case, result.state, result.exit_code, result.reason, folder)
        is_started = has_folder and case_files.has_started(folder)
        is_active = case.id in self.journal.active_cases
        if queue is None and is_active:
            reason = "according to the last answer of the scheduler"
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


# The time between two lines about one case, and the number of names up to which cases are listed one by one.
LINE_INTERVAL_S = 20.0
MAX_NAMES = 20
# The name of the line about all cases that have not ended.
ALL_CASES = "all cases"


class Progress:
    """A reporter that prints the progress of campaigns to stderr.

    Attributes:
        pace: the times that cases take, from which the remaining time follows.
        later: the cases of the campaigns after the present one.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.pace = Pace()
        self.later: Sequence[Case] = ()
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._bars: ProgressBars | None = None
        self._tasks: dict[str, int] = {}
        self._last_line_s: dict[str, float] = {}
        self._reported_reasons: dict[str, set[str]] = {}

    def report_skipped(self, names: Sequence[str]) -> None:
        """Report the cases that were done before."""
        if len(names) > MAX_NAMES:
            self.print_line(f"{len(names):,} cases: done before")
            return
        for name in names:
            self.print_line(f"{name}: done before")

    def report_submission(self, jobs: Sequence[str], job_id: str, cases: int) -> None:
        """Report jobs that the scheduler has just accepted, except jobs on this machine, whose id is their name."""
        if job_id != jobs[0]:
            name = jobs[0] if len(jobs) == 1 else f"{len(jobs)} jobs as one array"
            self.print_line(f"submitted {name} ({pluralize(cases, 'case')}) as {job_id}")

    def report_scripts(self, folder: Path, jobs: int, node_hours: float) -> None:
        """Report scripts that wait for somebody to submit them."""
        self.print_line(f"{pluralize(jobs, 'job script')}, at most {node_hours:,.4g} node-hours, in {folder}")

    def report_end(self, name: str, result: CaseResult, folder: Path) -> None:
        """Report a case that has just ended."""
        self._remove_task(name)
        if result.state == "done":
            self.print_line(f"{name}: done" + (f" ({result.reason})" if result.reason else ""))
        elif not result.exit_code:
            self.print_line(f"{name}: {result.state} ({result.reason}); its files are in {folder}")
        else:
            state = f"failed with exit code {result.exit_code}"
            self.print_line(f"{name}: {state}; its files are in {folder}; the end of its stderr:")
            for line in case_files.read_last_lines(folder / "stderr"):
                self.print_line(f"    {line}")

    def report_waiting(self, queue: Mapping[str, QueueEntry]) -> None:
        """Report unusual reasons why jobs wait, once for each job and reason."""
        by_reason: dict[str, list[str]] = {}
        for job, entry in queue.items():
            if entry.is_unusual and entry.reason not in self._reported_reasons.get(job, ()):
                by_reason.setdefault(entry.reason, []).append(job)
                self._reported_reasons.setdefault(job, set()).add(entry.reason)
        for reason, jobs in by_reason.items():
            more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
            suffix = "; it will not start by itself" if any(queue[job].is_stuck for job in jobs) else ""
            self.print_line(f"{jobs[0]}{more}: waiting, for the scheduler's reason: {sanitize(reason)}{suffix}")

    def update(self, running: Sequence[tuple[Case, Path]], unfinished: Sequence[Case] = ()) -> None:
        """Show the newest progress event of running cases, the time that is left for each, and that for all cases.

        Args:
            running: The running cases with their folders.
            unfinished: All cases of the campaign that have not ended.
        """
        remaining_s: dict[str, float] = {}
        is_live = bool(running) and self.console.is_terminal and not self.console.quiet
        if is_live and unfinished:
            self._get_bar(ALL_CASES)  # the first line
        for case, folder in running:
            name, started_s = case.name, case_files.get_start_time(folder)
            first, event = case_files.read_first_progress(folder), case_files.read_last_progress(folder)
            remaining_s[case.id] = self.pace.estimate_remaining_s(case, started_s, first, time.time())
            remaining = format_remaining(remaining_s[case.id])
            completed, total, activity = (
                (event["done"], event["total"], event["activity"]) if event else (None, None, "starting")
            )
            if is_live:
                bars, task = self._get_bar(name)
                bars.update(task, completed=completed, total=total, activity=str(activity), remaining=remaining)  # type: ignore[arg-type]
            elif name not in self._last_line_s:
                self._last_line_s[name] = time.monotonic()
                self.print_line(f"{name}: started, {remaining}")
            elif event and time.monotonic() - self._last_line_s[name] >= LINE_INTERVAL_S:
                self._last_line_s[name] = time.monotonic()
                self.print_line(f"{name}: {activity} ({completed} of {total}), {remaining}")
        if is_live and unfinished:
            waiting = [case for case in (*unfinished, *self.later) if case.id not in remaining_s]
            total_s = sum(map(self.pace.estimate_s, waiting)) + sum(max(0.0, s) for s in remaining_s.values())
            number = pluralize(len(waiting) + len(remaining_s), "case")
            bars, task = self._get_bar(ALL_CASES)
            bars.update(task, activity=f"{number} to do", remaining=format_remaining(total_s / max(1, len(running))))  # type: ignore[arg-type]

    def close(self) -> None:
        """Remove the progress bars."""
        if self._bars is not None:
            self._bars.stop()
            self._bars, self._tasks = None, {}

    def print_line(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False)

    def _get_bar(self, name: str) -> tuple[ProgressBars, int]:
        if self._bars is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[activity]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[remaining]}"),
            )
            self._bars = ProgressBars(*columns, console=self.console, transient=True)
            self._bars.start()
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=None, activity="starting", remaining="")
        return self._bars, self._tasks[name]

    def _remove_task(self, name: str) -> None:
        self._last_line_s.pop(name, None)
        task = self._tasks.pop(name, None)
        if self._bars is not None and task is not None:
            self._bars.remove_task(task)  # type: ignore[arg-type]
