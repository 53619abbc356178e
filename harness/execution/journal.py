"""The append-only record of a campaign: what was submitted as which job, and how every case ended.

Lines, of which a replay gives the present state:
    submitting  name, jobs {job: {case: folder}}, array
                                                       about to be handed over: on disk before the scheduler is asked
    submitted   name, id                               the scheduler has it
    released    name, reason                           its cases that are still open are free again: it never was, or
                                                       was stopped on purpose
    ended       case, state, exit_code, seconds, reason
    lost        case, reason                           its job is gone and left no exit code: free again
    vanished    job                                    the queue has no such job, and its files are waited for
    back        job                                    the queue has it again
    retried     case                                   an ended case is free again
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.protocol import events
from harness.protocol.checks import State
from harness.protocol.events import Event

FILE_NAME = "journal.jsonl"


@dataclass
class OpenJob:
    """A job that is not known to have ended. id: None while it is not known whether the scheduler has it.

    cases: those of its cases that have not ended, with their folders. vanished_s: since when the queue lacks it.
    """

    name: str
    submission: str
    id: str | None
    cases: dict[str, str]
    time_s: float
    vanished_s: float | None = None


@dataclass(frozen=True)
class Ended:
    """How a case ended; exit_code and seconds are None where its job ended before it could say."""

    state: State
    exit_code: int | None
    seconds: float | None
    reason: str


class Journal:
    """The present state of a campaign, and the file that it is replayed from."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._log: events.EventLog | None = None
        self._arrays: dict[str, list[str]] = {}
        self.open: dict[str, OpenJob] = {}
        self.open_cases: dict[str, str] = {}
        self.ended: dict[str, Ended] = {}
        self.losses: Counter[str] = Counter()
        for line in events.read(self._path):
            self._apply(line)

    def submitting(self, name: str, jobs: Mapping[str, Mapping[str, str]], array: bool) -> None:
        """On disk before the scheduler is asked, so that no job can be forgotten."""
        self._write("submitting", name=name, jobs={job: dict(cases) for job, cases in jobs.items()}, array=array)
        assert self._log is not None
        self._log.sync()

    def submitted(self, name: str, job_id: str) -> None:
        """The scheduler has it under this id."""
        self._write("submitted", name=name, id=job_id)

    def released(self, name: str, reason: str) -> None:
        """The scheduler does not have it: its cases are free."""
        self._write("released", name=name, reason=reason)

    def end(self, case: str, ended: Ended) -> None:
        """A case is done, or failed for good."""
        fields = {"state": ended.state, "exit_code": ended.exit_code, "seconds": ended.seconds, "reason": ended.reason}
        self._write("ended", case=case, **fields)

    def lost(self, case: str, reason: str) -> None:
        """A case's job is gone, and the case may be submitted again."""
        self._write("lost", case=case, reason=reason)

    def vanished(self, job: str) -> None:
        """The queue does not have the job, whose files may still be on their way."""
        self._write("vanished", job=job)

    def back(self, job: str) -> None:
        """The queue has the job after all."""
        self._write("back", job=job)

    def retried(self, case: str) -> None:
        """A case that ended may be submitted again."""
        self._write("retried", case=case)

    def seconds(self) -> dict[str, float]:
        """Case id -> how long it took, of those that ended well."""
        return {case: e.seconds for case, e in self.ended.items() if e.state == "done" and e.seconds is not None}

    def _write(self, event: str, **fields: Any) -> None:
        if self._log is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._log = events.EventLog(self._path)
        self._log.write(event, **fields)
        self._apply({"event": event, "time_s": time.time(), **fields})

    def _apply(self, line: Event) -> None:
        match line["event"]:
            case "submitting":
                self._arrays[line["name"]] = list(line["jobs"]) if line["array"] else []
                for job, cases in line["jobs"].items():
                    self.open[job] = OpenJob(job, line["name"], None, dict(cases), line["time_s"])
                    self.open_cases.update(dict.fromkeys(cases, job))
                    for case in cases:
                        self.ended.pop(case, None)
            case "submitted":
                for job in [j for j in self._members(line["name"]) if j in self.open]:
                    self.open[job].id = self._id_of(line["name"], job, line["id"])
            case "released":
                for job in [j for j in self._members(line["name"]) if j in self.open]:
                    for case in list(self.open[job].cases):
                        self._close(case)
            case "vanished" | "back":
                if line["job"] in self.open:
                    self.open[line["job"]].vanished_s = line["time_s"] if line["event"] == "vanished" else None
            case _:
                self._apply_to_case(line)

    def _apply_to_case(self, line: Event) -> None:
        match line["event"]:
            case "ended":
                self._close(line["case"])
                self.ended[line["case"]] = Ended(*(line[k] for k in ("state", "exit_code", "seconds", "reason")))
            case "lost":
                self._close(line["case"])
                self.losses[line["case"]] += 1
            case "retried":
                self.ended.pop(line["case"], None)
                self.losses.pop(line["case"], None)

    def _members(self, name: str) -> Sequence[str]:
        return self._arrays.get(name) or [name]

    def _id_of(self, name: str, job: str, submitted_id: str) -> str:
        array = self._arrays.get(name)
        return f"{submitted_id}_{array.index(job) + 1}" if array else submitted_id

    def _close(self, case: str) -> None:
        job = self.open.get(self.open_cases.pop(case, ""))
        if job is not None:
            job.cases.pop(case, None)
            if not job.cases:
                del self.open[job.name]
