"""The exit codes and error lines that every command line of the harness shares."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from harness.host.command_line import DISK_ERRORS, CommandParser, run_command, run_subprocess
from harness.protocol.errors import SchedulerUnavailable, UsageError
from tests.conftest import ROOT


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


def parse(argv: list[str]) -> tuple[str, str, bool]:
    parser = CommandParser()
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("-q", action="store_true")
    arguments = parser.parse_args(argv)
    return arguments.first, arguments.second, arguments.q


@pytest.mark.parametrize(
    "argv", [["-q", "a", "b"], ["a", "-q", "b"], ["a", "b", "-q"], ["a", "-q", "--", "b"]], ids=" ".join
)
def test_options_may_appear_between_positional_arguments(argv: list[str]) -> None:
    assert parse(argv) == ("a", "b", True)


@pytest.mark.parametrize("argv", [["-q", "--", "a", "-z"], ["a", "-q", "--", "-z"]], ids=" ".join)
def test_words_after_two_dashes_are_files_wherever_options_stand(argv: list[str]) -> None:
    assert parse(argv) == ("a", "./-z", True)


def test_program_that_an_interrupt_ends_is_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    interrupt = "import os, signal; signal.signal(signal.SIGINT, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGINT)"
    assert run_command(lambda: run_subprocess([sys.executable, "-c", interrupt])) == 130
    assert capsys.readouterr().err == "interrupted; run the same command to continue\n"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("while True: print('a line')", (0, "")),
        ("import os; a, b = os.pipe(); os.close(a); os.write(b, b'x')", (2, "error: [Errno 32] Broken pipe\n")),
    ],
    ids=["stdout", "another pipe"],
)
def test_only_a_reader_of_the_output_may_leave(code: str, expected: tuple[int, str]) -> None:
    script = (
        f"from harness.host.command_line import run_command\ndef run():\n    {code}\nraise SystemExit(run_command(run))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if expected[0] == 0:
            process.stdout.close()
        assert (process.wait(), process.stderr.read()) == expected


def test_usage_error_names_the_help() -> None:
    with pytest.raises(UsageError, match=r"unrecognized arguments: --nope; see `tool --help`"):
        CommandParser(prog="tool").parse_args(["--nope"])


def test_usage_error_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"^unrecognized arguments: --nope \?\[2J; see `tool --help`$"):
        CommandParser(prog="tool").parse_args(["--nope", "\n \x1b[2J"])
