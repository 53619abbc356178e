"""Scheduler commands: in an environment that changes nothing of what they do, and with patience while they fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from harness.protocol.text import sanitize

# A command gets TIMEOUT_S; the user hears of it after SLOW_S.
TIMEOUT_S, SLOW_S = 60.0, 5.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
PATIENCE_S = 600.0
PATIENCE_VARIABLE = "GFM_HARNESS_PATIENCE_S"
WORDS_SHOWN = 600
# Variables by which a user's habits, or the job that the harness runs in, change what a scheduler's commands do or put
# options into every job, and those among them that say where the scheduler is.
COMMANDS = ("SBATCH", "SQUEUE", "SINFO", "SACCT", "SCANCEL", "SCONTROL", "SALLOC", "SRUN", "SLURM", "SLURMD", "PBS")
CHANGING = tuple(f"{name}_" for name in COMMANDS)
REACHING = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}
REACHING |= {f"PBS_{name}" for name in ("SERVER", "DEFAULT", "CONF_FILE", "EXEC", "HOME", "PRIMARY", "SECONDARY")}
REACHING |= {f"PBS_{name}" for name in ("LEAF_NAME", "BATCH_SERVICE_PORT", "AUTH_METHOD", "ENCRYPT_METHOD")}


class SchedulerBusy(Exception):
    """A scheduler command that kept failing; the message is the command and its last words."""


class CommandFailed(Exception):
    """One try of a command: exit code (None: no end in time), its stderr, and what it printed all the same."""

    def __init__(self, words: Sequence[str], code: int | None, said: str, output: str = "") -> None:
        self.code = code
        self.output = output
        self.said = sanitize(" ".join(said.split()))[-WORDS_SHOWN:] or f"exit code {code}"
        super().__init__(f"{words[0]}: {self.said}")


def clean_environment() -> dict[str, str]:
    """This process's environment without what changes a scheduler's commands; arrays are listed in full."""
    kept = {k: v for k, v in os.environ.items() if k in REACHING or not k.startswith(CHANGING)}
    return kept | {"LC_ALL": "C", "SLURM_BITSTR_LEN": "0"}


def once(words: Sequence[str]) -> str:
    """The command's stdout; raises CommandFailed. A command that is slow is reported."""
    limit = min(TIMEOUT_S, max(patience_s(), 2 * SLOW_S))
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", env=clean_environment(), start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise CommandFailed(words, 127, f"{words[0]}: no such command on this machine") from None
    except OSError as error:
        raise CommandFailed(words, 126, f"{words[0]}: {error.strerror}") from None
    try:
        try:
            output, said = process.communicate(timeout=SLOW_S)
        except subprocess.TimeoutExpired:
            notify(f"{words[0]} has not answered for {SLOW_S:g} s; it is given {limit:g} s")
            output, said = process.communicate(timeout=limit - SLOW_S)
    except subprocess.TimeoutExpired:
        _end(process)
        raise CommandFailed(words, None, f"no answer in {limit:g} s") from None
    except BaseException:
        _end(process)
        raise
    if process.returncode != 0:
        raise CommandFailed(words, process.returncode, said or output, output)
    return output


def patiently(words: Sequence[str], hopeless: Callable[[CommandFailed], bool] = lambda _: False) -> str:
    """The command's stdout, tried until it works; raises CommandFailed if hopeless, SchedulerBusy when time is up."""
    patience = Patience()
    while True:
        try:
            return once(words)
        except CommandFailed as error:
            if hopeless(error) or error.code in (126, 127):
                raise
            patience.wait(error)


def patience_s() -> float:
    """How long a command may keep failing: ten minutes, or GFM_HARNESS_PATIENCE_S seconds."""
    try:
        return float(os.environ.get(PATIENCE_VARIABLE, PATIENCE_S))
    except ValueError:
        return PATIENCE_S


def notify(text: str) -> None:
    """Tell the user at once, on stderr, that a scheduler makes the harness wait."""
    print(text, file=sys.stderr, flush=True)


class Patience:
    """Pauses between tries of one request; the first failure is reported, and time runs out at last."""

    def __init__(self) -> None:
        self._pauses = Pauses(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._deadline = time.monotonic() + patience_s()
        self._is_reported = False

    def wait(self, error: CommandFailed) -> None:
        """Pause before another try; raises SchedulerBusy, with the error's words, when time is up."""
        if time.monotonic() >= self._deadline:
            raise SchedulerBusy(str(error)) from None
        if not self._is_reported:
            notify(f"{error}; trying again for up to {patience_s():g} s")
            self._is_reported = True
        self._pauses.sleep(self._deadline)


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


def _end(process: subprocess.Popen[str]) -> None:
    """Kill the command with what it started, and do not wait for who may hold its pipes."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
