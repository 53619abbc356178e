"""The interface of schedulers that campaigns use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

# The subfolder of a campaign with the scripts, logs and locks of its jobs.
JOBS_FOLDER = "jobs"
StateKind = Literal["alive", "completed", "exited", "cancelled", "failed", "retryable"]


@dataclass(frozen=True)
class QueueEntry:
    """A job that has not ended. The tasks of an array share its name; their ids end in `_<task>`.

    Attributes:
        reason: the scheduler's reason why the job waits.
        is_unusual: whether the reason is one that ordinary waiting jobs do not have.
        is_stuck: whether the job will never start unless somebody intervenes.
    """

    id: str
    name: str
    state: Literal["waiting", "running"]
    reason: str = ""
    is_unusual: bool = False
    is_stuck: bool = False


@dataclass(frozen=True)
class LastState:
    """The last known state of a job that the queue no longer lists, according to the scheduler.

    Attributes:
        reason: the scheduler's description of the state.
        kind: `alive`: the job has not ended; `completed`: its script ended with exit code 0; `exited`: its script ended
            with another exit code; `cancelled`: somebody cancelled the job; `failed`: the job itself is the cause, for
            example with too short a time limit; `retryable`: the infrastructure failed, and the job may be submitted
            again.
    """

    reason: str
    kind: StateKind


class Scheduler(ABC):
    """A scheduler, which accepts job scripts and lists the jobs that have not ended.

    Every method except cancel may raise RetriesExhausted when the scheduler does not answer.

    Attributes:
        command: the command with which a person submits a script.
        is_detached: whether jobs continue when the harness ends.
        supports_arrays: whether submit_array works.
        queue_delay_s: how long a job may be missing from the queue before it is listed again.
        file_sync_delay_s: how long files may take to become visible after the end of a job, since file systems cache.
        poll_s: the first and the longest pause between two queries of the queue.
    """

    command: ClassVar[str]
    is_detached: ClassVar[bool] = True
    supports_arrays: ClassVar[bool] = False
    queue_delay_s: ClassVar[float] = 5.0
    file_sync_delay_s: ClassVar[float] = 300.0
    poll_s: ClassVar[tuple[float, float]] = (2.0, 60.0)

    @abstractmethod
    def list_jobs(self, names: Collection[str], ids: Collection[str] = ()) -> list[QueueEntry]:
        """Return the jobs that have not ended and have one of the ids, or are the user's and have one of the names."""

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
        """Ask jobs and all their processes to end; kill them if `force` is set."""

    def wait_for_children(self) -> None:  # noqa: B027 - most schedulers have none
        """Wait until jobs that are child processes of this process have finished the work after their last case."""

    def query_last_states(self, names: Mapping[str, str]) -> Mapping[str, LastState]:
        """Return the last known state by id of the jobs that have these ids and names.

        Jobs that the scheduler has forgotten are omitted, and so is a job with another name: its id was misread.
        """
        del names
        return {}


class JobRejected(Exception):
    """The scheduler will not accept this job, now or later; the message comes from the scheduler."""


class QueueFull(Exception):
    """The scheduler does not accept this job now; the message comes from the scheduler.

    Attributes:
        may_be_permanent: whether jobs that will never be accepted get the same message.
    """

    def __init__(self, message: str, may_be_permanent: bool = False) -> None:
        self.may_be_permanent = may_be_permanent
        super().__init__(message)
