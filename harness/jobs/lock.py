"""One harness at a time on a campaign."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import UsageError
from harness.jobs.script import JOBS


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the campaign's lock; raises UsageError if another harness has it."""
    (folder / JOBS).mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            who = handle.read(200).strip()
            raise UsageError(f"{folder}: another harness is running this campaign ({who})") from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {platform.node()}\n")
        handle.flush()
        yield
