"""Reports while cases run: the first at once, further ones seldom enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli.reports import MAX_REPORT_FRACTION, EarlyReports
from harness.protocol.errors import UsageError


def count_reports(monkeypatch: pytest.MonkeyPatch, updates: int, report_s: float, error: str | None = None) -> int:
    """Return the number of reports in a run in which a case ends every second, and a report takes `report_s`."""
    clock, written = {"s": 0.0}, [0]

    def write_report(_: Path) -> None:
        written[0] += 1
        clock["s"] += report_s
        if error:
            raise UsageError(error)

    monkeypatch.setattr("harness.report.render.write_report", write_report)
    early = EarlyReports(Path("out"), clock=lambda: clock["s"])
    for _ in range(updates):
        early.update()
        clock["s"] += 1.0
    return written[0]


def test_reports_take_a_small_fraction_of_the_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert count_reports(monkeypatch, updates=1, report_s=30.0) == 1
    number = count_reports(monkeypatch, updates=1000, report_s=2.0)
    assert 0.5 * MAX_REPORT_FRACTION < number * 2.0 / (1000 + number * 2.0) <= MAX_REPORT_FRACTION + 2.0 / 1000
    assert capsys.readouterr().out.count("index.html") == 2


def test_reports_that_cannot_be_written_do_not_stop_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert count_reports(monkeypatch, updates=2, report_s=0.5, error="no claims") == 1
    printed = capsys.readouterr()
    assert printed.err == "no report yet: no claims\n"
    assert not printed.out
