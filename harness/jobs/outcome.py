"""What the files of a case say, without journal or scheduler."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import orjson

from harness import checks, events
from harness.cases import Case
from harness.checks import State
from harness.jobs.journal import Ended
from harness.text import sanitize_line

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
        handle = os.open(f"{folder}/{EXIT_CODE}", os.O_RDONLY)
    except OSError:
        return None
    try:
        lines = os.read(handle, 100).split()
        return int(lines[0]), float(lines[1]) if len(lines) > 1 else None
    except (ValueError, IndexError):
        return None
    finally:
        os.close(handle)


def ended(folder: Path) -> Ended | None:
    """How the case of a folder ended, if it did."""
    found = exit_of(folder)
    if found is None:
        return None
    try:
        case = orjson.loads((folder / "case.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        case = {}
    state, reason = checks.judge(case, events.last_run(folder / events.FILE_NAME), found[0])
    return Ended(state, found[0], found[1], reason)


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
    number = 1 + sum(1 for _ in folder.glob("attempt-*"))
    place = folder / f"attempt-{number}"
    place.mkdir()
    for path in sorted(old, key=lambda p: p.name == CLAIM):
        path.rename(place / path.name)


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
            if event is not None and event["event"] == "progress":
                return event
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
