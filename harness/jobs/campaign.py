"""A plan being carried out: submit what is missing, watch it, and know at any time how far it is."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness import events
from harness.errors import UsageError
from harness.jobs import script
from harness.jobs.journal import Journal
from harness.jobs.local import LocalScheduler
from harness.jobs.progress import Progress
from harness.jobs.scheduler import Scheduler
from harness.plan import Case, Plan

State = Literal["not run", "running", "done", "failed"]
SCHEDULERS = {"local": LocalScheduler}
POLL_S = 0.5
CANCEL_S = 10.0
RECORDS = (events.FILE_NAME, "stdout", "stderr", "exit_code", "provenance.json", "traceback.txt")


@dataclass(frozen=True)
class Outcome:
    """Where a case stands: state, exit code of its job if it ended, and the folder with its files."""

    case: Case
    state: State
    exit_code: int | None
    folder: Path


def state_of(folder: Path) -> tuple[State, int | None]:
    """What the files of a case say, without asking a scheduler."""
    try:
        exit_code = int((folder / "exit_code").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        exit_code = None
    log = folder / events.FILE_NAME
    if exit_code == 0 and any(e["event"] == "done" for e in events.last_run(log)):
        return "done", 0
    if exit_code is not None:
        return "failed", exit_code
    return ("failed", None) if log.exists() or (folder / "stderr").exists() else ("not run", None)


class Campaign:
    """The cases of one plan under root/<suite>-<system>/<case>/."""

    def __init__(self, plan: Plan, root: Path) -> None:
        self.plan = plan
        self.folder = root / plan.campaign_name
        self.scheduler: Scheduler = SCHEDULERS[plan.site.system.scheduler]()

    def case_folder(self, case: Case) -> Path:
        """Where the case's files are."""
        return self.folder / case.folder_name

    def status(self) -> list[Outcome]:
        """Where every case stands now."""
        jobs = Journal(self.folder).open_jobs() if self.folder.is_dir() else {}
        outcomes = []
        for case in self.plan.cases:
            state, exit_code = state_of(self.case_folder(case))
            job = jobs.get(case.id) or self.scheduler.find(self.case_folder(case))
            if job is not None and self.scheduler.is_alive(job):
                state, exit_code = "running", None
            outcomes.append(Outcome(case, state, exit_code, self.case_folder(case)))
        return outcomes

    def run(self, progress: Progress) -> list[Outcome]:
        """Run every case that is not done, one at a time, joining any that still runs; return where all stand.

        A case that fails does not stop the others. KeyboardInterrupt cancels the running job and is raised again.
        """
        with self._alone():
            journal = Journal(self.folder)
            for number, outcome in enumerate(self.status()):
                if outcome.state == "done":
                    progress.already_done(outcome.case.name)
                    continue
                self._carry_out(outcome, journal, progress, f"[{number + 1}/{len(self.plan.cases)}]")
            return self.status()

    def _carry_out(self, outcome: Outcome, journal: Journal, progress: Progress, label: str) -> None:
        case, folder = outcome.case, outcome.folder
        job = journal.open_jobs().get(case.id) or self.scheduler.find(folder)
        if outcome.state != "running" or job is None:
            set_aside(folder)
            script.write(self.plan, case, folder)
            job = self.scheduler.submit(folder)
            journal.submitted(case.id, job)
        try:
            with progress.case(f"{label} {case.name}") as show:
                while self.scheduler.is_alive(job):
                    show(last_progress(folder))
                    time.sleep(POLL_S)
        except KeyboardInterrupt:
            self._end(job)
            journal.ended(case.id, None)
            raise
        state, exit_code = state_of(folder)
        journal.ended(case.id, exit_code)
        if state == "done":
            progress.done(case.name)
        else:
            progress.failed(case.name, exit_code, folder, last_lines(folder / "stderr"))

    def _end(self, job: str) -> None:
        """Cancel a job, and do not come back before it is gone."""
        for force in (False, True):
            self.scheduler.cancel(job, force=force)
            deadline = time.monotonic() + CANCEL_S
            while self.scheduler.is_alive(job) and time.monotonic() < deadline:
                time.sleep(POLL_S)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the campaign's lock; raises UsageError if another harness has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"{self.folder}: another harness is running this campaign") from None
            yield


def set_aside(folder: Path) -> None:
    """Keep what an earlier, failed attempt recorded, in attempt-1, attempt-2, ..."""
    old = [folder / name for name in RECORDS if (folder / name).exists()]
    if not (folder / events.FILE_NAME).exists() and not (folder / "stderr").exists():
        return
    number = 1 + sum(1 for _ in folder.glob("attempt-*"))
    place = folder / f"attempt-{number}"
    place.mkdir()
    for path in old:
        path.rename(place / path.name)


def last_progress(folder: Path) -> events.Event | None:
    """The newest progress event of a case, read from the end of its log."""
    path = folder / events.FILE_NAME
    if not path.exists():
        return None
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - 65536))
        lines = handle.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        if '"progress"' in line:
            event = next(iter(events.parse([line])), None)
            if event is not None and event["event"] == "progress":
                return event
    return None


def last_lines(path: Path, count: int = 12) -> list[str]:
    """The end of a text file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-count:]
    except OSError:
        return []
