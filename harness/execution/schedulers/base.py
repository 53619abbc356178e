"""What the campaign needs of a scheduler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal


@dataclass(frozen=True)
class Queued:
    """A job that is still to end. The tasks of an array share their name; their ids end in `_<task>`.

    reason: why it waits, in the scheduler's words. is_odd: the reason is not one of a queue's daily life. is_hopeless:
    by itself the job will never start.
    """

    id: str
    name: str
    state: Literal["waiting", "running"]
    reason: str = ""
    is_odd: bool = False
    is_hopeless: bool = False


@dataclass(frozen=True)
class Ending:
    """What the scheduler knows of a job that its queue no longer shows, in its words.

    kind: `alive`: it has not ended; `completed`: its script ended with exit code 0; `exited`: with another one;
    `cancelled`: somebody took it out; `failed`: its own doing, such as too little time; `again`: none of its doing.
    """

    reason: str
    kind: Literal["alive", "completed", "exited", "cancelled", "failed", "again"]


class Scheduler(ABC):
    """Takes job scripts and says which of them are still to end.

    Every method but cancel may raise SchedulerBusy when the scheduler does not answer.
    command: what a person submits a script with. waits: jobs go on without the harness. arrays: submit_array works.
    settle_s: how long a job that vanished may take to show up again. files_s: how long after a job's end its files may
    take to show, since file systems cache. poll_s: pause between two looks at the queue, first and longest.
    """

    command: ClassVar[str]
    waits: ClassVar[bool] = True
    arrays: ClassVar[bool] = False
    settle_s: ClassVar[float] = 5.0
    files_s: ClassVar[float] = 300.0
    poll_s: ClassVar[tuple[float, float]] = (2.0, 60.0)

    @abstractmethod
    def queue(self, names: Collection[str], ids: Collection[str] = ()) -> list[Queued]:
        """The jobs with these ids, and this user's with these names, that are still to end."""

    @abstractmethod
    def submit(self, script: Path, name: str, after: Sequence[str] = ()) -> str:
        """Submit a script, to start when these jobs have ended; return its id. Raises Refused or QueueFull."""

    def submit_array(self, script: Path, name: str) -> str:
        """Submit the script of an array; return the id without the `_<task>`."""
        raise Refused(f"{script}: this scheduler has no arrays, for {name}")

    @abstractmethod
    def cancel(self, ids: Sequence[str], *, force: bool = False) -> None:
        """Ask jobs and all their processes to end; with force, do not ask."""

    def drain(self) -> None:  # noqa: B027 - nothing to wait for is the common case
        """Stay until jobs that are this process's children have done what follows their last case."""

    def endings(self, ids: Sequence[str]) -> Mapping[str, Ending]:
        """What became of these jobs, as far as the scheduler still knows."""
        del ids
        return {}


class Refused(Exception):
    """The scheduler will not take this job, now or later; the message is its own."""


class QueueFull(Exception):
    """The scheduler takes no job like this for now; the message is its own.

    may_be_for_good: its words also fit a job that it will never take.
    """

    def __init__(self, message: str, may_be_for_good: bool = False) -> None:
        self.may_be_for_good = may_be_for_good
        super().__init__(message)
