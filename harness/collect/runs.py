"""Run folders -> records and tidy tables; needs nothing but the folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from harness import checks, events
from harness.checks import State
from harness.garbage import without_garbage
from harness.jobs.outcome import exit_of

# Events of kinds that a program has of its own.
OTHERS = {
    "epoch", "head", "compute_only", "own_step", "region", "exchange", "resumed", "skipped", "stopped", "trial",
    "prediction", "trained", "module", "tasks", "timer", "energy",
    "task", "baseline", "fit", "found", "rank", "proof", "best", "calibration", "overlap", "elements", "embedding",
    "uncertainty", "label", "unlabelled", "relaxed", "padding",
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """All that a case left behind.

    facts: name -> value. samples: raw measurements. stages: per stage, its warm_up or unavailable event. others: the
    events of kinds that a program has of its own, by kind. began_s, ended_s: Unix times of its first and last event.
    """

    folder: Path
    case: dict[str, Any]
    state: State
    error: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[events.Event] = field(default_factory=list)
    stages: dict[str, events.Event] = field(default_factory=dict)
    profile: events.Event | None = None
    merits: list[checks.Merit] = field(default_factory=list)
    others: dict[str, list[events.Event]] = field(default_factory=dict)
    began_s: float | None = None
    ended_s: float | None = None

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What the numbers rest on, as the job recorded it."""
        return _json(f"{self.folder}/provenance.json")


def load(root: Path) -> list[Record]:
    """The records of every case under root/<campaign>/<case>/, sorted by path."""
    return load_cases(case for campaign in _folders(root) for case in _folders(campaign))


def load_cases(folders: Iterable[str | Path]) -> list[Record]:
    """The records of those of the folders that are cases'."""
    found = []
    with without_garbage():
        for folder in folders:
            parameters = _json(f"{folder}/case.json")
            if parameters:
                found.append(_record(str(folder), parameters))
    return found


def _folders(place: str | Path) -> list[str]:
    try:
        with os.scandir(place) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir())
    except OSError:
        return []


def _record(folder: str, case: dict[str, Any]) -> Record:
    facts: dict[str, Any] = {}
    samples: list[events.Event] = []
    stages: dict[str, events.Event] = {}
    others: dict[str, list[events.Event]] = {}
    profile = error = None
    log = _last_run(folder)
    for event in log:
        match event["event"]:
            case "sample":
                samples.append(event)
            case "fact":
                facts[event["name"]] = event["value"]
            case "warm_up" | "unavailable":
                stages[event["stage"]] = event
            case "profile":
                profile = event
            case "error":
                error = event["message"]
            case kind if kind in OTHERS:
                others.setdefault(kind, []).append(event)
    ended = exit_of(folder)
    state, reason = checks.judge(case, log, ended[0] if ended else None)
    merits = [checks.merit(row, log) for row in case.get("performance", ())] if state == "done" else []
    began_s, ended_s = (log[k].get("time_s") if log else None for k in (0, -1))
    return Record(
        Path(folder), case, state, error or reason or None, facts, samples, stages, profile, merits, others,
        began_s, ended_s,
    )  # fmt: skip


def _last_run(folder: str) -> list[events.Event]:
    return events.last_run(f"{folder}/{events.FILE_NAME}")


def _json(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as handle:
            value = orjson.loads(handle.read())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
