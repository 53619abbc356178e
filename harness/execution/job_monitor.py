"""Monitor the jobs of a campaign: compare the journal with the queue and with the files of the cases."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.execution import case_files
from harness.execution.journal import ActiveJob, CaseResult, Journal
from harness.execution.schedulers.base import JOBS_FOLDER, LastState, QueueEntry, Scheduler
from harness.execution.status import Progress
from harness.planning.expand import Plan
from harness.planning.jobs import Job
from harness.protocol.case import Case

CANCEL_TIMEOUT_S, CANCEL_POLL_S = 10.0, 0.2
# The recorded id of a job that somebody submitted by hand and whose id is not known.
SUBMITTED_BY_HAND = "by hand"
# How long a submission may still reach the scheduler after its command was killed.
SUBMISSION_DELAY_S = 10.0


class JobMonitor:
    """A monitor of the active jobs of one journal, which records what has happened to them.

    Attributes:
        last_queue: the answer to the last query of the queue: the entries of active jobs, by name of the job.
    """

    def __init__(
        self, *, plan: Plan, folder: Path, scheduler: Scheduler, journal: Journal, progress: Progress | None
    ) -> None:
        self.plan, self.folder = plan, folder
        self.scheduler, self.journal = scheduler, journal
        self.progress = progress or Progress(quiet=True)
        self.last_queue: dict[str, QueueEntry] = {}
        self._cases = {case.id: case for case in plan.cases}

    def query_queue(self) -> dict[str, QueueEntry]:
        """Return the entries of the active jobs that the queue still lists, by name of the job."""
        jobs = self.journal.active_jobs
        by_id = {job.id: name for name, job in jobs.items() if job.id and job.id != SUBMITTED_BY_HAND}
        names = {job.submission for job in jobs.values() if job.id is None or job.id == SUBMITTED_BY_HAND}
        queue: dict[str, QueueEntry] = {}
        for entry in self.scheduler.list_jobs(names, by_id) if jobs else ():
            job = by_id.get(entry.id, entry.name if entry.name in jobs else "")
            if job and entry.name not in ("", jobs[job].submission):  # the scheduler's answer with the id was damaged
                continue
            if job and (job not in queue or entry.state == "running"):
                queue[job] = entry
        self.last_queue = queue
        return queue

    def is_stuck(self) -> bool:
        """Return whether the scheduler reports that none of the active jobs will start."""
        queue, jobs = self.last_queue, self.journal.active_jobs
        return bool(jobs) and all(job in queue and queue[job].is_stuck for job in jobs)

    def recover(self) -> None:
        """Resolve submissions that were interrupted before the scheduler's answer was recorded."""
        unknown = [job for job in self.journal.active_jobs.values() if job.id is None]
        if not unknown:
            return
        if self.scheduler.is_detached:
            newest_s = max(job.time_s for job in unknown)
            time.sleep(min(SUBMISSION_DELAY_S, max(0.0, newest_s + SUBMISSION_DELAY_S - time.time())))
        names = {job.submission for job in unknown}
        queued_ids = {entry.name: entry.id for entry in self.scheduler.list_jobs(names)}
        for name in names:
            if name in queued_ids:
                self.journal.record_submission(name, queued_ids[name].split("_")[0])
        for job in [j for j in unknown if j.id is None and j.submission not in queued_ids]:
            is_started = any(case_files.has_started(self.folder / name) for name in job.cases.values())
            if time.time() - job.time_s >= self._get_file_sync_delay_s() and not is_started:
                self.journal.record_release(job.submission, "never reached the scheduler")

    def adopt_external(self, jobs: Sequence[Job]) -> list[Job]:
        """Record the jobs that somebody has submitted by hand, and return the others."""
        queued_ids = {entry.name: entry.id for entry in self.scheduler.list_jobs({job.name for job in jobs})}
        active = self._find_cases_of_active_jobs({case: name for job in jobs for case, name in job.folders.items()})
        others = []
        for job in jobs:
            if job.name in queued_ids or any(case.id in active for case in job.cases):
                self.journal.record_request(job.name, {job.name: job.folders}, array=False)
                self.journal.record_submission(job.name, queued_ids.get(job.name, SUBMITTED_BY_HAND))
            else:
                others.append(job)
        return others

    def reconcile(self) -> list[Case]:
        """Record the cases that have ended, and return the lost cases that may be submitted again."""
        journal = self.journal
        for case in [c for c in self.plan.cases if c.id in journal.results and journal.results[c.id].state != "done"]:
            result = case_files.read_result(self.folder / case.folder_name)
            if result is not None and result.state == "done":  # somebody ran it again by hand
                journal.record_end(case.id, result)
        if not journal.active_jobs:
            return []
        queue = self.query_queue()
        self._record_exits()
        for name in [name for name, job in journal.active_jobs.items() if name in queue and job.vanished_s is not None]:
            journal.record_reappearance(name)
        vanished = [job for name, job in journal.active_jobs.items() if name not in queue]
        if any(job.vanished_s is None for job in vanished):
            time.sleep(self.scheduler.queue_delay_s)
            queue = self.query_queue()
            self._record_exits()
            vanished = [job for name, job in journal.active_jobs.items() if name not in queue]
        lost_ids = self._record_vanished(vanished) if vanished else set()
        return [case for case in self.plan.cases if case.id in lost_ids]

    def cancel_jobs(self, reason: str) -> int:
        """Cancel the active jobs, wait until they have left the queue or the time is up, and return their number."""
        jobs = list(self.journal.active_jobs.values())
        for force in (False, True):
            self.scheduler.cancel([entry.id for entry in self.query_queue().values()], force=force)
            deadline = time.monotonic() + CANCEL_TIMEOUT_S
            while self.query_queue() and time.monotonic() < deadline:
                time.sleep(CANCEL_POLL_S)
        for name in {job.submission for job in jobs}:
            self.journal.record_release(name, reason)
        return len(jobs)

    def _find_cases_of_active_jobs(self, cases: Mapping[str, str]) -> set[str]:
        """Return the ids of the cases (id -> folder) that an active job has started, even a job not in the journal."""
        owners = {case: case_files.read_lock_owner(self.folder / name) for case, name in cases.items()}
        ids = {owner for owner in owners.values() if owner}
        active = {entry.id for entry in self.scheduler.list_jobs((), ids)} if ids else set()
        return {case for case, owner in owners.items() if owner in active}

    def _record_exits(self) -> None:
        """Record the end of the active cases that have an exit code."""
        for job in list(self.journal.active_jobs.values()):
            for case, name in list(job.cases.items()):
                result = case_files.read_result(self.folder / name)
                if result is not None:
                    self._record_end(case, name, result)

    def _record_vanished(self, jobs: Sequence[ActiveJob]) -> set[str]:
        """Record the cases of jobs that the queue no longer lists, except cases whose files may still appear.

        Returns:
            The ids of the cases that are lost and may be submitted again.
        """
        active = self._find_cases_of_active_jobs({case: name for job in jobs for case, name in job.cases.items()})
        last_states = self._query_last_states(jobs)
        delay_s = self._get_file_sync_delay_s()
        lost_ids: set[str] = set()
        jobs_by_message: dict[str, list[str]] = defaultdict(list)
        for job in jobs:
            last_state = last_states.get(job.name)
            if last_state is not None and last_state.kind == "alive":
                continue
            for case, name in [(case, name) for case, name in job.cases.items() if case not in active]:
                folder = self.folder / name
                case_files.refresh_listing(folder)
                result = case_files.read_result(folder) or case_files.read_result_of_vanished_job(folder, last_state)
                vanished_at_s = job.time_s if job.id is None else job.vanished_s
                if case_files.could_result_still_appear(folder, last_state, vanished_at_s, delay_s):
                    if job.vanished_s is None:
                        self.journal.record_vanished(job.name)
                        jobs_by_message[_describe_wait(last_state, delay_s)].append(job.name)
                elif result is not None:
                    self._record_end(case, name, result)
                elif self.journal.loss_counts[case] >= self.plan.suite.retries:
                    attempts = self.journal.loss_counts[case] + 1
                    reason = f"{self._describe_disappearance(job, last_state)}; tried {attempts} times"
                    self._record_end(case, name, CaseResult("lost", None, None, reason))
                else:
                    self.journal.record_loss(case, self._describe_disappearance(job, last_state))
                    lost_ids.add(case)
        for message, names in jobs_by_message.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self.progress.print_line(f"{names[0]}{more}: {message}")
        return lost_ids

    def _query_last_states(self, jobs: Sequence[ActiveJob]) -> dict[str, LastState]:
        """Return the last known states of jobs, by name; if two have the same id, it belongs to the later one."""
        jobs_by_id = {job.id: job for job in jobs if job.id}
        last_states = self.scheduler.query_last_states({job_id: job.submission for job_id, job in jobs_by_id.items()})
        return {jobs_by_id[job_id].name: last_state for job_id, last_state in last_states.items()}

    def _record_end(self, case_id: str, folder_name: str, result: CaseResult) -> None:
        """Record and report the result of a case."""
        self.journal.record_end(case_id, result)
        planned = self._cases.get(case_id)
        name = planned.name if planned else folder_name
        self.progress.report_end(name, result, self.folder / folder_name)

    def _describe_disappearance(self, job: ActiveJob, last_state: LastState | None) -> str:
        """Return why a job has vanished: the scheduler's reason, and the last error in the job's log."""
        reason = last_state.reason if last_state else "its job has disappeared, and there is no exit code"
        error = case_files.find_last_error(self.folder / JOBS_FOLDER / f"{job.name}.log")
        return f"{reason}: {error}" if error else reason

    def _get_file_sync_delay_s(self) -> float:
        """Return how long the files of a job that has ended may take to become visible."""
        return case_files.get_file_sync_delay_s(self.scheduler.file_sync_delay_s) if self.scheduler.is_detached else 0.0


def _describe_wait(last_state: LastState | None, limit_s: float) -> str:
    """Return a message to the user about why the campaign waits for files of a job."""
    reason = f"the scheduler says {last_state.reason}" if last_state else "no longer in the queue"
    return f"{reason}, and there is no exit code yet; waiting for files for up to {limit_s:g} s"
