"""Jobs as processes on this machine; they outlive the harness, and the next harness process finds them again."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Collection, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path

import psutil

from harness.execution.schedulers.base import JOBS_FOLDER, QueueEntry, Scheduler
from harness.host.locks import is_locked

# How long this process waits for a job to end after its last case.
CHILD_TIMEOUT_S = 120.0
NAME_LENGTH = 200


class LocalScheduler(Scheduler):
    """The scheduler of this machine; a job is alive while a process holds the lock that the job's script has taken.

    The kernel releases the lock when the last process ends, so a reused process id does no harm. The id of a job is its
    name.
    """

    command = "bash"
    is_detached = False
    queue_delay_s = 0.0
    file_sync_delay_s = 0.0
    poll_s = (0.2, 0.5)

    def __init__(self, campaign: Path) -> None:
        self._jobs = campaign.resolve() / JOBS_FOLDER
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def list_jobs(self, names: Collection[str], ids: Collection[str] = ()) -> list[QueueEntry]:
        """Return the jobs that still run: their shell is a child of this process, or a process holds their lock."""
        known = [name for name in dict.fromkeys([*names, *ids]) if _is_file_name(name)]
        return [QueueEntry(name, name, "running") for name in known if self._is_child(name) or self._is_locked(name)]

    def submit(self, script: Path, name: str, after: Sequence[str] = ()) -> str:
        """Start bash on the script, in a new session."""
        del after
        with (self._jobs / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                ["bash", str(script)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return name

    def cancel(self, ids: Sequence[str], *, force: bool = False) -> None:
        """Signal every process that has the lock file of one of the jobs open, shells before their children."""
        locks = {str(self._lock_path(name)) for name in ids}
        holders = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and any(file.path in locks for file in process.open_files()):
                    holders.append((process.create_time(), process))
        for _, process in sorted(holders, key=itemgetter(0)):
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL if force else signal.SIGTERM)

    def wait_for_children(self) -> None:
        """Wait for the shells that this process has started, since they export telemetry after the last case."""
        for child in self._children.values():
            with suppress(subprocess.TimeoutExpired):
                child.wait(CHILD_TIMEOUT_S)

    def _lock_path(self, name: str) -> Path:
        return self._jobs / f"{name}.lock"

    def _is_child(self, name: str) -> bool:
        child = self._children.get(name)
        return child is not None and child.poll() is None

    def _is_locked(self, name: str) -> bool:
        return is_locked(self._lock_path(name))


def _is_file_name(name: str) -> bool:
    """Return whether the text can be a job's name; ids are read from files, which may contain anything."""
    return 0 < len(name) <= NAME_LENGTH and not set(name) & {"/", "\0"}
