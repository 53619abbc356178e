"""What the campaign needs of a scheduler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path


class Scheduler(ABC):
    """Takes job scripts and says which of them are still to end."""

    @abstractmethod
    def submit(self, folder: Path) -> str:
        """Submit folder/job.sh with its output to folder/stdout and folder/stderr; return the job's id."""

    @abstractmethod
    def is_alive(self, job: str) -> bool:
        """Whether the job is waiting or running; an unknown job is not. Holds for jobs of an earlier harness too."""

    @abstractmethod
    def find(self, folder: Path) -> str | None:
        """The id of a live job in the folder that nobody has on record, if there is one and it can be told."""

    @abstractmethod
    def cancel(self, job: str, *, force: bool = False) -> None:
        """Ask the job and all its processes to end; with force, do not ask."""
