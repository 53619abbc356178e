"""A plan being carried out: submit what is missing, watch it, and know at any time how far it is."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.cases import Case
from harness.checks import State
from harness.errors import Interrupted, UsageError
from harness.jobs import outcome
from harness.jobs.commands import CommandFailed, Pauses, SchedulerBusy
from harness.jobs.journal import Ended, Journal, OpenJob
from harness.jobs.local import LocalScheduler
from harness.jobs.outcome import Outcome
from harness.jobs.pbs import PbsScheduler
from harness.jobs.progress import Progress
from harness.jobs.scheduler import Queued, Scheduler
from harness.jobs.script import JOBS
from harness.jobs.slurm import SlurmScheduler
from harness.jobs.submission import Orders, Submission
from harness.packing import Job, pack
from harness.plan import Plan

CANCEL_S = 10.0
# A submission whose command was cut off by a kill may still be on its way for so long.
IN_FLIGHT_S = 10.0


class Campaign:
    """The cases of one plan under root/<suite>-<system>/<case>/, their jobs under .../jobs/."""

    def __init__(self, plan: Plan, root: Path) -> None:
        self.plan = plan
        self.folder = root / plan.campaign_name
        self.scheduler = _scheduler(plan.site.system.scheduler, self.folder)
        self._by_id = {case.id: case for case in plan.cases}
        self._id_of_folder = {case.folder_name: case.id for case in plan.cases}

    def case_folder(self, case: Case) -> Path:
        """Where the case's files are."""
        return self.folder / case.folder_name

    def jobs_left(self, retry: bool = False) -> list[Job]:
        """The jobs that a run would submit."""
        journal = Journal(self.folder)
        if retry:
            journal.ended = {case: e for case, e in journal.ended.items() if e.state == "done"}
        return self._left(journal)

    def status(self) -> list[Outcome]:
        """Where every case stands now; reads only, so that it may be asked at any time."""
        journal = Journal(self.folder)
        try:
            queue = self._queue(journal)
        except (SchedulerBusy, CommandFailed):
            queue = {}
        return self._outcomes(journal, queue)

    def run(self, orders: Orders, progress: Progress) -> list[Outcome]:
        """Gather what has ended, submit what is missing, and stay if told to; return where all cases stand.

        A case that fails does not stop the others. KeyboardInterrupt ends jobs of this machine and leaves those of a
        queue; raises UsageError if a job is refused, Interrupted if the scheduler does not answer.
        """
        with self._alone():
            journal = Journal(self.folder)
            try:
                return self._run(orders, journal, progress)
            except SchedulerBusy as error:
                raise Interrupted(f"{error}; nothing is lost, and the same command carries on from here") from None
            except CommandFailed as error:
                raise UsageError(str(error)) from None
            except KeyboardInterrupt:
                if not self.scheduler.waits:
                    self._end(journal, list(journal.open.values()), "interrupted")
                raise

    def collect(self, progress: Progress) -> list[Outcome]:
        """Gather what has ended, and submit nothing; return where all cases stand."""
        with self._alone():
            journal = Journal(self.folder)
            try:
                self._recover(journal)
                self._settle(journal, progress)
                return self._outcomes(journal, self._queue(journal))
            except SchedulerBusy as error:
                raise Interrupted(f"{error}; nothing is lost") from None

    def cancel(self) -> int:
        """Take every job of the campaign out of the queue; return how many there were."""
        with self._alone():
            journal = Journal(self.folder)
            jobs = list(journal.open.values())
            try:
                self._end(journal, jobs, "cancelled")
            except (SchedulerBusy, CommandFailed) as error:
                raise Interrupted(f"{error}; the jobs are as they were") from None
            return len(jobs)

    def _run(self, orders: Orders, journal: Journal, progress: Progress) -> list[Outcome]:
        if not orders.submit and not journal.open:
            return self._written(orders, journal, progress)
        self._recover(journal)
        if orders.retry:
            for failed in [i for i, e in journal.ended.items() if e.state != "done" and i in self._by_id]:
                journal.retried(failed)
        self._settle(journal, progress)
        for case in self.plan.cases:
            if self._is_done(journal, case):
                progress.already_done(case.name)
        if not orders.submit:
            return self._written(orders, journal, progress)
        left = self._adopt(journal, self._left(journal))
        submission = Submission(self.plan, self.folder, self.scheduler, journal, orders, progress)
        submission.check_cost(left)
        pauses = Pauses(*self.scheduler.poll_s)
        while True:
            left = submission.submit(left)
            if not journal.open or not orders.wait:
                break
            progress.watch(self._running(journal))
            pauses.sleep()
            lost = self._settle(journal, progress)
            left += pack(self.plan, [self._by_id[i] for i in lost], self.folder, journal.seconds())
        progress.close()
        return self._outcomes(journal, self._queue(journal))

    def _written(self, orders: Orders, journal: Journal, progress: Progress) -> list[Outcome]:
        """Make the scripts of what is left, without a word to the scheduler."""
        submission = Submission(self.plan, self.folder, self.scheduler, journal, orders, progress)
        left = self._left(journal)
        submission.check_cost(left)
        submission.write_only(left)
        return self._outcomes(journal, {})

    def _left(self, journal: Journal) -> list[Job]:
        cases = [case for case in self.plan.cases if self._is_left(journal, case)]
        return pack(self.plan, cases, self.folder, journal.seconds())

    def _recover(self, journal: Journal) -> None:
        """Find out what became of submissions that were cut off between asking and knowing."""
        unknown = [job for job in journal.open.values() if job.id is None]
        if not unknown:
            return
        if self.scheduler.waits:
            newest = max(job.time_s for job in unknown)
            time.sleep(min(IN_FLIGHT_S, max(0.0, newest + IN_FLIGHT_S - time.time())))
        names = {job.submission for job in unknown}
        there = {queued.name: queued.id for queued in self.scheduler.queue(names)}
        for name in names:
            if name in there:
                journal.submitted(name, there[name].split("_")[0])
        for job in [j for j in unknown if j.id is None and j.submission not in there]:
            began = [i for i in job.cases if i in self._by_id and outcome.was_begun(self.case_folder(self._by_id[i]))]
            if not began:
                journal.released(job.submission, "never reached the scheduler")

    def _adopt(self, journal: Journal, jobs: Sequence[Job]) -> list[Job]:
        """Leave out the jobs that somebody submitted by hand, and put them on record."""
        there = {queued.name: queued.id for queued in self.scheduler.queue({job.name for job in jobs})}
        held = self._held([case.id for job in jobs for case in job.cases])
        free = []
        for job in jobs:
            if job.name in there or any(case.id in held for case in job.cases):
                journal.submitting(job.name, {job.name: [case.id for case in job.cases]}, array=False)
                journal.submitted(job.name, there.get(job.name, "by hand"))
            else:
                free.append(job)
        return free

    def _held(self, cases: Sequence[str]) -> set[str]:
        """Those of the cases that a living job has taken up, whatever job they are on record for."""
        claims = {i: outcome.claim_of(self.case_folder(self._by_id[i])) for i in cases if i in self._by_id}
        ids = {claim for claim in claims.values() if claim}
        alive = {queued.id for queued in self.scheduler.queue((), ids)} if ids else set()
        return {case for case, claim in claims.items() if claim in alive}

    def _settle(self, journal: Journal, progress: Progress) -> list[str]:
        """Put on record what has ended; return the cases that were lost and may be submitted again."""
        if not journal.open:
            return []
        queue = self._queue(journal)
        self._look(journal, progress)
        if all(name in queue for name in journal.open):
            return []
        time.sleep(self.scheduler.settle_s)
        queue = self._queue(journal)
        self._look(journal, progress)
        gone = [job for name, job in journal.open.items() if name not in queue]
        held = self._held([case for job in gone for case in job.cases])
        endings = self.scheduler.endings([job.id for job in gone if job.id])
        lost: list[str] = []
        for job in gone:
            ending = endings.get(job.id or "")
            reason = ending.reason if ending else "its job is gone and left no exit code"
            for case in job.cases - held:
                if ending is not None and not ending.again:
                    self._give_up(journal, progress, case, "failed", reason)
                elif journal.losses[case] >= self.plan.suite.retries:
                    self._give_up(journal, progress, case, "lost", f"{reason}; tried {journal.losses[case] + 1} times")
                else:
                    journal.lost(case, reason)
                    lost.append(case)
        again = set(lost)
        return [case for case in self._by_id if case in again]

    def _look(self, journal: Journal, progress: Progress) -> None:
        """Put on record the open cases that have an exit code."""
        for case_id in list(journal.open_cases):
            case = self._by_id.get(case_id)
            ended = outcome.ended(case, self.case_folder(case)) if case else None
            if case is not None and ended is not None:
                journal.end(case_id, ended)
                progress.ended(case.name, ended, self.case_folder(case))

    def _give_up(self, journal: Journal, progress: Progress, case_id: str, state: State, reason: str) -> None:
        ended = Ended(state, None, None, reason)
        journal.end(case_id, ended)
        case = self._by_id.get(case_id)
        if case is not None:
            progress.ended(case.name, ended, self.case_folder(case))

    def _end(self, journal: Journal, jobs: Sequence[OpenJob], reason: str) -> None:
        """Cancel jobs, and do not come back before they are gone or refuse to go."""
        for force in (False, True):
            self.scheduler.cancel([job.id or job.name for job in jobs], force=force)
            deadline = time.monotonic() + CANCEL_S
            while self._queue(journal) and time.monotonic() < deadline:
                time.sleep(0.2)
        for name in {job.submission for job in jobs}:
            journal.released(name, reason)

    def _queue(self, journal: Journal) -> dict[str, Queued]:
        """Job name -> what the scheduler says, of the open jobs that it still has."""
        by_id = {job.id: name for name, job in journal.open.items() if job.id}
        names = {job.submission for job in journal.open.values()}
        found: dict[str, Queued] = {}
        for queued in self.scheduler.queue(names) if names else ():
            job = by_id.get(queued.id, queued.name if queued.name in journal.open else "")
            if job and (job not in found or queued.state == "running"):
                found[job] = queued
        return found

    def _is_done(self, journal: Journal, case: Case) -> bool:
        ended = journal.ended.get(case.id)
        return ended is not None and ended.state == "done" and os.path.isdir(self.case_folder(case))

    def _is_left(self, journal: Journal, case: Case) -> bool:
        """Whether a run would submit it: it is neither open nor ended, by the journal or, run by hand, by its files."""
        if case.id in journal.open_cases:
            return False
        folder = f"{self.folder}/{case.folder_name}"
        if case.id in journal.ended:
            return not os.path.isdir(folder)
        if case.after and self._failed_needs(journal, case):
            return False
        ended = outcome.ended(case, Path(folder))
        return ended is None or ended.state != "done"

    def _running(self, journal: Journal) -> list[tuple[str, Path]]:
        """Name and folder of open cases that have begun; some of them, where there are many."""
        found = []
        for case_id in list(journal.open_cases)[:50]:
            case = self._by_id.get(case_id)
            if case is not None and outcome.was_begun(self.case_folder(case)):
                found.append((case.name, self.case_folder(case)))
        return found[:4]

    def _outcomes(self, journal: Journal, queue: dict[str, Queued]) -> list[Outcome]:
        there = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
        return [self._outcome(journal, queue, there, case) for case in self.plan.cases]

    def _outcome(self, journal: Journal, queue: dict[str, Queued], there: set[str], case: Case) -> Outcome:
        folder = self.case_folder(case)
        if case.folder_name not in there:
            failed = self._failed_needs(journal, case)
            said = f"needs {failed[0]}" if failed else ""
            return Outcome(case, "blocked" if failed else "not run", None, said, folder)
        ended = journal.ended.get(case.id) or outcome.ended(case, folder)
        if ended is not None:
            return Outcome(case, ended.state, ended.exit_code, ended.reason, folder)
        job = queue.get(journal.open_cases.get(case.id, ""))
        begun = outcome.was_begun(folder)
        if job is not None:
            state: State = "running" if begun and job.state == "running" else "waiting"
            return Outcome(case, state, None, job.reason if state == "waiting" else "", folder)
        if begun:
            return Outcome(case, "lost", None, "", folder)
        failed = self._failed_needs(journal, case)
        return Outcome(case, "blocked" if failed else "not run", None, f"needs {failed[0]}" if failed else "", folder)

    def _failed_needs(self, journal: Journal, case: Case) -> list[str]:
        """The cases that it needs and that ended otherwise than well."""
        ends = {name: journal.ended.get(i) for name in case.after if (i := self._id_of_folder.get(name))}
        return [name for name, ended in ends.items() if ended is not None and ended.state != "done"]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the campaign's lock; raises UsageError if another harness has it."""
        (self.folder / JOBS).mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                who = handle.read(200).strip()
                raise UsageError(f"{self.folder}: another harness is running this campaign ({who})") from None
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {platform.node()}\n")
            handle.flush()
            yield


def _scheduler(kind: str, folder: Path) -> Scheduler:
    match kind:
        case "slurm":
            return SlurmScheduler()
        case "pbs":
            return PbsScheduler()
    return LocalScheduler(folder)
