"""A record of a run returns the events of its log by kind, and the names of its case and campaign."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from harness.results.runs import load_run_folder, load_runs


def test_record_returns_samples_warm_ups_and_profiles(tmp_path: Path) -> None:
    events = [
        {"event": "start", "version": 2},
        {"event": "warm_up", "first_s": 2.0},
        {"event": "sample", "value": 1.0},
        {"event": "profile", "rows": []},
        {"event": "sample", "value": 3.0},
        {"event": "done"},
    ]
    (tmp_path / "case.json").write_text(json.dumps({"name": "mine", "program": "user_program", "suite": "mine"}))
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event | {"time_s": 1.0}) + "\n" for event in events))
    record = load_run_folder(str(tmp_path))
    assert record.state == "done"
    assert [event["value"] for event in record.events("sample")] == [1.0, 3.0]
    assert [event["first_s"] for event in record.events("warm_up")] == [2.0]
    assert record.events("profile") == [record.profile]
    assert record.events("start") == []


def test_campaign_that_cannot_be_listed_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "ladder-local").mkdir(parents=True)
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("ladder-local"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("harness.results.runs.os.scandir", refuse)
    (record,) = load_runs(tmp_path / "runs")
    assert (record.state, record.campaign, record.error) == ("unreadable", "ladder-local", "Permission denied")
