"""Cases whose job the queue has no more, and which left no exit code: how they stand, and whether it may still come."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from harness.execution import case_results
from harness.execution.journal import Ended
from harness.execution.schedulers.base import Ending

FILES_VARIABLE = "GFM_HARNESS_FILES_S"


def files_s(usual_s: float) -> float:
    """How long a file system may hide new files: as long as usual, or GFM_HARNESS_FILES_S seconds."""
    try:
        return float(os.environ.get(FILES_VARIABLE, usual_s))
    except ValueError:
        return usual_s


def reason_of(ending: Ending | None, log: Path) -> str:
    """Return why the job is gone: what the scheduler says, and the last complaint in the job's log."""
    reason = ending.reason if ending else "its job is gone and left no exit code"
    complaint = case_results.complaint_in(log)
    return f"{reason}: {complaint}" if complaint else reason


def describe(ending: Ending | None, limit_s: float) -> str:
    """What a job's files are waited for, in words for the user."""
    why = f"the scheduler says {ending.reason}" if ending else "no longer in the queue"
    return f"{why}, and there is no exit code yet; waiting for files for up to {limit_s:g} s"


def may_come(folder: Path, ending: Ending | None, since_s: float | None, limit_s: float) -> bool:
    """Whether the case may have ended well, in files that cannot be seen yet.

    A job that ended by itself, or of which nothing is known, may have written them; one that was ended may have so only
    for a case whose program had come to its end. since_s: when the queue first lacked the job.
    """
    if limit_s <= 0 or (since_s is not None and time.time() - since_s >= limit_s) or case_results.exit_of(folder):
        return False
    kind = ending.kind if ending else "completed"
    if kind in ("completed", "exited"):
        return kind == "completed" or case_results.was_begun(folder)
    return kind == "again" and case_results.ended_without_exit_code(folder) is not None


def judge(folder: Path, ending: Ending | None) -> Ended | None:
    """How the case ended, as far as that is certain without its exit code; None: it may be run again."""
    if ending is not None and ending.kind in ("cancelled", "failed"):
        return Ended("cancelled" if ending.kind == "cancelled" else "failed", None, None, ending.reason)
    finished = case_results.ended_without_exit_code(folder)
    if finished is not None:
        why = finished.reason or "its program came to its end, and its job was killed before it wrote the exit code"
        return replace(finished, reason=why)
    if ending is not None and ending.kind == "completed":
        message = f"the scheduler says {ending.reason}, and its exit code never came; --retry runs it again"
        return Ended("lost", None, None, message)
    return None
