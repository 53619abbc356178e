"""Scheduler commands, which fail for a while now and then: tried again, with pauses that grow, up to a limit."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence

TIMEOUT_S = 60.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
PATIENCE_S = 600.0
PATIENCE_VARIABLE = "HARNESS_PATIENCE_S"


class SchedulerBusy(Exception):
    """A scheduler command that kept failing; the message is the command and its last words."""


class CommandFailed(Exception):
    """One try of a command: exit code (None: no end in time) and its stderr."""

    def __init__(self, words: Sequence[str], code: int | None, said: str) -> None:
        self.code = code
        self.said = " ".join(said.split()) or f"exit code {code}"
        super().__init__(f"{words[0]}: {self.said}")


def once(words: Sequence[str]) -> str:
    """The command's stdout; raises CommandFailed."""
    environment = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
            env=environment, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CommandFailed(words, None, f"no answer in {TIMEOUT_S:g} s") from None
    except FileNotFoundError:
        raise CommandFailed(words, 127, f"{words[0]}: no such command on this machine") from None
    if done.returncode != 0:
        raise CommandFailed(words, done.returncode, done.stderr or done.stdout)
    return done.stdout


def patiently(words: Sequence[str], hopeless: Callable[[CommandFailed], bool] = lambda _: False) -> str:
    """The command's stdout, tried until it works; raises CommandFailed if hopeless, SchedulerBusy when time is up.

    The time is ten minutes, or HARNESS_PATIENCE_S seconds.
    """
    pauses = Pauses(FIRST_PAUSE_S, LONGEST_PAUSE_S)
    deadline = time.monotonic() + patience_s()
    while True:
        try:
            return once(words)
        except CommandFailed as error:
            if hopeless(error) or error.code == 127:
                raise
            if time.monotonic() >= deadline:
                raise SchedulerBusy(str(error)) from None
        pauses.sleep(deadline)


def patience_s() -> float:
    """How long a command may keep failing."""
    try:
        return float(os.environ.get(PATIENCE_VARIABLE, PATIENCE_S))
    except ValueError:
        return PATIENCE_S


class Pauses:
    """Pauses that grow by half from the first to the longest."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first, self._longest = first_s, longest_s
        self._next = first_s

    def reset(self) -> None:
        """Something happened: look again soon."""
        self._next = self._first

    def sleep(self, deadline: float | None = None) -> None:
        """Sleep, but not past a deadline on the monotonic clock."""
        left = self._next if deadline is None else max(0.05, deadline - time.monotonic())
        time.sleep(min(self._next, left))
        self._next = min(self._next * 1.5, self._longest)
