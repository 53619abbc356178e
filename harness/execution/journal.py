"""The append-only journal of a campaign: which jobs were submitted, and how every case ended.

The current state results from replaying its lines:
    submitting  name, jobs {job: {case: folder}}, array
                                                       the harness is about to call the scheduler
    submitted   name, id                               the scheduler has accepted the submission
    released    name, reason                           the submission was rejected, cancelled or never received: its
                                                       active cases may be submitted again
    ended       case, state, exit_code, seconds, reason
                                                       the case has ended
    lost        case, reason                           the job of the case has vanished without an exit code: the case
                                                       may be submitted again
    vanished    job                                    the queue does not list the job, and its files may still appear
    back        job                                    the queue lists the job again
    retried     case                                   a case that ended may be submitted again
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.protocol import events
from harness.protocol.checks import State
from harness.protocol.events import Event

JOURNAL_FILE = "journal.jsonl"


@dataclass
class ActiveJob:
    """A job of a submission that has been requested, and of which some cases are not known to have ended.

    Attributes:
        id: the scheduler's id; None while it is unknown whether the scheduler has accepted the job.
        cases: the folders of the cases that have not ended, by id.
        vanished_s: Unix time at which the queue stopped listing the job; None while it is listed.
    """

    name: str
    submission: str
    id: str | None
    cases: dict[str, str]
    time_s: float
    vanished_s: float | None = None


@dataclass(frozen=True)
class CaseResult:
    """The result of a case; exit_code and seconds are None if its job ended before it could write them."""

    state: State
    exit_code: int | None
    seconds: float | None
    reason: str


class Journal:
    """The current state of a campaign, and the file from which it is replayed.

    Attributes:
        active_jobs: the active jobs, by name.
        active_cases: the name of the job of each active case, by id.
        results: the results of the cases that have ended, by id.
        loss_counts: how often each case was lost, by id.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL_FILE
        self._log: events.JsonLinesLog | None = None
        # the jobs of each submission; empty if it is not an array
        self._arrays: dict[str, list[str]] = {}
        self.active_jobs: dict[str, ActiveJob] = {}
        self.active_cases: dict[str, str] = {}
        self.results: dict[str, CaseResult] = {}
        self.loss_counts: Counter[str] = Counter()
        for line in events.read(self._path):
            self._apply(line)

    def record_request(self, name: str, jobs: Mapping[str, Mapping[str, str]], array: bool) -> None:
        """Record a submission and its jobs before the scheduler is called, so that no job can be forgotten.

        Args:
            name: The name of the submission.
            jobs: The folders of the cases of each job, by id of the case and name of the job.
            array: Whether the jobs are the tasks of one job array.
        """
        self._write("submitting", name=name, jobs={job: dict(cases) for job, cases in jobs.items()}, array=array)
        assert self._log is not None
        self._log.sync()

    def record_submission(self, name: str, job_id: str) -> None:
        """Record that the scheduler has accepted a submission, and its id."""
        self._write("submitted", name=name, id=job_id)

    def record_release(self, name: str, reason: str) -> None:
        """Record that a submission was rejected, cancelled or never received; its cases may be submitted again."""
        self._write("released", name=name, reason=reason)

    def record_end(self, case: str, result: CaseResult) -> None:
        """Record how a case ended."""
        self._write("ended", case=case, **asdict(result))

    def record_loss(self, case: str, reason: str) -> None:
        """Record that a case's job has vanished, and that the case may be submitted again."""
        self._write("lost", case=case, reason=reason)

    def record_vanished(self, job: str) -> None:
        """Record that the queue no longer lists a job, whose files may still appear."""
        self._write("vanished", job=job)

    def record_reappearance(self, job: str) -> None:
        """Record that the queue lists a vanished job again."""
        self._write("back", job=job)

    def record_retry(self, case: str) -> None:
        """Record that a case which ended may be submitted again."""
        self._write("retried", case=case)

    def get_measured_seconds(self) -> dict[str, float]:
        """Return the duration in seconds of each case that is done, by id of the case."""
        results = {case: result for case, result in self.results.items() if result.state == "done"}
        return {case: result.seconds for case, result in results.items() if result.seconds is not None}

    def _write(self, event: str, **fields: Any) -> None:
        if self._log is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._log = events.JsonLinesLog(self._path)
        self._log.write(event, **fields)
        self._apply({"event": event, "time_s": time.time(), **fields})

    def _apply(self, line: Event) -> None:
        match line["event"]:
            case "submitting":
                self._arrays[line["name"]] = list(line["jobs"]) if line["array"] else []
                for job, cases in line["jobs"].items():
                    self.active_jobs[job] = ActiveJob(job, line["name"], None, dict(cases), line["time_s"])
                    self.active_cases.update(dict.fromkeys(cases, job))
                    for case in cases:
                        self.results.pop(case, None)
            case "submitted":
                for job in self._find_active_jobs(line["name"]):
                    self.active_jobs[job].id = self._make_job_id(line["name"], job, line["id"])
            case "released":
                for job in self._find_active_jobs(line["name"]):
                    for case in list(self.active_jobs[job].cases):
                        self._remove_case(case)
            case "vanished" | "back":
                if line["job"] in self.active_jobs:
                    vanished_s = line["time_s"] if line["event"] == "vanished" else None
                    self.active_jobs[line["job"]].vanished_s = vanished_s
            case _:
                self._apply_to_case(line)

    def _apply_to_case(self, line: Event) -> None:
        match line["event"]:
            case "ended":
                self._remove_case(line["case"])
                fields = (line[name] for name in ("state", "exit_code", "seconds", "reason"))
                self.results[line["case"]] = CaseResult(*fields)
            case "lost":
                self._remove_case(line["case"])
                self.loss_counts[line["case"]] += 1
            case "retried":
                self.results.pop(line["case"], None)
                self.loss_counts.pop(line["case"], None)

    def _find_active_jobs(self, submission: str) -> Sequence[str]:
        """Return the names of the active jobs of a submission, which is an array or a single job."""
        return [job for job in self._arrays.get(submission) or [submission] if job in self.active_jobs]

    def _make_job_id(self, submission: str, job: str, job_id: str) -> str:
        array = self._arrays.get(submission)
        return f"{job_id}_{array.index(job) + 1}" if array else job_id

    def _remove_case(self, case: str) -> None:
        job = self.active_jobs.get(self.active_cases.pop(case, ""))
        if job is not None:
            job.cases.pop(case, None)
            if not job.cases:
                del self.active_jobs[job.name]
