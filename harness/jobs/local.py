"""Jobs as processes of this machine; they outlive the harness and are found again by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

from harness.jobs.scheduler import Scheduler

# Start times come from the kernel's clock ticks.
SAME_START_S = 0.1


class LocalScheduler(Scheduler):
    """A job's id is its process id and start time, so that a reused process id is not taken for it."""

    def __init__(self) -> None:
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self, folder: Path) -> str:
        """Start bash on the script, in a process session of its own."""
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            child = subprocess.Popen(
                ["bash", str((folder / "job.sh").resolve())],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        job = f"{child.pid}@{psutil.Process(child.pid).create_time():.2f}"
        self._children[job] = child
        return job

    def is_alive(self, job: str) -> bool:
        """Whether any process of the job's session still runs, should its shell be gone already."""
        if job in self._children:
            self._children[job].poll()
        return bool(self._members(job))

    def cancel(self, job: str) -> None:
        """SIGTERM to every process of the job's session."""
        for pid in self._members(job):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _members(self, job: str) -> list[int]:
        leader, _, started = job.partition("@")
        session = int(leader)
        with suppress(psutil.NoSuchProcess):
            if abs(psutil.Process(session).create_time() - float(started)) > SAME_START_S:
                return []
        return [pid for pid in psutil.pids() if _runs_in(pid, session)]


def _runs_in(pid: int, session: int) -> bool:
    """Whether a process belongs to the session and is neither gone nor a zombie."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        return os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
