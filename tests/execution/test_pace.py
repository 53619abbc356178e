"""The remaining time follows from measured cases, and is shown for each running case and for all cases."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from harness.config import resources
from harness.config.suite import load_suite
from harness.config.system import load_system
from harness.execution.case_files import LOCK_FILE
from harness.execution.pace import Pace, format_remaining
from harness.execution.status import Progress
from harness.planning.expand import expand_suite
from harness.protocol.case import Case
from harness.protocol.events import EVENTS_FILE, JsonLinesLog


@pytest.fixture(scope="module")
def cases() -> tuple[Case, ...]:
    system = load_system(resources.find_resource("systems", "local"), {})
    return expand_suite(load_suite(resources.find_resource("suites", "precision"), "local"), system).cases


def test_estimate_is_expected_then_scaled_then_measured(cases: tuple[Case, ...]) -> None:
    first, second, *_ = cases
    pace = Pace()
    assert pace.estimate_s(second) == 60 * second.expected_minutes
    pace.add(first, None)
    assert pace.estimate_s(second) == 60 * second.expected_minutes
    pace.add(first, 30 * first.expected_minutes)
    pace.add(first, 1e6)  # it counts once
    assert pace.estimate_s(first) == 30 * first.expected_minutes
    assert pace.estimate_s(second) == 30 * second.expected_minutes


def test_resumed_case_takes_only_the_rest_of_its_time(cases: tuple[Case, ...]) -> None:
    pace = Pace()
    pace.add(cases[0], 1000.0)
    half = {"event": "progress", "done": 50, "total": 100, "time_s": 1010.0}
    assert pace.estimate_remaining_s(cases[0], 1000.0, None, 1010.0) == 990.0
    assert pace.estimate_remaining_s(cases[0], 1000.0, half, 1010.0) == 500.0
    assert pace.estimate_remaining_s(cases[0], 1000.0, half, 1110.0) == 400.0
    assert pace.estimate_remaining_s(cases[0], 1000.0, half | {"done": 0}, 1110.0) == 890.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "longer than expected"),
        (3, "about 10 s left"),
        (44, "about 40 s left"),
        (200, "about 3 minutes left"),
        (3600, "about 60 minutes left"),
        (9000, "about 2.5 hours left"),
    ],
)
def test_remaining_time_as_text(seconds: float, text: str) -> None:
    assert format_remaining(seconds) == text


def test_terminal_shows_what_is_left(cases: tuple[Case, ...], tmp_path: Path) -> None:
    """One case started 20 s ago and takes 60 s; two wait, and a later suite has a case of two hours."""
    folder = tmp_path / "case"
    folder.mkdir()
    (folder / LOCK_FILE).write_text("job")
    os.utime(folder / LOCK_FILE, (time.time() - 20, time.time() - 20))
    running, second, third, later, *_ = cases
    progress = Progress()
    output = io.StringIO()
    progress.console = Console(file=output, force_terminal=True, width=200)
    for case, seconds in ((running, 60.0), (second, 600.0), (third, 1200.0), (later, 7200.0)):
        progress.pace.add(case, seconds)
    progress.later = [later]
    progress.update([(running, folder)], [running, second, third])
    progress.close()
    text = output.getvalue()
    assert "about 40 s left" in text
    assert "4 cases to do" in text
    assert "about 2.5 hours left" in text


def test_log_reads_the_progress_of_a_resumed_case(cases: tuple[Case, ...], tmp_path: Path) -> None:
    log = JsonLinesLog(tmp_path / EVENTS_FILE)
    for done in (50, 60):
        log.write("progress", done=done, total=100, activity="training steps")
    progress, output = Progress(), io.StringIO()
    progress.console = Console(file=output, soft_wrap=True)
    progress.pace.add(cases[0], 1800.0)
    progress.update([(cases[0], tmp_path)], cases)
    assert output.getvalue() == f"{cases[0].name}: started, about 15 minutes left\n"


def test_log_names_what_is_left(cases: tuple[Case, ...], tmp_path: Path) -> None:
    progress = Progress()
    output = io.StringIO()
    progress.console = Console(file=output, soft_wrap=True)
    progress.pace.add(cases[0], 300.0)
    progress.update([(cases[0], tmp_path)], cases)
    assert output.getvalue() == f"{cases[0].name}: started, about 5 minutes left\n"
