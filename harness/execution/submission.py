"""Handing jobs to the scheduler: in order, within the limits of site and user, never one twice."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.execution import case_results
from harness.execution.job_script import Scripts
from harness.execution.journal import Journal
from harness.execution.progress import Progress
from harness.execution.schedulers.base import QueueFull, Refused, Scheduler
from harness.execution.schedulers.command import CommandFailed
from harness.planning.expand import Plan
from harness.planning.jobs import Job, node_hours

FEWEST_FOR_ARRAY = 3


@dataclass(frozen=True)
class Orders:
    """What the user wants of a run: whether to submit, to stay until all has ended, to try failed cases again.

    max_jobs: jobs in the queue at once; None: what the site allows. max_node_hours: what may be spent at most.
    """

    submit: bool = True
    wait: bool = True
    retry: bool = False
    max_jobs: int | None = None
    max_node_hours: float | None = None


class Submission:
    """The submitting half of a run."""

    def __init__(
        self, plan: Plan, folder: Path, scheduler: Scheduler, journal: Journal, orders: Orders, progress: Progress
    ) -> None:
        self.plan, self.folder = plan, folder
        self.scheduler, self.journal = scheduler, journal
        self.orders, self.progress = orders, progress
        self.scripts = Scripts(plan, folder)
        self.most = orders.max_jobs or plan.site.system.limits.jobs
        self.budget = orders.max_node_hours
        self.spent = 0.0
        self._too_dear: set[str] = set()
        self.id_of = {case.folder_name: case.id for case in plan.cases}
        self.in_plan = set(self.id_of.values())
        self.submitted = 0
        self.held_back: list[Job] = []
        self.may_never_fit = False
        self.refused: dict[str, str] = {}

    def write_only(self, jobs: Sequence[Job]) -> None:
        """Make the scripts and say how to submit them."""
        for job in jobs:
            self._prepare(job)
        self.progress.written(self.scripts.jobs, len(jobs), node_hours(jobs)[0])

    def submit(self, jobs: Sequence[Job]) -> list[Job]:
        """Submit what is ready and fits; return the jobs that are to wait.

        held_back: those that the scheduler did not take now. refused: job -> why the scheduler will never take it.
        """
        waiting = list(jobs)
        before = {job.name for job in self.held_back}
        self.held_back = []
        while True:
            ready, later = self._sorted(waiting)
            taken = self.submitted
            try:
                self._submit_all(ready)
            except QueueFull as error:
                self.held_back = [job for job, _ in ready if not self._is_settled(job)]
                self.may_never_fit = error.may_be_for_good and not self.journal.open
                if taken < self.submitted or {job.name for job in self.held_back} - before:
                    self._report_held_back(error)
                return self.held_back + later
            waiting = later
            if not ready or not waiting:
                return waiting

    @property
    def waits_for_room(self) -> bool:
        """Whether the scheduler may take more later."""
        return bool(self.held_back) and not self.may_never_fit

    def _is_settled(self, job: Job) -> bool:
        """Whether the scheduler has taken the job or refused it."""
        return job.name in self.journal.open or job.name in self.refused

    def _report_held_back(self, error: QueueFull) -> None:
        cases = sum(len(job.cases) for job in self.held_back)
        when = "the rest is tried again" if self.orders.wait else "the same command submits the rest later"
        doubt = (
            "; the scheduler says the same of a job that is too large or too long for the account, so look at that too"
            if error.may_be_for_good
            else ""
        )
        jobs = f"{len(self.held_back)} job{'s' * (len(self.held_back) != 1)} ({cases} case{'s' * (cases != 1)})"
        self.progress.say(f"the scheduler takes no more for now: {jobs} held back; {when}; its words: {error}{doubt}")

    def _sorted(self, jobs: Sequence[Job]) -> tuple[list[tuple[Job, list[str]]], list[Job]]:
        """The jobs to submit now, each with the open cases it starts after, and those for later."""
        ready: list[tuple[Job, list[str]]] = []
        later = []
        cost = 0.0
        room = self.most - len(self.journal.open)
        for job in jobs:
            when, after = self._readiness(job)
            affordable = self.budget is None or self.spent + cost + job.node_hours <= self.budget
            if not affordable and job.name not in self._too_dear:
                self._too_dear.add(job.name)
                self.progress.say(f"{job.name}: not submitted, since it may take the campaign over --max-node-hours")
            if when == "now" and affordable and len(ready) < room:
                ready.append((job, after))
                cost += job.node_hours
            elif when != "never":
                later.append(job)
        return ready, later

    def _readiness(self, job: Job) -> tuple[Literal["now", "later", "never"], list[str]]:
        """Whether what its cases need is done, and which of that is still under way in other jobs."""
        inside = {case.folder_name for case in job.cases}
        under_way = []
        for folder in dict.fromkeys(f for case in job.cases for f in case.after if f not in inside):
            need = self.id_of.get(folder, "")
            found = case_results.exit_of(self.folder / folder)
            if need in self.journal.open_cases:
                under_way.append(need)
            elif need in self.journal.ended or need not in self.in_plan:
                ended = self.journal.ended.get(need)
                if found is None and ended is not None and ended.state == "done":
                    said = "it left no exit code, which this job asks for; delete its folder to have it run again"
                    self.refused[job.name] = f"{job.name}: needs {self.folder / folder}: {said}"
                if found is None or found[0] != 0:
                    return "never", []
            elif found is None or found[0] != 0:
                return "later", []
        return ("later", []) if under_way and not self.scheduler.waits else ("now", under_way)

    def _submit_all(self, ready: Sequence[tuple[Job, list[str]]]) -> None:
        by_shape: dict[object, list[Job]] = defaultdict(list)
        for job, after in ready:
            by_shape[("alone", job.name) if after else job.shape].append(job)
        afters = {job.name: after for job, after in ready}
        limit = self.plan.site.system.limits.array
        for jobs in by_shape.values():
            if self.scheduler.arrays and limit > 1 and len(jobs) >= FEWEST_FOR_ARRAY:
                self._submit_arrays(jobs, limit)
            else:
                for job in jobs:
                    self._submit_one(job, afters[job.name])
            if any(job.name in self.refused for job in jobs):
                self._refuse_like(jobs)

    def _submit_arrays(self, jobs: Sequence[Job], size: int) -> None:
        """Submit jobs of one shape as arrays, half as large whenever the scheduler does not take one."""
        done = 0
        while done < len(jobs):
            some = list(jobs[done : done + size])
            try:
                if len(some) >= FEWEST_FOR_ARRAY:
                    self._submit_array(some)
                else:
                    for job in some:
                        self._submit_one(job, ())
                        done += 1
                    continue
            except QueueFull:
                size = len(some) // 2
                if size == 0 or len(some) < FEWEST_FOR_ARRAY:
                    raise
                continue
            done += len(some)
            if some[0].name in self.refused:
                return

    def _refuse_like(self, jobs: Sequence[Job]) -> None:
        """What is said of one job holds for those of its shape that were not asked for: their scripts ask the same."""
        said = next(self.refused[job.name] for job in jobs if job.name in self.refused)
        for job in jobs:
            if not self._is_settled(job):
                self.refused[job.name] = said

    def _submit_one(self, job: Job, after: Sequence[str]) -> None:
        script = self._prepare(job)
        ids = [self.journal.open[self.journal.open_cases[case]].id for case in after]
        self.journal.submitting(job.name, {job.name: job.folders}, array=False)
        job_id = self._ask([job], job.name, script, lambda: self.scheduler.submit(script, job.name, _known(ids)))
        if job_id is None:
            return
        self.spent += job.node_hours
        self.submitted += 1
        self.progress.submitted([job.name], job_id, len(job.cases))

    def _submit_array(self, jobs: list[Job]) -> None:
        digest = hashlib.sha256("\n".join(job.name for job in jobs).encode()).hexdigest()[:8]
        name = f"{self.plan.suite.name}-array-{digest}"
        for job in jobs:
            self._prepare(job)
        script = self.scripts.write_array(name, jobs)
        self.journal.submitting(name, {job.name: job.folders for job in jobs}, array=True)
        job_id = self._ask(jobs, name, script, lambda: self.scheduler.submit_array(script, name))
        if job_id is None:
            return
        self.submitted += len(jobs)
        self.spent += sum(job.node_hours for job in jobs)
        self.progress.submitted([job.name for job in jobs], job_id, sum(len(job.cases) for job in jobs))

    def _ask(self, jobs: Sequence[Job], name: str, script: Path, submit: Callable[[], str]) -> str | None:
        """The id under which the scheduler has taken the jobs, or None if it refuses them."""
        try:
            job_id = submit()
        except QueueFull as error:
            self.journal.released(name, str(error))
            raise
        except (Refused, CommandFailed) as error:
            self.journal.released(name, str(error))
            self.refused |= dict.fromkeys((job.name for job in jobs), f"{script}: {error}")
            return None
        self.journal.submitted(name, job_id)
        return job_id

    def _prepare(self, job: Job) -> Path:
        for case in job.cases:
            folder = self.folder / case.folder_name
            ended = case_results.ended(folder)
            if ended is None or ended.state != "done":  # the script passes over what has just turned out to be done
                case_results.set_aside(folder)
        return self.scripts.write(job)


def _known(ids: Sequence[str | None]) -> list[str]:
    return list(dict.fromkeys(i for i in ids if i))
