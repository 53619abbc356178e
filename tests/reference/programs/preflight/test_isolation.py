"""A check that crashes, hangs or raises an error is a failure with its reason, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from harness.reference.programs.preflight.check import CheckContext, Outcome, make_outcome
from harness.reference.programs.preflight.isolation import run_isolated
from tests.reference.programs.preflight.contexts import make_context


def kill_itself(context: CheckContext) -> Outcome:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def kill_itself_with_a_real_time_signal(context: CheckContext) -> Outcome:
    signal.signal(40, signal.SIG_DFL)
    os.kill(os.getpid(), 40)
    raise AssertionError


def exit_early(context: CheckContext) -> Outcome:
    os._exit(7)


def hang(context: CheckContext) -> Outcome:
    child = subprocess.Popen(["sleep", "60"])
    (context.folder / "pid").write_text(str(child.pid))
    time.sleep(60)
    raise AssertionError


def raise_error(context: CheckContext) -> Outcome:
    raise ZeroDivisionError("no nodes")


@pytest.mark.parametrize(
    ("check", "observed"),
    [
        (kill_itself, "its process ended without a result (signal SIGKILL)"),
        (kill_itself_with_a_real_time_signal, "its process ended without a result (signal 40)"),
        (exit_early, "its process ended without a result (exit code 7)"),
        (hang, "no result after 1 s, the time limit"),
        (raise_error, "no nodes"),
    ],
)
def test_check_without_a_result_is_a_failure(
    tmp_path: Path, check: Callable[[CheckContext], Outcome], observed: str
) -> None:
    finding = run_isolated(check, make_context(tmp_path), 1.0).finding
    assert finding.verdict == "failed"
    assert observed in finding.observed
    assert finding.advice


def test_processes_of_a_hanging_check_are_ended(tmp_path: Path) -> None:
    run_isolated(hang, make_context(tmp_path), 1.0)
    deadline = time.monotonic() + 5.0
    pid = int((tmp_path / "pid").read_text())
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_outcome_returns_unchanged(tmp_path: Path) -> None:
    expected = make_outcome("a", "b", ["c"], "d")
    assert run_isolated(lambda _: expected, make_context(tmp_path), 5.0) == expected
