"""What the files of a case say, without journal or scheduler."""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.execution.journal import Ended
from harness.protocol import checks, events
from harness.protocol.case import Case
from harness.protocol.case_reader import Unreadable, read_case, read_log
from harness.protocol.checks import State
from harness.protocol.event_schema import find_fault
from harness.protocol.text import sanitize_line

CLAIM, EXIT_CODE = "claim", "exit_code"
COMPLAINT = re.compile(r"^error: |: line \d+: |^(?:slurmstepd|srun|mpiexec|PBS)\b.*(?:error|fail|kill)", re.IGNORECASE)
RECORDS = (events.FILE_NAME, "stdout", "stderr", EXIT_CODE, CLAIM, "provenance.json", "traceback.txt", "job.sh")


@dataclass(frozen=True)
class Outcome:
    """Where a case stands, why it is not done, and the folder with its files."""

    case: Case
    state: State
    exit_code: int | None
    reason: str
    folder: Path


def exit_of(folder: Path | str) -> tuple[int, float | None] | None:
    """Exit code and seconds that the case's job wrote when the case ended, or None."""
    try:
        words = events.read_bytes(f"{folder}/{EXIT_CODE}")[:100].split()
        code, seconds = int(words[0]), float(words[1]) if len(words) > 1 else None
    except (OSError, ValueError, IndexError):
        return None
    return None if seconds is not None and not 0 <= seconds < math.inf else (code, seconds)


def ended(folder: Path) -> Ended | None:
    """How the case of a folder ended, if it did."""
    found = exit_of(folder)
    return None if found is None else _judge(folder, *found)


def ended_without_exit_code(folder: Path) -> Ended | None:
    """How a case stands whose program came to its end, while its job was killed before it wrote the exit code.

    To be asked only of a case whose job is gone: a program may hang, or fail, after its last event.
    """
    if exit_of(folder) is not None or not checks.has_finished(events.last_run(folder / events.FILE_NAME)):
        return None
    return _judge(folder, None, None)


def list_anew(folder: Path) -> None:
    """Have the file system look again for files that it remembers as absent."""
    with suppress(OSError):
        os.listdir(folder)


def _judge(folder: Path, exit_code: int | None, seconds: float | None) -> Ended:
    try:
        case = read_case(folder)
        state, reason = checks.judge(case, read_log(folder, case), exit_code)
    except (OSError, Unreadable) as error:
        state, reason = "failed", f"unreadable: {error}"
    return Ended(state, exit_code, seconds, reason)


def was_begun(folder: Path | str) -> bool:
    """Whether a job took the case up."""
    return os.path.exists(f"{folder}/{CLAIM}") or os.path.exists(f"{folder}/{events.FILE_NAME}")


def claim_of(folder: Path | str) -> str | None:
    """The id of the job that took the case up, or None."""
    try:
        with open(f"{folder}/{CLAIM}", encoding="utf-8") as handle:
            return handle.read().strip()
    except OSError:
        return None


def set_aside(folder: Path) -> None:
    """Keep what an earlier attempt recorded, in attempt-1, attempt-2, ..."""
    old = [folder / name for name in RECORDS if (folder / name).exists()]
    if not was_begun(folder):
        return
    place = _new_attempt(folder)
    for path in sorted(old, key=lambda p: p.name == CLAIM):
        path.rename(place / path.name)


def _new_attempt(folder: Path) -> Path:
    """Make the folder of the attempt after the newest, whichever of them have been deleted."""
    numbers = [int(name) for path in folder.glob("attempt-*") if (name := path.name.partition("-")[2]).isdecimal()]
    number = max(numbers, default=0)
    while True:
        number += 1
        with suppress(FileExistsError):
            (folder / f"attempt-{number}").mkdir()
            return folder / f"attempt-{number}"


def last_progress(folder: Path) -> events.Event | None:
    """The newest progress event of a case, read from the end of its log."""
    path = folder / events.FILE_NAME
    if not path.exists():
        return None
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - 65536))
        lines = handle.read().splitlines()
    for line in reversed(lines):
        if b'"progress"' in line:
            event = next(iter(events.parse([line])), None)
            if event is not None and event["event"] == "progress" and find_fault("", [event]) is None:
                return event | {"what": sanitize_line(event.get("what", ""))}
    return None


def complaint_in(log: Path) -> str:
    """Return the last line of a job's log in which its shell or script says why it ended, or nothing."""
    said = [line for line in last_lines(log) if COMPLAINT.search(line)]
    return sanitize_line(said[-1].removeprefix("error: "))[:300] if said else ""


def last_lines(path: Path, count: int = 12) -> list[str]:
    """The end of a text file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-count:]
    except OSError:
        return []
