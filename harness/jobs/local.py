"""Jobs as processes of this machine; they outlive the harness and are found again by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

from harness.jobs.scheduler import Scheduler


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
        """Whether that very process still runs."""
        if job in self._children:
            return self._children[job].poll() is None
        return self._process(job) is not None

    def cancel(self, job: str) -> None:
        """SIGTERM to the whole process group."""
        if self._process(job) is not None:
            with suppress(ProcessLookupError):
                os.killpg(int(job.split("@", maxsplit=1)[0]), signal.SIGTERM)

    def _process(self, job: str) -> psutil.Process | None:
        pid, _, started = job.partition("@")
        with suppress(psutil.NoSuchProcess, ValueError):
            process = psutil.Process(int(pid))
            if abs(process.create_time() - float(started)) < 0.1 and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None
