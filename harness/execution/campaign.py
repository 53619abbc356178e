"""A plan being carried out: submit what is missing, watch it, and know at any time how far it is."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.execution import case_results, vanished_jobs
from harness.execution.campaign_lock import alone
from harness.execution.case_results import Outcome
from harness.execution.job_script import JOBS
from harness.execution.journal import Ended, Journal, OpenJob
from harness.execution.progress import Progress
from harness.execution.schedulers.base import Queued, Scheduler
from harness.execution.schedulers.command import CommandFailed, Pauses, SchedulerBusy, notify
from harness.execution.schedulers.local import LocalScheduler
from harness.execution.schedulers.pbs import PbsScheduler
from harness.execution.schedulers.slurm import SlurmScheduler
from harness.execution.status import Standing
from harness.execution.submission import Orders, Submission
from harness.execution.vanished_jobs import files_s
from harness.planning.expand import Plan
from harness.planning.jobs import Job, pack
from harness.protocol.case import Case
from harness.protocol.errors import Interrupted, UsageError

CANCEL_S = 10.0
# The id on record of a job that somebody submitted and whose id is not known.
BY_HAND = "by hand"
# A submission whose command was cut off by a kill may still be on its way for so long.
IN_FLIGHT_S = 10.0


class Campaign:
    """The cases of one plan under root/<suite>-<system>/<case>/, their jobs under .../jobs/."""

    def __init__(self, plan: Plan, root: Path) -> None:
        self.plan = plan
        self.folder = root / plan.campaign_name
        self.scheduler = _scheduler(plan.site.system.scheduler, self.folder)
        self.submission: Submission | None = None
        self._last_queue: dict[str, Queued] = {}
        self._by_id = {case.id: case for case in plan.cases}

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
            queue: dict[str, Queued] | None = self._queue(journal)
        except (SchedulerBusy, CommandFailed) as error:
            notify(f"{error}; what follows is as the scheduler last said")
            queue = None
        return self._standing(journal).outcomes(queue)

    def run(self, orders: Orders, progress: Progress) -> list[Outcome]:
        """Gather what has ended, submit what is missing, and stay if told to; return where all cases stand.

        A case that fails does not stop the others, nor does a job that is refused: `submission` tells of those.
        KeyboardInterrupt ends jobs of this machine and leaves those of a queue; raises Interrupted if the scheduler
        does not answer.
        """
        with alone(self.folder):
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
        with alone(self.folder):
            journal = Journal(self.folder)
            try:
                self._recover(journal)
                self._settle(journal, progress)
                return self._standing(journal).outcomes(self._queue(journal))
            except SchedulerBusy as error:
                raise Interrupted(f"{error}; nothing is lost") from None
            except CommandFailed as error:
                raise UsageError(str(error)) from None

    def cancel(self) -> int:
        """Take every job of the campaign out of the queue; return how many there were."""
        with alone(self.folder):
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
        standing = self._standing(journal)
        progress.already_done([case.name for case in self.plan.cases if standing.is_done(case)])
        if not orders.submit:
            return self._written(orders, journal, progress)
        left = self._adopt(journal, self._left(journal))
        submission = self.submission = Submission(self.plan, self.folder, self.scheduler, journal, orders, progress)
        pauses = Pauses(*self.scheduler.poll_s)
        hopeless_looks = 0
        while True:
            left = submission.submit(left)
            if not orders.wait or not (journal.open or submission.waits_for_room) or hopeless_looks > 1:
                break
            progress.watch(self._standing(journal).begun())
            pauses.sleep()
            before = len(journal.open_cases)
            lost = self._settle(journal, progress)
            if len(journal.open_cases) < before:
                pauses.reset()
            progress.waiting(self._last_queue)
            hopeless_looks = hopeless_looks + 1 if not lost and self._is_hopeless(journal) else 0
            left += pack(self.plan, [self._by_id[i] for i in lost], self.folder, journal.seconds())
        if hopeless_looks > 1:
            progress.say("the jobs that remain will not start by themselves; the same command goes on once they can")
        if orders.wait:
            self.scheduler.drain()
        progress.close()
        return self._standing(journal).outcomes(self._queue(journal))

    def _is_hopeless(self, journal: Journal) -> bool:
        """Whether the scheduler says of all open jobs that they will not start."""
        queue = self._last_queue
        return bool(journal.open) and all(job in queue and queue[job].is_hopeless for job in journal.open)

    def _written(self, orders: Orders, journal: Journal, progress: Progress) -> list[Outcome]:
        """Make the scripts of what is left, without a word to the scheduler."""
        submission = Submission(self.plan, self.folder, self.scheduler, journal, orders, progress)
        left = self._left(journal)
        submission.write_only(left)
        return self._standing(journal).outcomes(None)

    def _standing(self, journal: Journal) -> Standing:
        return Standing(self.plan, self.folder, journal)

    def _left(self, journal: Journal) -> list[Job]:
        standing = self._standing(journal)
        cases = [case for case in self.plan.cases if standing.is_left(case)]
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
            if time.time() - job.time_s >= self._files_s() and not self._was_begun(job):
                journal.released(job.submission, "never reached the scheduler")

    def _adopt(self, journal: Journal, jobs: Sequence[Job]) -> list[Job]:
        """Leave out the jobs that somebody submitted by hand, and put them on record."""
        there = {queued.name: queued.id for queued in self.scheduler.queue({job.name for job in jobs})}
        held = self._held({i: folder for job in jobs for i, folder in job.folders.items()})
        free = []
        for job in jobs:
            if job.name in there or any(case.id in held for case in job.cases):
                journal.submitting(job.name, {job.name: job.folders}, array=False)
                journal.submitted(job.name, there.get(job.name, BY_HAND))
            else:
                free.append(job)
        return free

    def _held(self, cases: Mapping[str, str]) -> set[str]:
        """Those of the cases (id -> folder) that a living job has taken up, whatever job they are on record for."""
        claims = {case: case_results.claim_of(self.folder / folder) for case, folder in cases.items()}
        ids = {claim for claim in claims.values() if claim}
        alive = {queued.id for queued in self.scheduler.queue((), ids)} if ids else set()
        return {case for case, claim in claims.items() if claim in alive}

    def _settle(self, journal: Journal, progress: Progress) -> list[str]:
        """Put on record what has ended; return the cases that were lost and may be submitted again."""
        for failed in [c for c in self.plan.cases if c.id in journal.ended and journal.ended[c.id].state != "done"]:
            ended = case_results.ended(self.case_folder(failed))
            if ended is not None and ended.state == "done":  # somebody ran it again by hand
                journal.end(failed.id, ended)
        if not journal.open:
            return []
        queue = self._queue(journal)
        self._look(journal, progress)
        for name in [name for name, job in journal.open.items() if name in queue and job.vanished_s is not None]:
            journal.back(name)
        gone = [job for name, job in journal.open.items() if name not in queue]
        if any(job.vanished_s is None for job in gone):
            time.sleep(self.scheduler.settle_s)
            queue = self._queue(journal)
            self._look(journal, progress)
            gone = [job for name, job in journal.open.items() if name not in queue]
        return self._close(journal, progress, gone) if gone else []

    def _close(self, journal: Journal, progress: Progress, gone: Sequence[OpenJob]) -> list[str]:
        """Put on record the cases of jobs that the queue has no more, but those whose files may still come."""
        held = self._held({case: folder for job in gone for case, folder in job.cases.items()})
        endings = self.scheduler.endings([job.id for job in gone if job.id])
        lost: set[str] = set()
        late: dict[str, list[str]] = defaultdict(list)
        for job in gone:
            ending = endings.get(job.id or "")
            reason = vanished_jobs.reason_of(ending, self.folder / JOBS / f"{job.name}.log")
            for case, folder in list(job.cases.items()):
                if case in held or (ending is not None and ending.kind == "alive"):
                    continue
                case_results.list_anew(self.folder / folder)
                ended = case_results.ended(self.folder / folder) or vanished_jobs.judge(self.folder / folder, ending)
                since_s = job.time_s if job.id is None else job.vanished_s
                if vanished_jobs.may_come(self.folder / folder, ending, since_s, self._files_s()):
                    if job.vanished_s is None:
                        journal.vanished(job.name)
                        late[vanished_jobs.describe(ending, self._files_s())].append(job.name)
                elif ended is not None:
                    self._ended(journal, progress, case, folder, ended)
                elif journal.losses[case] >= self.plan.suite.retries:
                    said = f"{reason}; tried {journal.losses[case] + 1} times"
                    self._ended(journal, progress, case, folder, Ended("lost", None, None, said))
                else:
                    journal.lost(case, reason)
                    lost.add(case)
        for said, jobs in late.items():
            progress.say(f"{jobs[0]}{f' and {len(jobs) - 1} more' * (len(jobs) > 1)}: {said}")
        return [case for case in self._by_id if case in lost]

    def _was_begun(self, job: OpenJob) -> bool:
        return any(case_results.was_begun(self.folder / folder) for folder in job.cases.values())

    def _files_s(self) -> float:
        """How long the files of a job that has ended may take to show."""
        return files_s(self.scheduler.files_s) if self.scheduler.waits else 0.0

    def _look(self, journal: Journal, progress: Progress) -> None:
        """Put on record the open cases that have an exit code."""
        for job in list(journal.open.values()):
            for case, folder in list(job.cases.items()):
                ended = case_results.ended(self.folder / folder)
                if ended is not None:
                    self._ended(journal, progress, case, folder, ended)

    def _ended(self, journal: Journal, progress: Progress, case: str, folder: str, ended: Ended) -> None:
        journal.end(case, ended)
        known = self._by_id.get(case)
        progress.ended(known.name if known else folder, ended, self.folder / folder)

    def _end(self, journal: Journal, jobs: Sequence[OpenJob], reason: str) -> None:
        """Cancel jobs, and do not come back before they are gone or refuse to go."""
        for force in (False, True):
            self.scheduler.cancel([queued.id for queued in self._queue(journal).values()], force=force)
            deadline = time.monotonic() + CANCEL_S
            while self._queue(journal) and time.monotonic() < deadline:
                time.sleep(0.2)
        for name in {job.submission for job in jobs}:
            journal.released(name, reason)

    def _queue(self, journal: Journal) -> dict[str, Queued]:
        """Job name -> what the scheduler says, of the open jobs that it still has."""
        by_id = {job.id: name for name, job in journal.open.items() if job.id and job.id != BY_HAND}
        names = {job.submission for job in journal.open.values() if job.id is None or job.id == BY_HAND}
        found: dict[str, Queued] = {}
        for queued in self.scheduler.queue(names, by_id) if journal.open else ():
            job = by_id.get(queued.id, queued.name if queued.name in journal.open else "")
            if job and (job not in found or queued.state == "running"):
                found[job] = queued
        self._last_queue = found
        return found


def _scheduler(kind: str, folder: Path) -> Scheduler:
    match kind:
        case "slurm":
            return SlurmScheduler()
        case "pbs":
            return PbsScheduler()
    return LocalScheduler(folder)
