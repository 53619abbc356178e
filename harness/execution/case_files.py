"""The state of a case according to its files, without journal or scheduler."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from harness.execution.gpu_errors import find_gpu_error
from harness.execution.journal import CaseResult
from harness.execution.schedulers.base import LastState
from harness.protocol import checks, events
from harness.protocol.case import Unreadable, read_case, read_log
from harness.protocol.events import find_invalid_event
from harness.protocol.text import sanitize_line
from harness.protocol.upgrade import convert_event

# The job that runs a case creates the lock file and writes its id to it.
LOCK_FILE, EXIT_CODE_FILE = "claim", "exit_code"
# `timeout` ends with this exit code if the time of a case is up, and the job script explains it in stderr.
TIMEOUT_EXIT_CODE = 124
ERROR_LINE = re.compile(r"^error: |: line \d+: |^(?:slurmstepd|srun|mpiexec|PBS)\b.*(?:error|fail|kill)", re.IGNORECASE)
MAX_ERROR_LENGTH = 300
# The files of one attempt of a case.
RECORDS = (
    events.EVENTS_FILE,
    "stdout",
    "stderr",
    EXIT_CODE_FILE,
    LOCK_FILE,
    "provenance.json",
    "environment.json",
    "traceback.txt",
    "job.sh",
)
# The length of the start and of the end of a log in which progress is searched for.
PROGRESS_BYTES = 65536
SYNC_DELAY_VARIABLE = "GFM_HARNESS_FILES_S"


def read_exit_code(folder: Path | str) -> tuple[int, float | None] | None:
    """Return the exit code and seconds that the job wrote when the case ended, or None."""
    try:
        parts = events.read_bytes(f"{folder}/{EXIT_CODE_FILE}")[:100].split()
        code, seconds = int(parts[0]), float(parts[1]) if len(parts) > 1 else None
    except (OSError, ValueError, IndexError):
        return None
    return None if seconds is not None and not 0 <= seconds < math.inf else (code, seconds)


def read_result(folder: Path) -> CaseResult | None:
    """Return the result of the case in a folder, or None if it has not ended."""
    exit_code = read_exit_code(folder)
    return None if exit_code is None else _evaluate_result(folder, *exit_code)


def read_result_without_exit_code(folder: Path) -> CaseResult | None:
    """Return the result of a case whose program finished, but whose job was killed before the exit code was written.

    Only valid for a case whose job has ended: a program may hang, or fail, after its last event.
    """
    if read_exit_code(folder) is not None or not checks.has_finished(
        events.read_last_events(folder / events.EVENTS_FILE)
    ):
        return None
    return _evaluate_result(folder, None, None)


def read_result_of_vanished_job(folder: Path, last_state: LastState | None) -> CaseResult | None:
    """Return the result of a case whose job has vanished without an exit code, or None if the case may run again."""
    if last_state is not None and last_state.kind in ("cancelled", "failed"):
        return CaseResult("cancelled" if last_state.kind == "cancelled" else "failed", None, None, last_state.reason)
    result = read_result_without_exit_code(folder)
    if result is not None:
        reason = "its program finished, but its job was killed before the exit code was written"
        return replace(result, reason=result.reason or reason)
    if last_state is not None and last_state.kind == "completed":
        message = f"the scheduler says {last_state.reason}, but no exit code was written; --retry runs the case again"
        return CaseResult("lost", None, None, message)
    return None


def could_result_still_appear(
    folder: Path, last_state: LastState | None, vanished_at_s: float | None, delay_s: float
) -> bool:
    """Return whether files that are not visible yet may show that the case succeeded.

    A job that ended by itself, or whose end is unknown, may have written them. A job that was killed may have written
    them only if the program of the case had finished.

    Args:
        folder: the folder of the case.
        last_state: the last state of the job according to the scheduler; None if the scheduler does not know the job.
        vanished_at_s: Unix time at which the queue stopped listing the job; None if this has just been noticed.
        delay_s: how long a file system may hide new files.
    """
    if delay_s <= 0 or (vanished_at_s is not None and time.time() - vanished_at_s >= delay_s) or read_exit_code(folder):
        return False
    kind = last_state.kind if last_state else "completed"
    if kind in ("completed", "exited"):
        return kind == "completed" or has_started(folder)
    return kind == "retryable" and read_result_without_exit_code(folder) is not None


def get_file_sync_delay_s(default_s: float) -> float:
    """Return how long a file system may hide new files: the default, or GFM_HARNESS_FILES_S seconds."""
    try:
        return float(os.environ.get(SYNC_DELAY_VARIABLE, default_s))
    except ValueError:
        return default_s


def refresh_listing(folder: Path) -> None:
    """List the folder, so that a network file system forgets which files it has cached as absent."""
    with suppress(OSError):
        os.listdir(folder)


def _evaluate_result(folder: Path, exit_code: int | None, seconds: float | None) -> CaseResult:
    try:
        case = read_case(folder)
        state, reason = checks.evaluate_case(case, read_log(folder, case), exit_code)
    except (OSError, Unreadable) as error:
        state, reason = "failed", f"unreadable: {error}"
    if state == "failed" and (gpu_error := find_gpu_error(folder / "stderr")):
        reason = f"an error of a GPU: {gpu_error}"
    elif exit_code == TIMEOUT_EXIT_CODE and (lines := read_last_lines(folder / "stderr", 1)):
        reason = sanitize_line(lines[0])
    return CaseResult(state, exit_code, seconds, reason)


def has_started(folder: Path | str) -> bool:
    """Return whether a job has started the case."""
    return os.path.exists(f"{folder}/{LOCK_FILE}") or os.path.exists(f"{folder}/{events.EVENTS_FILE}")


def get_start_time(folder: Path | str) -> float | None:
    """Return the Unix time at which a job started the case, or None."""
    try:
        return os.stat(f"{folder}/{LOCK_FILE}").st_mtime
    except OSError:
        return None


def read_lock_owner(folder: Path | str) -> str | None:
    """Return the id of the job that has started the case, or None."""
    try:
        with open(f"{folder}/{LOCK_FILE}", encoding="utf-8") as handle:
            return handle.read().strip()
    except OSError:
        return None


def archive_attempt(folder: Path) -> None:
    """Move the records of an earlier attempt into attempt-1, attempt-2, ..."""
    records = [folder / name for name in RECORDS if (folder / name).exists()]
    if not has_started(folder):
        return
    archive = _make_attempt_folder(folder)
    for path in sorted(records, key=lambda p: p.name == LOCK_FILE):
        path.rename(archive / path.name)


def _make_attempt_folder(folder: Path) -> Path:
    """Create the folder of the next attempt, whose number is above that of every existing one."""
    numbers = [int(name) for path in folder.glob("attempt-*") if (name := path.name.partition("-")[2]).isdecimal()]
    number = max(numbers, default=0)
    while True:
        number += 1
        with suppress(FileExistsError):
            (folder / f"attempt-{number}").mkdir()
            return folder / f"attempt-{number}"


def read_first_progress(folder: Path) -> events.Event | None:
    """Return the first progress event of a case, read from the start of its log."""
    path = folder / events.EVENTS_FILE
    if not path.exists():
        return None
    with path.open("rb") as handle:
        return _find_progress(handle.read(PROGRESS_BYTES).splitlines())


def read_last_progress(folder: Path) -> events.Event | None:
    """Return the newest progress event of a case, read from the end of its log."""
    path = folder / events.EVENTS_FILE
    if not path.exists():
        return None
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - PROGRESS_BYTES))
        return _find_progress(reversed(handle.read().splitlines()))


def _find_progress(lines: Iterable[bytes]) -> events.Event | None:
    for line in lines:
        if b'"progress"' in line:
            event = next((convert_event("", event) for event in events.parse([line])), None)
            if event is not None and event["event"] == "progress" and find_invalid_event("", [event]) is None:
                return event | {"activity": sanitize_line(event.get("activity", ""))}
    return None


def find_last_error(log: Path) -> str:
    """Return the last error message of the shell or script in a job's log, or an empty string."""
    errors = [line for line in read_last_lines(log) if ERROR_LINE.search(line)]
    return sanitize_line(errors[-1].removeprefix("error: "))[:MAX_ERROR_LENGTH] if errors else ""


def read_last_lines(path: Path, count: int = 12) -> list[str]:
    """Return the last lines of a text file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-count:]
    except OSError:
        return []
