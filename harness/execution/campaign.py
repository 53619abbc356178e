"""A campaign carries out a plan: it submits what is missing, watches it, and knows the state of every case."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.execution.job_monitor import JobMonitor
from harness.execution.journal import Journal
from harness.execution.progress import Progress
from harness.execution.schedulers.base import Scheduler
from harness.execution.schedulers.command import CommandFailed, Pauses, SchedulerBusy, notify
from harness.execution.schedulers.local import LocalScheduler
from harness.execution.schedulers.pbs import PbsScheduler
from harness.execution.schedulers.slurm import SlurmScheduler
from harness.execution.status import CampaignStatus, Outcome
from harness.execution.submission import RunOptions, Submission
from harness.host.locks import campaign_lock
from harness.planning.expand import Plan
from harness.planning.jobs import Job, pack_jobs
from harness.protocol.case import Case
from harness.protocol.errors import Interrupted, UsageError


class Campaign:
    """The cases of one plan in root/<suite>-<system>/<case>/, with their jobs in .../jobs/."""

    def __init__(self, plan: Plan, root: Path) -> None:
        self.plan = plan
        self.folder = root / plan.campaign_name
        self.scheduler = _make_scheduler(plan.site.system.scheduler, self.folder)
        self.submission: Submission | None = None

    def case_folder(self, case: Case) -> Path:
        """Return the folder of the case's files."""
        return self.folder / case.folder_name

    def pending_jobs(self, retry: bool = False) -> list[Job]:
        """Return the jobs that a run would submit."""
        journal = Journal(self.folder)
        if retry:
            journal.results = {case: result for case, result in journal.results.items() if result.state == "done"}
        return self._pending_jobs(journal)

    def status(self) -> list[Outcome]:
        """Return the state of every case; nothing is written, so that this may be called at any time."""
        journal = Journal(self.folder)
        try:
            queue = self._monitor(journal).query_queue()
        except (SchedulerBusy, CommandFailed) as error:
            notify(f"{error}; the states below are those that the scheduler last reported")
            queue = None
        return self._status(journal).case_outcomes(queue)

    def run(self, options: RunOptions, progress: Progress) -> list[Outcome]:
        """Gather what has ended, submit what is missing, and wait if asked to; return the state of all cases.

        A case that fails does not stop the others, nor does a job that is rejected: `submission` holds those.
        KeyboardInterrupt ends jobs of this machine and leaves those of a queue.

        Raises:
            Interrupted: the scheduler does not answer.
            UsageError: its commands cannot be used, or another harness runs the campaign.
        """
        with (
            campaign_lock(self.folder),
            _scheduler_errors("nothing is lost, and the same command carries on from here"),
        ):
            journal = Journal(self.folder)
            monitor = self._monitor(journal, progress)
            try:
                if options.submit or journal.active_jobs:
                    self._gather(options, monitor, progress)
                self.submission = self._submission(options, journal, progress)
                if options.submit:
                    return self._submit_and_wait(self.submission, monitor, progress)
                self.submission.write_scripts(self._pending_jobs(journal))
                return self._status(journal).case_outcomes(None)
            except KeyboardInterrupt:
                if not self.scheduler.detached:
                    monitor.cancel_jobs("interrupted")
                raise

    def collect(self, progress: Progress) -> list[Outcome]:
        """Gather what has ended, submit nothing, and return the state of all cases; raise as run does."""
        with campaign_lock(self.folder), _scheduler_errors("nothing is lost"):
            journal = Journal(self.folder)
            monitor = self._monitor(journal, progress)
            monitor.recover()
            monitor.reconcile()
            return self._status(journal).case_outcomes(monitor.query_queue())

    def cancel(self) -> int:
        """Take every job of the campaign out of the queue and return how many there were."""
        with campaign_lock(self.folder):
            try:
                return self._monitor(Journal(self.folder)).cancel_jobs("cancelled")
            except (SchedulerBusy, CommandFailed) as error:
                raise Interrupted(f"{error}; the jobs are as they were") from None

    def _gather(self, options: RunOptions, monitor: JobMonitor, progress: Progress) -> None:
        """Record what has ended since the last command, and free the cases that are to be retried."""
        journal = monitor.journal
        monitor.recover()
        if options.retry:
            planned = {case.id for case in self.plan.cases}
            for case in [i for i, result in journal.results.items() if result.state != "done" and i in planned]:
                journal.record_retry(case)
        monitor.reconcile()
        status = self._status(journal)
        progress.report_skipped([case.name for case in self.plan.cases if status.is_done(case)])

    def _submit_and_wait(self, submission: Submission, monitor: JobMonitor, progress: Progress) -> list[Outcome]:
        """Submit the pending jobs, and all that turns out to be lost, until nothing is left to wait for.

        The wait also ends when the scheduler says twice that the remaining jobs will never start.
        """
        journal, has_to_wait = monitor.journal, submission.options.wait
        pauses = Pauses(*self.scheduler.poll_s)
        hopeless_polls = 0
        jobs = submission.submit(monitor.adopt_external(self._pending_jobs(journal)))
        while has_to_wait and hopeless_polls <= 1 and (journal.active_jobs or submission.waits_for_queue):
            progress.update(self._status(journal).started_cases())
            pauses.sleep()
            active_before = len(journal.active_cases)
            lost = monitor.reconcile()
            if len(journal.active_cases) < active_before:
                pauses.reset()
            progress.report_waiting(monitor.last_queue)
            hopeless_polls = hopeless_polls + 1 if not lost and monitor.is_hopeless() else 0
            jobs = submission.submit(jobs + pack_jobs(self.plan, lost, self.folder, journal.measured_seconds()))
        if hopeless_polls > 1:
            message = "the jobs that remain will not start by themselves; the same command goes on once they can"
            progress.print_line(message)
        if has_to_wait:
            self.scheduler.wait_for_children()
        progress.close()
        return self._status(journal).case_outcomes(monitor.query_queue())

    def _submission(self, options: RunOptions, journal: Journal, progress: Progress) -> Submission:
        return Submission(
            plan=self.plan,
            folder=self.folder,
            scheduler=self.scheduler,
            journal=journal,
            options=options,
            progress=progress,
        )

    def _monitor(self, journal: Journal, progress: Progress | None = None) -> JobMonitor:
        return JobMonitor(
            plan=self.plan, folder=self.folder, scheduler=self.scheduler, journal=journal, progress=progress
        )

    def _status(self, journal: Journal) -> CampaignStatus:
        return CampaignStatus(self.plan, self.folder, journal)

    def _pending_jobs(self, journal: Journal) -> list[Job]:
        status = self._status(journal)
        cases = [case for case in self.plan.cases if status.is_pending(case)]
        return pack_jobs(self.plan, cases, self.folder, journal.measured_seconds())


@contextmanager
def _scheduler_errors(advice: str) -> Iterator[None]:
    """Turn the errors of scheduler commands into errors for the user."""
    try:
        yield
    except SchedulerBusy as error:
        raise Interrupted(f"{error}; {advice}") from None
    except CommandFailed as error:
        raise UsageError(str(error)) from None


def _make_scheduler(kind: str, folder: Path) -> Scheduler:
    match kind:
        case "slurm":
            return SlurmScheduler()
        case "pbs":
            return PbsScheduler()
    return LocalScheduler(folder)
