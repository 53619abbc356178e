"""Run folders -> records and tidy tables; needs nothing but the folders."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from harness import events
from harness.jobs.campaign import State, state_of


@dataclass(frozen=True)
class Record:
    """All that a case left behind.

    facts: name -> value. samples: raw measurements. stages: per stage, its warm_up or unavailable event.
    """

    folder: Path
    case: dict[str, Any]
    provenance: dict[str, Any]
    state: State
    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[events.Event] = field(default_factory=list)
    stages: dict[str, events.Event] = field(default_factory=dict)
    profile: events.Event | None = None
    error: str | None = None


def load(root: Path) -> list[Record]:
    """The records of every case under root/<campaign>/<case>/, sorted by path."""
    return [_record(path.parent) for path in sorted(root.glob("*/*/case.json"))]


def _record(folder: Path) -> Record:
    facts: dict[str, Any] = {}
    samples: list[events.Event] = []
    stages: dict[str, events.Event] = {}
    profile = error = None
    for event in events.last_run(folder / events.FILE_NAME):
        match event["event"]:
            case "fact":
                facts[event["name"]] = event["value"]
            case "sample":
                samples.append(event)
            case "warm_up" | "unavailable":
                stages[event["stage"]] = event
            case "profile":
                profile = event
            case "error":
                error = event["message"]
    state, _ = state_of(folder)
    return Record(
        folder,
        _json(folder / "case.json"),
        _json(folder / "provenance.json"),
        state,
        facts,
        samples,
        stages,
        profile,
        error,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def samples_table(records: list[Record]) -> pd.DataFrame:
    """One row per raw sample, beside the suite, case, id and folder it comes from."""
    rows = [
        {
            "suite": record.case.get("suite"),
            "case": record.case.get("name"),
            "id": record.case.get("id"),
            "folder": str(record.folder),
            **{k: v for k, v in sample.items() if k != "event"},
        }
        for record in records
        for sample in record.samples
    ]
    return pd.DataFrame(rows)
