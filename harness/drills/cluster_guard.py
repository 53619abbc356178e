"""Kill the processes of an emulated Slurm cluster: `python cluster_guard.py FOLDER`.

The guard waits until the program that started it closes the pipe or dies, and then kills all processes of the cluster.
It is a script of its own, which imports nothing of the harness.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable

import psutil


def _list_processes(is_match: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """Return the living processes that match, and their descendants, except this process."""
    matches = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if is_match(process):
                matches |= {process, *process.children(recursive=True)}
    return [process for process in matches if process.pid != os.getpid() and _is_alive(process)]


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def find_log(process: psutil.Process) -> str:
    """Return the path of a Slurm daemon's log, the only trace of its node that a step manager has."""
    files = process.open_files() if process.name().startswith("slurm") else []
    return next((file.path for file in files if "/log/slurm" in file.path), "")


def kill_matching(is_match: Callable[[psutil.Process], bool]) -> None:
    """Kill all matching processes and their descendants, in rounds, until none is left."""
    deadline = time.monotonic() + 20
    while (alive := _list_processes(is_match)) and time.monotonic() < deadline:
        for action in (psutil.Process.suspend, psutil.Process.kill):  # a suspended process cannot react to a kill
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    action(process)
        psutil.wait_procs(alive, timeout=0.2)


def main(folder: str) -> None:
    """Wait for the end of the standard input, and kill the processes of the cluster in the folder."""
    sys.stdin.buffer.read()
    config, logs = f"{folder}/slurm.conf", f"{folder}/log/"
    kill_matching(lambda process: process.environ().get("SLURM_CONF") == config or find_log(process).startswith(logs))


if __name__ == "__main__":
    main(sys.argv[1])
