"""Jobs as processes of this machine; they outlive the harness and are found again by the next one."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

from harness.jobs.scheduler import Scheduler

LOCK = "job.lock"


class LocalScheduler(Scheduler):
    """A job is alive while its processes hold the lock that job.sh takes on its folder; the id is that folder.

    The kernel drops the lock with the last of them, however they end, so no process id can be mistaken for another's.
    """

    def __init__(self) -> None:
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self, folder: Path) -> str:
        """Start bash on the script, in a process session of its own."""
        job = str(folder.resolve())
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            self._children[job] = subprocess.Popen(
                ["bash", f"{job}/job.sh"], stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        return job

    def is_alive(self, job: str) -> bool:
        """Whether its shell, if it is our child, or any holder of its lock still runs."""
        child = self._children.get(job)
        return (child is not None and child.poll() is None) or self.find(Path(job)) is not None

    def find(self, folder: Path) -> str | None:
        """The folder itself, if its lock is held."""
        with suppress(FileNotFoundError), (folder / LOCK).open("rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return str(folder.resolve())
        return None

    def cancel(self, job: str, *, force: bool = False) -> None:
        """Signal every process that has the job's lock file open."""
        lock = os.path.join(job, LOCK)
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and any(f.path == lock for f in process.open_files()):
                    process.send_signal(signal.SIGKILL if force else signal.SIGTERM)
