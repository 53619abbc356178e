"""Locks of files: all ranks add to one number, each under the lock of the file, and no addition is lost."""

from __future__ import annotations

import time
from pathlib import Path

from harness.host.locks import LockTaken, hold_lock
from harness.protocol.programs.preflight import Finding
from harness.reference.programs.preflight.check import CheckContext, Outcome, Outcomes, make_outcome, merge

ADDITIONS = 20  # per rank
WAIT_S = 60.0  # for the lock, in all additions of a rank
# The time between reading and writing the number, in which another rank would read it if the lock did not work.
PAUSE_S = 0.002
MAX_RANKS = 8  # that a message lists
EXPECTED = "no addition under a lock is lost"
SHARE_ADVICE = "Use an `--out` that all nodes share."
ADVICE = "Ask the site for a file system with locks (Lustre: the mount option flock), or use another `--out`."


def check(context: CheckContext) -> Outcome:
    """Add 1 to the number in a file several times, each time under the lock of the file."""
    path = get_number_path(context)
    if context.rank_info.size == 1:
        return make_outcome(EXPECTED, "one rank takes and releases the lock", find_single_problem(path), ADVICE)
    get_mark_path(path, context.rank_info.rank).touch()
    deadline = time.monotonic() + WAIT_S
    for _ in range(ADDITIONS):
        add_under_lock(path, deadline)
    return make_outcome(EXPECTED, f"{ADDITIONS} additions")


def get_number_path(context: CheckContext) -> Path:
    """Return the path of the file with the number; a repeated run has another port and starts from 0."""
    return context.folder / f"number-{context.port}"


def get_mark_path(path: Path, rank: int) -> Path:
    """Return the path of the file with which a rank shows that it uses the folder."""
    return path.with_name(f"{path.name}-rank-{rank}")


def find_single_problem(path: Path) -> list[str]:
    """Return a message if a lock can be taken twice."""
    with hold_lock(path):
        try:
            with hold_lock(path):
                return ["a lock was taken twice"]
        except LockTaken:
            return []


def add_under_lock(path: Path, deadline: float) -> None:
    """Add 1 to the number in a file; raise TimeoutError if the lock is not free before the deadline."""
    while True:
        try:
            with hold_lock(path.with_suffix(".lock")):
                number = read_number(path)
                time.sleep(PAUSE_S)
                path.write_text(str(number + 1))
                return
        except LockTaken:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the lock of {path} was not free within {WAIT_S:g} s") from None
            time.sleep(PAUSE_S / 4)


def read_number(path: Path) -> int:
    """Return the number in a file, or 0 if there is none."""
    try:  # unlike `exists`, opening a file asks the server of a network file system
        return int(path.read_text() or 0)
    except FileNotFoundError:
        return 0


def judge(context: CheckContext, outcomes: Outcomes) -> Finding:
    """Compare the number in the file with the additions of all ranks."""
    finding = merge(context, outcomes)
    path, expected = get_number_path(context), ADDITIONS * len(outcomes)
    if finding.verdict != "ok" or len(outcomes) == 1:
        return finding
    number = read_number(path)
    path.unlink(missing_ok=True)
    observed = f"{number} of {expected} additions by {len(outcomes)} ranks"
    absent = [str(rank) for rank in outcomes if not get_mark_path(path, rank).exists()]
    if absent and number != expected:
        names = ", ".join(absent[:MAX_RANKS])
        problem = f"{observed}: files of ranks {names} do not appear in {context.folder} on the node of rank 0"
        return make_outcome(EXPECTED, observed, [problem], SHARE_ADVICE).finding
    problems = [] if number == expected else [f"{observed}: the lock does not exclude other ranks"]
    return make_outcome(EXPECTED, observed, problems, ADVICE).finding
