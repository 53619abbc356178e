"""A campaign executes a plan: it submits missing cases, monitors their jobs, and reports the state of every case."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.execution.job_monitor import JobMonitor
from harness.execution.journal import Journal
from harness.execution.schedulers.base import Scheduler
from harness.execution.schedulers.command import CommandFailed, Pauses, RetriesExhausted, notify
from harness.execution.schedulers.local import LocalScheduler
from harness.execution.schedulers.pbs import PbsScheduler
from harness.execution.schedulers.slurm import SlurmScheduler
from harness.execution.status import CampaignStatus, Outcome, Progress
from harness.execution.submission import RunOptions, Submission
from harness.host.locks import hold_folder_lock
from harness.planning.expand import Plan
from harness.planning.jobs import Job, pack_jobs
from harness.protocol.case import Case
from harness.protocol.errors import SchedulerUnavailable, UsageError


class Campaign:
    """The cases of one plan in root/<suite>-<system>/<case>/, with their jobs in root/<suite>-<system>/jobs/."""

    def __init__(self, plan: Plan, root: Path) -> None:
        self.plan = plan
        self.folder = root / plan.campaign_name
        self.scheduler = _make_scheduler(plan.system.definition.scheduler, self.folder)
        self.submission: Submission | None = None

    def get_case_folder(self, case: Case) -> Path:
        """Return the folder of the case's files."""
        return self.folder / case.folder_name

    def list_pending_jobs(self, retry: bool = False) -> list[Job]:
        """Return the jobs that a run would submit.

        Args:
            retry: Whether the run also repeats cases that ended without being done.
        """
        journal = Journal(self.folder)
        if retry:
            journal.results = {case: result for case, result in journal.results.items() if result.state == "done"}
        return self._pack_pending_jobs(journal)

    def list_outcomes(self) -> list[Outcome]:
        """Return the outcome of every case without writing anything, even while another process runs the campaign."""
        journal = Journal(self.folder)
        try:
            queue = self._make_monitor(journal).query_queue()
        except (RetriesExhausted, CommandFailed) as error:
            notify(f"{error}; the states below are the last ones that the scheduler reported")
            queue = None
        return self._make_status(journal).list_outcomes(queue)

    def load_pace(self, progress: Progress) -> list[Case]:
        """Add the times of the cases that ended earlier to the pace, and return the cases that have not ended."""
        journal = Journal(self.folder)
        self._add_times(progress, journal)
        return self._make_status(journal).list_unfinished()

    def run(self, options: RunOptions, progress: Progress, report: Callable[[], None] = lambda: None) -> list[Outcome]:
        """Collect results, submit missing cases or write their job scripts, and return the state of all cases.

        The options say whether cases are submitted, and whether the command waits until their jobs have ended. While it
        waits, `report` is called when cases have ended, before further jobs start on this machine.
        Failed cases and rejected jobs do not stop the others; `submission.rejected` lists the rejected jobs afterwards.
        KeyboardInterrupt ends jobs on this machine; jobs in the queue of a scheduler continue.

        Raises:
            SchedulerUnavailable: the scheduler does not answer.
            UsageError: the scheduler's commands cannot be used, or another harness process is running the campaign.
        """
        with (
            hold_folder_lock(self.folder),
            _convert_scheduler_errors("no work is lost; run the same command to continue"),
        ):
            journal = Journal(self.folder)
            monitor = self._make_monitor(journal, progress)
            try:
                if options.submit or journal.active_jobs:
                    self._collect_results(options, monitor, progress)
                self.submission = self._make_submission(options, journal, progress)
                if options.submit:
                    return self._submit_and_wait(self.submission, monitor, progress, report)
                self.submission.write_scripts(self._pack_pending_jobs(journal))
                return self._make_status(journal).list_outcomes(None)
            except KeyboardInterrupt:
                if not self.scheduler.is_detached:
                    monitor.cancel_jobs("interrupted")
                raise

    def collect(self, progress: Progress) -> list[Outcome]:
        """Collect results, submit nothing, and return the state of all cases; raise the same errors as run."""
        with hold_folder_lock(self.folder), _convert_scheduler_errors("no work is lost"):
            journal = Journal(self.folder)
            monitor = self._make_monitor(journal, progress)
            monitor.recover()
            monitor.reconcile()
            return self._make_status(journal).list_outcomes(monitor.query_queue())

    def cancel(self) -> int:
        """Cancel every job of the campaign and return their number.

        Raises:
            SchedulerUnavailable: a command of the scheduler failed, and some jobs may not be cancelled.
            UsageError: another harness process is running the campaign.
        """
        with hold_folder_lock(self.folder):
            try:
                return self._make_monitor(Journal(self.folder)).cancel_jobs("cancelled")
            except (RetriesExhausted, CommandFailed) as error:
                raise SchedulerUnavailable(
                    f"{error}; some jobs may not be cancelled; run the same command again"
                ) from None

    def _collect_results(self, options: RunOptions, monitor: JobMonitor, progress: Progress) -> None:
        """Record the cases that have ended since the last command, and mark those to be retried as not run."""
        journal = monitor.journal
        monitor.recover()
        if options.retry:
            planned = {case.id for case in self.plan.cases}
            for case in [
                case for case, result in journal.results.items() if result.state != "done" and case in planned
            ]:
                journal.record_retry(case)
        monitor.reconcile()
        status = self._make_status(journal)
        progress.report_skipped([case.name for case in self.plan.cases if status.is_done(case)])

    def _submit_and_wait(
        self, submission: Submission, monitor: JobMonitor, progress: Progress, report: Callable[[], None]
    ) -> list[Outcome]:
        """Submit the pending jobs and resubmit lost cases, until there is nothing to wait for.

        The wait also ends when the scheduler reports twice in a row that the remaining jobs will never start.
        """
        journal, has_to_wait = monitor.journal, submission.options.wait
        pauses = Pauses(*self.scheduler.poll_s)
        stuck_polls = 0
        jobs = submission.submit(monitor.adopt_external(self._pack_pending_jobs(journal)))
        while has_to_wait and stuck_polls <= 1 and (journal.active_jobs or submission.waits_for_queue):
            status = self._make_status(journal)
            progress.update(status.list_started_cases(), status.list_unfinished())
            pauses.sleep()
            active_before = len(journal.active_cases)
            lost_cases = monitor.reconcile()
            if len(journal.active_cases) < active_before:
                pauses.reset()
                self._add_times(progress, journal)
                if jobs and not journal.active_jobs and any(r.state == "done" for r in journal.results.values()):
                    progress.close()
                    report()
            progress.report_waiting(monitor.last_queue)
            stuck_polls = stuck_polls + 1 if not lost_cases and monitor.is_stuck() else 0
            jobs = submission.submit(
                jobs + pack_jobs(self.plan, lost_cases, self.folder, journal.get_measured_seconds())
            )
        if stuck_polls > 1:
            message = "the remaining jobs cannot start; resolve the reason above and run the same command to continue"
            progress.print_line(message)
        if has_to_wait:
            self.scheduler.wait_for_children()
        progress.close()
        return self._make_status(journal).list_outcomes(monitor.query_queue())

    def _add_times(self, progress: Progress, journal: Journal) -> None:
        seconds = journal.get_measured_seconds()
        for case in self.plan.cases:
            progress.pace.add(case, seconds.get(case.id))

    def _make_submission(self, options: RunOptions, journal: Journal, progress: Progress) -> Submission:
        return Submission(
            plan=self.plan,
            folder=self.folder,
            scheduler=self.scheduler,
            journal=journal,
            options=options,
            progress=progress,
        )

    def _make_monitor(self, journal: Journal, progress: Progress | None = None) -> JobMonitor:
        return JobMonitor(
            plan=self.plan, folder=self.folder, scheduler=self.scheduler, journal=journal, progress=progress
        )

    def _make_status(self, journal: Journal) -> CampaignStatus:
        return CampaignStatus(self.plan, self.folder, journal)

    def _pack_pending_jobs(self, journal: Journal) -> list[Job]:
        status = self._make_status(journal)
        cases = [case for case in self.plan.cases if status.is_pending(case)]
        return pack_jobs(self.plan, cases, self.folder, journal.get_measured_seconds())


@contextmanager
def _convert_scheduler_errors(advice: str) -> Iterator[None]:
    """Convert errors of scheduler commands to errors for the user, with advice if the scheduler does not answer."""
    try:
        yield
    except RetriesExhausted as error:
        raise SchedulerUnavailable(f"{error}; {advice}") from None
    except CommandFailed as error:
        raise UsageError(str(error)) from None


def _make_scheduler(kind: str, folder: Path) -> Scheduler:
    match kind:
        case "slurm":
            return SlurmScheduler()
        case "pbs":
            return PbsScheduler()
    return LocalScheduler(folder)
