"""Submit jobs to the scheduler: in order, within the limits of the site and the user, and each job only once."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.execution import case_files
from harness.execution.gpu_errors import FAULTY_NODES_FILE, read_faulty_nodes
from harness.execution.job_script import JobScriptWriter
from harness.execution.journal import Journal
from harness.execution.schedulers.base import JobRejected, QueueFull, Scheduler
from harness.execution.schedulers.command import CommandFailed
from harness.execution.status import Progress
from harness.planning.expand import Plan
from harness.planning.jobs import Job, sum_node_hours
from harness.protocol.text import pluralize

MIN_ARRAY_SIZE = 3


@dataclass(frozen=True)
class RunOptions:
    """The user's options of a run.

    Attributes:
        submit: whether to submit jobs, and not only write their scripts.
        wait: whether to wait until all jobs have ended.
        retry: whether to run failed cases again.
        max_jobs: the maximum number of jobs in the queue; None: the limit of the site.
        max_node_hours: the maximum cost of the jobs that this run submits; None: no limit.
    """

    submit: bool = True
    wait: bool = True
    retry: bool = False
    max_jobs: int | None = None
    max_node_hours: float | None = None


class Submission:
    """The submission of the jobs of one run.

    Attributes:
        n_submitted: the number of submitted jobs.
        held_back: the jobs that the scheduler does not accept now.
        rejected: the reasons why jobs were rejected for good, by name of the job.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        folder: Path,
        scheduler: Scheduler,
        journal: Journal,
        options: RunOptions,
        progress: Progress,
    ) -> None:
        self.plan, self.folder = plan, folder
        self.scheduler, self.journal = scheduler, journal
        self.options, self.progress = options, progress
        self.scripts = JobScriptWriter(plan, folder)
        self.max_jobs = options.max_jobs or plan.system.definition.limits.jobs
        self.n_submitted = 0
        self.held_back: list[Job] = []
        self.rejected: dict[str, str] = {}
        self._reported_nodes: list[str] = []
        self._node_hours = 0.0
        self._reported_over_budget: set[str] = set()
        self._ids = {case.folder_name: case.id for case in plan.cases}
        self._planned_ids = set(self._ids.values())
        self._may_never_fit = False

    def write_scripts(self, jobs: Sequence[Job]) -> None:
        """Write the scripts and report where they are."""
        for job in jobs:
            self._prepare_job(job)
        self.progress.report_scripts(self.scripts.jobs_folder, len(jobs), sum_node_hours(jobs)[0])

    def submit(self, jobs: Sequence[Job]) -> list[Job]:
        """Submit the jobs that are ready and within the limits, and return the jobs that have to wait."""
        waiting = list(jobs)
        held_back_before = {job.name for job in self.held_back}
        self.held_back = []
        while True:
            ready, later = self._partition_ready(waiting)
            submitted_before = self.n_submitted
            try:
                self._submit_all(ready)
            except QueueFull as error:
                self.held_back = [job for job, _ in ready if not self._is_accepted_or_rejected(job)]
                self._may_never_fit = error.may_be_permanent and not self.journal.active_jobs
                if submitted_before < self.n_submitted or {job.name for job in self.held_back} - held_back_before:
                    self._report_held_back(error)
                return self.held_back + later
            waiting = later
            if not ready or not waiting:
                return waiting

    @property
    def waits_for_queue(self) -> bool:
        """Whether jobs are held back that the scheduler may accept later."""
        return bool(self.held_back) and not self._may_never_fit

    def _is_accepted_or_rejected(self, job: Job) -> bool:
        """Return whether the scheduler has accepted or rejected the job."""
        return job.name in self.journal.active_jobs or job.name in self.rejected

    def _report_held_back(self, error: QueueFull) -> None:
        cases = sum(len(job.cases) for job in self.held_back)
        next_step = "they will be tried again" if self.options.wait else "run the same command later to submit them"
        hint = (
            "; a job that is too large or too long for the account gets the same message, so check that too"
            if error.may_be_permanent
            else ""
        )
        jobs = f"{pluralize(len(self.held_back), 'job')} ({pluralize(cases, 'case')})"
        message = f"the scheduler accepts no more jobs now: {jobs} held back; {next_step}; its message: {error}{hint}"
        self.progress.print_line(message)

    def _partition_ready(self, jobs: Sequence[Job]) -> tuple[list[tuple[Job, list[str]]], list[Job]]:
        """Return the jobs to submit now, each with the active cases that it depends on, and the jobs for later."""
        ready: list[tuple[Job, list[str]]] = []
        later = []
        ready_node_hours = 0.0
        free_slots = self.max_jobs - len(self.journal.active_jobs)
        for job in jobs:
            state, after = self._check_dependencies(job)
            is_affordable = self._is_within_budget(job, ready_node_hours)
            if state == "now" and is_affordable and len(ready) < free_slots:
                ready.append((job, after))
                ready_node_hours += job.node_hours
            elif state != "never":
                later.append(job)
        return ready, later

    def _is_within_budget(self, job: Job, ready_node_hours: float) -> bool:
        """Return whether --max-node-hours allows the job after the ready ones; report each refused job once."""
        budget = self.options.max_node_hours
        if budget is None or self._node_hours + ready_node_hours + job.node_hours <= budget:
            return True
        if job.name not in self._reported_over_budget:
            self._reported_over_budget.add(job.name)
            message = f"{job.name}: not submitted, since this run could then cost more than --max-node-hours"
            self.progress.print_line(message)
        return False

    def _check_dependencies(self, job: Job) -> tuple[Literal["now", "later", "never"], list[str]]:
        """Return when the job can be submitted, and the ids of the active cases in other jobs that it depends on.

        If a case that it needs is done but has no exit code, the job is rejected.
        """
        inside = {case.folder_name for case in job.cases}
        active = []
        for folder in dict.fromkeys(name for case in job.cases for name in case.depends_on if name not in inside):
            case = self._ids.get(folder, "")
            exit_code = case_files.read_exit_code(self.folder / folder)
            is_successful = exit_code is not None and exit_code[0] == 0
            if case in self.journal.active_cases:
                active.append(case)
            elif case in self.journal.results or case not in self._planned_ids:
                result = self.journal.results.get(case)
                if exit_code is None and result is not None and result.state == "done":
                    reason = "it left no exit code, which this job needs; delete its folder so that it runs again"
                    self.rejected[job.name] = f"{job.name}: needs {self.folder / folder}: {reason}"
                if not is_successful:
                    return "never", []
            elif not is_successful:
                return "later", []
        return ("later", []) if active and not self.scheduler.is_detached else ("now", active)

    def _submit_all(self, ready: Sequence[tuple[Job, list[str]]]) -> None:
        by_shape: dict[object, list[Job]] = defaultdict(list)
        for job, after in ready:
            by_shape[("dependent", job.name) if after else job.shape].append(job)
        dependencies = {job.name: after for job, after in ready}
        max_size = self.plan.system.definition.limits.array
        for jobs in by_shape.values():
            if self.scheduler.supports_arrays and max_size > 1 and len(jobs) >= MIN_ARRAY_SIZE:
                self._submit_arrays(jobs, max_size)
            else:
                for job in jobs:
                    self._submit_one(job, dependencies[job.name])
            if any(job.name in self.rejected for job in jobs):
                self._reject_same_shape(jobs)

    def _submit_arrays(self, jobs: Sequence[Job], size: int) -> None:
        """Submit jobs of one shape as arrays; halve their size whenever the scheduler does not accept one."""
        position = 0
        while position < len(jobs):
            batch = list(jobs[position : position + size])
            try:
                if len(batch) >= MIN_ARRAY_SIZE:
                    self._submit_array(batch)
                else:
                    for job in batch:
                        self._submit_one(job, ())
                        position += 1
                    continue
            except QueueFull:
                size = len(batch) // 2
                if size == 0 or len(batch) < MIN_ARRAY_SIZE:
                    raise
                continue
            position += len(batch)
            if batch[0].name in self.rejected:
                return

    def _reject_same_shape(self, jobs: Sequence[Job]) -> None:
        """Reject all jobs of the same shape as a rejected one, since their scripts request the same resources."""
        reason = next(self.rejected[job.name] for job in jobs if job.name in self.rejected)
        for job in jobs:
            if not self._is_accepted_or_rejected(job):
                self.rejected[job.name] = reason

    def _submit_one(self, job: Job, after: Sequence[str]) -> None:
        script = self._prepare_job(job)
        active_ids = [self.journal.active_jobs[self.journal.active_cases[case]].id for case in after]
        ids = list(dict.fromkeys(job_id for job_id in active_ids if job_id))
        self.journal.record_request(job.name, {job.name: job.folders}, array=False)
        self._submit([job], job.name, script, lambda: self.scheduler.submit(script, job.name, ids))

    def _submit_array(self, jobs: list[Job]) -> None:
        digest = hashlib.sha256("\n".join(job.name for job in jobs).encode()).hexdigest()[:8]
        name = f"{self.plan.suite.name}-array-{digest}"
        for job in jobs:
            self._prepare_job(job)
        script = self.scripts.write_array(name, jobs)
        self.journal.record_request(name, {job.name: job.folders for job in jobs}, array=True)
        self._submit(jobs, name, script, lambda: self.scheduler.submit_array(script, name))

    def _submit(self, jobs: Sequence[Job], name: str, script: Path, call_scheduler: Callable[[], str]) -> None:
        """Submit a script of jobs and record the scheduler's answer."""
        try:
            job_id = call_scheduler()
        except QueueFull as error:
            self.journal.record_release(name, str(error))
            raise
        except (JobRejected, CommandFailed) as error:
            self.journal.record_release(name, str(error))
            self.rejected |= dict.fromkeys((job.name for job in jobs), f"{script}: {error}")
            return
        self.journal.record_submission(name, job_id)
        self._node_hours += sum_node_hours(jobs)[0]
        self.n_submitted += len(jobs)
        names, cases = [job.name for job in jobs], sum(len(job.cases) for job in jobs)
        self.progress.report_submission(names, job_id, cases)

    def _prepare_job(self, job: Job) -> Path:
        """Archive the attempts of the job's cases and write its script."""
        for case in job.cases:
            folder = self.folder / case.folder_name
            result = case_files.read_result(folder)
            if result is None or result.state != "done":  # the script skips a case that has just turned out to be done
                case_files.archive_attempt(folder)
        self._report_excluded_nodes()
        return self.scripts.write(job)

    def _report_excluded_nodes(self) -> None:
        """Report the nodes that jobs do not use, once."""
        nodes = read_faulty_nodes(self.folder)
        if nodes and nodes != self._reported_nodes:
            file = self.scripts.jobs_folder / FAULTY_NODES_FILE
            names = ", ".join(nodes)
            self.progress.print_line(f"not used, since a GPU reported an error: {names}; remove {file} to use them")
        self._reported_nodes = nodes
