"""One harness at a time on a campaign."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness.execution.job_script import JOBS
from harness.host.locks import LockTaken, locked
from harness.protocol.errors import UsageError


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the campaign's lock; raises UsageError if another harness has it."""
    (folder / JOBS).mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path))
        except LockTaken as error:
            who = path.read_text(encoding="utf-8", errors="replace")[:200].strip()
            raise UsageError(f"{folder}: another harness is running this campaign ({who or error})") from None
        path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        yield
