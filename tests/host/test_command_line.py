"""The exit codes and error lines that every command line of the harness shares."""

from __future__ import annotations

import errno
import os

import pytest

from harness.host.command_line import DISK_ERRORS, CommandParser, run_command
from harness.protocol.errors import SchedulerUnavailable, UsageError


def raise_error(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize("code", [0, 1, 3])
def test_exit_code_of_the_command_is_returned(code: int) -> None:
    assert run_command(lambda: code) == code


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (
            UsageError("suite.yaml:3:1: unknown key\n    3 | key"),
            2,
            "error: suite.yaml:3:1: unknown key\n    3 | key\n",
        ),
        (SchedulerUnavailable("squeue: no answer"), 3, "error: squeue: no answer\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a"), 2, "error: [Errno 2] No such file: 'a'\n"),
        (OSError("unable to open\n \x1b[2J"), 2, "error: unable to open ?[2J\n"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command to continue\n"),
    ],
)
def test_errors_become_exit_codes_and_lines(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, printed: str
) -> None:
    assert run_command(lambda: raise_error(error)) == code
    assert capsys.readouterr().err == printed


@pytest.mark.parametrize("number", DISK_ERRORS)
def test_disk_errors_leave_the_command_incomplete(capsys: pytest.CaptureFixture[str], number: int) -> None:
    assert run_command(lambda: raise_error(OSError(number, os.strerror(number), "log"))) == 3
    assert capsys.readouterr().err.endswith(": 'log'; no work is lost; run the same command to continue\n")


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


@pytest.mark.parametrize(
    "argv", [["-q", "a", "b"], ["a", "-q", "b"], ["a", "b", "-q"], ["a", "-q", "--", "b"]], ids=" ".join
)
def test_options_may_appear_between_positional_arguments(argv: list[str]) -> None:
    parser = CommandParser()
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("-q", action="store_true")
    arguments = parser.parse_args(argv)
    assert (arguments.first, arguments.second, arguments.q) == ("a", "b", True)


def test_usage_error_names_the_help() -> None:
    with pytest.raises(UsageError, match=r"unrecognized arguments: --nope; see `tool --help`"):
        CommandParser(prog="tool").parse_args(["--nope"])


def test_usage_error_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"^unrecognized arguments: --nope \?\[2J; see `tool --help`$"):
        CommandParser(prog="tool").parse_args(["--nope", "\n \x1b[2J"])
