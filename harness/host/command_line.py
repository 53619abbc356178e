"""Parser, exit codes and error messages of all command lines of the harness."""

from __future__ import annotations

import argparse
import copy
import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from harness.protocol.errors import SchedulerUnavailable, UsageError
from harness.protocol.text import sanitize_line

DONE, CHECK_FAILED, BAD_INPUT, INCOMPLETE, INTERRUPTED = 0, 1, 2, 3, 130
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises UsageError instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError; the caller prints it."""
        raise UsageError(sanitize_line(f"{message}; see `{self.prog} --help`"))


class CommandParser(ArgumentParser):
    """The parser of one command, which accepts options before, between and after its arguments."""

    _is_intermixed = False

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does; if arguments remain, parse again with options and arguments separated.

        After `--`, words that begin with `-` are names of files, such as ./-z.
        """
        argv = list(sys.argv[1:] if args is None else args)
        stop = argv.index("--") if "--" in argv else len(argv)
        arguments = [f"./{word}" if word.startswith("-") else word for word in argv[stop + 1 :]]
        argv = [*argv[: stop + 1], *arguments]
        parsed, rest = super().parse_known_args(argv, copy.copy(namespace))
        if not rest or self._is_intermixed:
            return parsed, rest
        self._is_intermixed = True
        try:
            return self.parse_known_intermixed_args([*argv[:stop], *arguments], namespace)
        finally:
            self._is_intermixed = False


def run_command(function: Callable[[], int]) -> int:
    """Run a command, print its errors on stderr, and return its exit code.

    Returns:
        0: done; 1: a check failed; 2: bad input or usage; 3: jobs are incomplete or the disk is full; 130: interrupted.
    """
    try:
        return function()
    except UsageError as error:
        print_error(str(error))
        return INCOMPLETE if isinstance(error, SchedulerUnavailable) else BAD_INPUT
    except OSError as error:
        if isinstance(error, BrokenPipeError) and has_no_reader(sys.stdout.fileno()):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return DONE
        is_disk_error = error.errno in DISK_ERRORS
        advice = "; no work is lost; run the same command to continue" if is_disk_error else ""
        print_error(sanitize_line(f"{error}{advice}"))
        return INCOMPLETE if is_disk_error else BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; run the same command to continue", file=sys.stderr)
        return INTERRUPTED


def has_no_reader(pipe: int) -> bool:
    """Return whether the reading end of a pipe is closed."""
    poll = select.poll()
    poll.register(pipe, 0)  # errors are reported in any case
    return bool(poll.poll(0))


def print_error(message: str) -> None:
    """Print a message on stderr, with `error: ` before every line except indented ones, which continue a message."""
    for line in message.splitlines():
        print(line if line.startswith(" ") else f"error: {line}", file=sys.stderr)


def run_subprocess(command: Sequence[str]) -> int:
    """Run a program, wait for its end even after an interrupt, and return its exit code.

    Raises:
        KeyboardInterrupt: An interrupt ended the program.
        UsageError: Another signal ended it.
    """
    with subprocess.Popen(command) as process:
        while True:
            try:
                code = process.wait()
            except KeyboardInterrupt:  # the program receives the interrupt too, and reports it
                continue
            if code == -signal.SIGINT:
                raise KeyboardInterrupt
            if code < 0:
                raise UsageError(f"ended by signal {-code}; a file may be damaged, or the memory exhausted")
            return code
