"""Helpers of tests on emulated clusters."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(event: str, condition: Callable[[], object], timeout_s: float = 300) -> None:
    """Wait until a condition holds; fail after a timeout with a message that names the awaited event."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {event}"
        time.sleep(0.1)
