"""What a campaign needs of a scheduler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

# The folder, in that of a campaign, with the scripts, logs and locks of its jobs.
JOBS_FOLDER = "jobs"
ExitKind = Literal["alive", "completed", "exited", "cancelled", "failed", "retryable"]


@dataclass(frozen=True)
class QueueEntry:
    """A job that has not ended. The tasks of an array share its name; their ids end in `_<task>`.

    reason: why it waits, in the scheduler's words. is_unusual: the reason is not one that every queue has every day.
    is_hopeless: the job will never start unless somebody changes something.
    """

    id: str
    name: str
    state: Literal["waiting", "running"]
    reason: str = ""
    is_unusual: bool = False
    is_hopeless: bool = False


@dataclass(frozen=True)
class ExitInfo:
    """What the scheduler knows, in its words, of a job that its queue no longer lists.

    kind: `alive`: it has not ended; `completed`: its script ended with exit code 0; `exited`: with another one;
    `cancelled`: somebody cancelled it; `failed`: the job itself is the cause, such as a time limit that was too short;
    `retryable`: the infrastructure failed, and the job may be submitted again.
    """

    reason: str
    kind: ExitKind


class Scheduler(ABC):
    """Accepts job scripts and lists those that have not ended.

    Every method but cancel may raise SchedulerBusy when the scheduler does not answer.
    command: with which a person submits a script. detached: jobs go on without the harness. supports_arrays:
    submit_array works. queue_delay_s: how long a job that has left the queue may take to be listed again.
    file_sync_delay_s: how long after a job's end its files may take to become visible, since file systems cache.
    poll_s: pause between two looks at the queue, the first and the longest.
    """

    command: ClassVar[str]
    detached: ClassVar[bool] = True
    supports_arrays: ClassVar[bool] = False
    queue_delay_s: ClassVar[float] = 5.0
    file_sync_delay_s: ClassVar[float] = 300.0
    poll_s: ClassVar[tuple[float, float]] = (2.0, 60.0)

    @abstractmethod
    def queue(self, names: Collection[str], ids: Collection[str] = ()) -> list[QueueEntry]:
        """Return the jobs with these ids, and this user's with these names, that have not ended."""

    @abstractmethod
    def submit(self, script: Path, name: str, after: Sequence[str] = ()) -> str:
        """Submit a script, to start when the jobs `after` have ended, and return its id.

        Raises:
            JobRejected: the scheduler will never accept the job.
            QueueFull: it does not accept the job now.
        """

    def submit_array(self, script: Path, name: str) -> str:
        """Submit the script of an array and return its id, without `_<task>`."""
        raise JobRejected(f"{script}: this scheduler has no arrays, for {name}")

    @abstractmethod
    def cancel(self, ids: Sequence[str], *, force: bool = False) -> None:
        """Ask jobs and all their processes to end; with force, kill them."""

    def wait_for_children(self) -> None:  # noqa: B027 - most schedulers have none
        """Wait until jobs that are child processes of this one have done what follows their last case."""

    def exit_info(self, ids: Sequence[str]) -> Mapping[str, ExitInfo]:
        """Return how these jobs ended, as far as the scheduler still knows."""
        del ids
        return {}


class JobRejected(Exception):
    """The scheduler will not accept this job, now or later; the message is its own."""


class QueueFull(Exception):
    """The scheduler does not accept a job like this now; the message is its own.

    may_be_permanent: the same message is given for a job that will never be accepted.
    """

    def __init__(self, message: str, may_be_permanent: bool = False) -> None:
        self.may_be_permanent = may_be_permanent
        super().__init__(message)
