"""What the campaign needs of a scheduler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal


@dataclass(frozen=True)
class Queued:
    """A job that is still to end. The tasks of an array share their name; their ids end in `_<task>`."""

    id: str
    name: str
    state: Literal["waiting", "running"]
    reason: str = ""


@dataclass(frozen=True)
class Ending:
    """Why a job is gone, in the scheduler's words; again: it was none of the job's doing, and may be tried again."""

    reason: str
    again: bool


class Scheduler(ABC):
    """Takes job scripts and says which of them are still to end.

    Every method but cancel may raise SchedulerBusy (harness.jobs.commands) when the scheduler does not answer.
    command: what a person submits a script with. waits: jobs go on without the harness. arrays: submit_array works.
    settle_s: how long after a job's end its files may take to show. poll_s: pause between two looks at the queue,
    first and longest.
    """

    command: ClassVar[str]
    waits: ClassVar[bool] = True
    arrays: ClassVar[bool] = False
    settle_s: ClassVar[float] = 5.0
    poll_s: ClassVar[tuple[float, float]] = (2.0, 60.0)

    @abstractmethod
    def queue(self, names: Collection[str], ids: Collection[str] = ()) -> list[Queued]:
        """The jobs with these names or ids that are still to end, in one question; whoever submitted them."""

    @abstractmethod
    def submit(self, script: Path, name: str, after: Sequence[str] = ()) -> str:
        """Submit a script, to start when these jobs have ended; return its id. Raises Refused if it is never taken."""

    def submit_array(self, script: Path, name: str) -> str:
        """Submit the script of an array; return the id without the `_<task>`."""
        raise Refused(f"{script}: this scheduler has no arrays, for {name}")

    @abstractmethod
    def cancel(self, ids: Sequence[str], *, force: bool = False) -> None:
        """Ask jobs and all their processes to end; with force, do not ask."""

    def drain(self) -> None:  # noqa: B027 - nothing to wait for is the common case
        """Stay until jobs that are this process's children have done what follows their last case."""

    def endings(self, ids: Sequence[str]) -> Mapping[str, Ending]:
        """Why these jobs are gone, as far as the scheduler still knows."""
        del ids
        return {}


class Refused(Exception):
    """The scheduler will not take this job, now or later; the message is its own."""


class QueueFull(Exception):
    """The scheduler takes no more jobs of this user for now."""
