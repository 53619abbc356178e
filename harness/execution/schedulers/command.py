"""Schedulers that are used through commands; these run in a clean environment and are repeated while they fail."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import ClassVar

from harness.execution.schedulers.base import JobRejected, QueueEntry, Scheduler
from harness.protocol.text import sanitize

# The time limit of a command, and the time after which the user is notified.
TIMEOUT_S, SLOW_S = 60.0, 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S, PAUSE_GROWTH = 1.0, 60.0, 1.5
DEFAULT_RETRY_TIMEOUT_S = ContextVar("DEFAULT_RETRY_TIMEOUT_S", default=600.0)
RETRY_TIMEOUT_VARIABLE = "GFM_HARNESS_PATIENCE_S"
MESSAGE_LENGTH = 600
IDS_PER_QUERY = 200
NOT_EXECUTABLE, NOT_FOUND = 126, 127
# Prefixes of environment variables that change a scheduler's commands or add options to every job; they are set by the
# user, or by a job in which the harness runs. LOCATION_VARIABLES have the same prefixes, but are kept, since they
# locate the scheduler.
OPTION_PREFIX_NAMES = (
    "SBATCH",
    "SQUEUE",
    "SINFO",
    "SACCT",
    "SCANCEL",
    "SCONTROL",
    "SALLOC",
    "SRUN",
    "SLURM",
    "SLURMD",
    "PBS",
)
OPTION_PREFIXES = tuple(f"{name}_" for name in OPTION_PREFIX_NAMES)
LOCATION_VARIABLES = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}
LOCATION_VARIABLES |= {f"PBS_{name}" for name in ("SERVER", "DEFAULT", "CONF_FILE", "EXEC", "HOME", "PRIMARY")}
LOCATION_VARIABLES |= {f"PBS_{name}" for name in ("SECONDARY", "LEAF_NAME", "BATCH_SERVICE_PORT", "AUTH_METHOD")}
LOCATION_VARIABLES |= {"PBS_ENCRYPT_METHOD"}


class RetriesExhausted(Exception):
    """A scheduler command kept failing; the message is the command and its last error."""


class CommandFailed(Exception):
    """One attempt of a command failed.

    Attributes:
        code: the exit code; None if the command did not end in time.
        message: the end of its stderr, or of its stdout if stderr is empty, on one line; else the exit code.
        output: its stdout.
    """

    def __init__(self, command: Sequence[str], code: int | None, message: str, output: str = "") -> None:
        self.code = code
        self.output = output
        self.message = sanitize(" ".join(message.split()))[-MESSAGE_LENGTH:] or f"exit code {code}"
        super().__init__(f"{command[0]}: {self.message}")

    @property
    def is_unusable(self) -> bool:
        """Whether the command cannot be executed on this machine."""
        return self.code in (NOT_EXECUTABLE, NOT_FOUND)


class CommandScheduler(Scheduler):
    """A scheduler with a command that submits a script.

    Attributes:
        submit_command: the words of the command before the options and the script.
        dependency_errors: the pattern of error messages about the jobs that the submitted one depends on.
    """

    submit_command: ClassVar[tuple[str, ...]]
    dependency_errors: ClassVar[re.Pattern[str]]

    @abstractmethod
    def build_dependency_options(self, after: Sequence[str]) -> list[str]:
        """Return the options with which a job starts after others have ended, successfully or not."""

    @abstractmethod
    def parse_job_id(self, output: str) -> str | None:
        """Return the job id in the output of the submit command, or None."""

    @abstractmethod
    def raise_if_rejected(self, error: CommandFailed) -> None:
        """Raise JobRejected or QueueFull, unless another attempt may succeed soon."""

    def get_submission_id(self, entry: QueueEntry) -> str:
        """Return the id of the submission that an entry of the queue belongs to."""
        return entry.id

    def submit(self, script: Path, name: str, after: Sequence[str] = ()) -> str:
        """Submit a script; it may start after failed jobs, since it checks the cases that it depends on."""
        options = self.build_dependency_options(after) if after else []
        try:
            return self.submit_with_retry([*options, str(script)], name)
        except JobRejected as error:
            if not after or not self.dependency_errors.search(str(error)):
                raise
        active = {entry.id for entry in self.list_jobs((), after)}
        return self.submit(script, name, [job for job in after if job in active] if len(active) < len(after) else ())

    def submit_with_retry(self, arguments: Sequence[str], name: str) -> str:
        """Submit one job; after a failure, search the queue for its name, since it may have been accepted."""
        backoff = Backoff()
        is_accepted = False
        while True:
            if not is_accepted:
                try:
                    output = run_once([*self.submit_command, *arguments])
                    job = self.parse_job_id(output)
                    if job is not None:
                        return job
                    is_accepted = True
                    error = CommandFailed([self.command], 0, f"no job id in its answer {output.strip()!r}")
                except CommandFailed as failure:
                    error = failure
                    self.raise_if_rejected(failure)
            backoff.wait(error)
            entries = self.list_jobs([name])
            if entries:
                return self.get_submission_id(entries[0])


def split_ids(ids: Sequence[str]) -> list[Sequence[str]]:
    """Split ids into batches that a command accepts."""
    return [ids[k : k + IDS_PER_QUERY] for k in range(0, len(ids), IDS_PER_QUERY)]


def build_environment() -> dict[str, str]:
    """Return this process's environment without variables that change a scheduler's commands.

    SLURM_BITSTR_LEN=0 makes Slurm list all tasks of an array.
    """
    environment = {k: v for k, v in os.environ.items() if k in LOCATION_VARIABLES or not k.startswith(OPTION_PREFIXES)}
    return environment | {"LC_ALL": "C", "SLURM_BITSTR_LEN": "0"}


def run_once(command: Sequence[str]) -> str:
    """Run a command and return its stdout; notify the user if it is slow, and raise CommandFailed if it fails."""
    limit_s = min(TIMEOUT_S, max(get_retry_timeout_s(), 2 * SLOW_S))
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", env=build_environment(), start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise CommandFailed(command, NOT_FOUND, f"{command[0]}: no such command on this machine") from None
    except OSError as error:
        raise CommandFailed(command, NOT_EXECUTABLE, f"{command[0]}: {error.strerror}") from None
    try:
        try:
            output, errors = process.communicate(timeout=SLOW_S)
        except subprocess.TimeoutExpired:
            notify(f"{command[0]} has not answered for {SLOW_S:g} s; waiting for up to {limit_s:g} s")
            output, errors = process.communicate(timeout=limit_s - SLOW_S)
    except subprocess.TimeoutExpired:
        _kill(process)
        raise CommandFailed(command, None, f"no answer in {limit_s:g} s") from None
    except BaseException:
        _kill(process)
        raise
    if process.returncode != 0:
        raise CommandFailed(command, process.returncode, errors or output, output)
    return output


def run_with_retry(command: Sequence[str], is_permanent: Callable[[CommandFailed], bool] = lambda _: False) -> str:
    """Run a command until it works and return its stdout.

    Raises:
        CommandFailed: the error is permanent.
        RetriesExhausted: the command still failed when the time for retries was up.
    """
    backoff = Backoff()
    while True:
        try:
            return run_once(command)
        except CommandFailed as error:
            if is_permanent(error) or error.is_unusable:
                raise
            backoff.wait(error)


def get_retry_timeout_s() -> float:
    """Return how long a command may keep failing: ten minutes, or GFM_HARNESS_PATIENCE_S seconds."""
    default_s = DEFAULT_RETRY_TIMEOUT_S.get()
    try:
        return float(os.environ.get(RETRY_TIMEOUT_VARIABLE, default_s))
    except ValueError:
        return default_s


@contextmanager
def override_default_retry_timeout(seconds: float) -> Iterator[None]:
    """Set how long commands may keep failing within the context, unless GFM_HARNESS_PATIENCE_S is set."""
    token = DEFAULT_RETRY_TIMEOUT_S.set(seconds)
    try:
        yield
    finally:
        DEFAULT_RETRY_TIMEOUT_S.reset(token)


def notify(text: str) -> None:
    """Print a message to the user on stderr immediately."""
    print(text, file=sys.stderr, flush=True)


class Backoff:
    """Pauses between the attempts of one request, whose total time is limited; the first failure is reported."""

    def __init__(self) -> None:
        self._pauses = Pauses(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._deadline = time.monotonic() + get_retry_timeout_s()
        self._is_reported = False

    def wait(self, error: CommandFailed) -> None:
        """Pause before another attempt; raise RetriesExhausted, with the error's message, when the time is up."""
        if time.monotonic() >= self._deadline:
            raise RetriesExhausted(str(error)) from None
        if not self._is_reported:
            notify(f"{error}; trying again for up to {get_retry_timeout_s():g} s")
            self._is_reported = True
        self._pauses.sleep(self._deadline)


class Pauses:
    """Pauses that grow from the first to the longest."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._next_s = first_s

    def reset(self) -> None:
        """Start with the first pause again."""
        self._next_s = self._first_s

    def sleep(self, deadline: float | None = None) -> None:
        """Sleep, but not past a deadline on the monotonic clock."""
        limit_s = self._next_s if deadline is None else max(0.05, deadline - time.monotonic())
        time.sleep(min(self._next_s, limit_s))
        self._next_s = min(self._next_s * PAUSE_GROWTH, self._longest_s)


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill the command and its child processes, without waiting for other processes that hold its pipes."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
