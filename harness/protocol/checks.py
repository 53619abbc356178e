"""What a suite says about the events of its cases: sanity checks and figures of merit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.protocol.errors import did_you_mean
from harness.protocol.events import Event
from harness.protocol.text import sanitize_line

State = Literal["not run", "waiting", "running", "done", "failed", "cancelled", "lost", "blocked", "unreadable"]
STATISTICS: dict[str, Callable[[list[float]], float]] = {
    "median": statistics.median,
    "mean": statistics.fmean,
    "min": min,
    "max": max,
}


@dataclass(frozen=True)
class Merit:
    """A figure of merit beside its reference; ratio is measured / reference, verdict says which side it fell on."""

    name: str
    unit: str
    measured: float | None
    samples: int
    reference: float
    tolerance: float
    verdict: Literal["ok", "better", "worse", "not measured"]


def judge(case: Mapping[str, Any], events: Sequence[Event], exit_code: int | None) -> tuple[State, str]:
    """The state of a case by what it left, and why it is not done.

    lost: it began and there is no exit code. Done takes exit code 0, a `done` event and every sanity check; a program
    that wrote `done` as its last event, and whose job was killed before it could write the exit code, is judged alike.
    """
    if exit_code is None and not has_finished(events):
        return ("lost", "it began and left no exit code") if events else ("not run", "")
    if exit_code:
        said = [e["message"] for e in events if e["event"] == "error" and isinstance(e.get("message"), str)]
        return "failed", sanitize_line(said[-1]) if said else f"exit code {exit_code}"
    if not any(e["event"] == "done" for e in events):
        return "failed", "exit code 0 without a `done` event"
    failures = [failure for row in case.get("sanity", ()) if (failure := sanity(row, events))]
    return ("failed", "sanity: " + "; ".join(failures)) if failures else ("done", "")


def has_finished(events: Sequence[Event]) -> bool:
    """Whether the last thing that the program recorded is that it is done."""
    return bool(events) and events[-1]["event"] == "done"


def sanity(row: Mapping[str, Any], events: Iterable[Event]) -> str | None:
    """What a check found wrong, or None."""
    found = selected(row, events)
    what = row["event"] + (f" {dict(row['where'])}" if row.get("where") else "")
    if len(found) < row.get("at_least", 1):
        return f"{len(found)} events {what}, expected at least {row.get('at_least', 1)}"
    if row.get("at_most") is not None and len(found) > row["at_most"]:
        return f"{len(found)} events {what}, expected at most {row['at_most']}"
    if row.get("field") is None:
        return None
    for event in found:
        value = field_of(event, row["field"])
        if value is None:
            return f"{what} has no field {row['field']!r}{did_you_mean(row['field'], event)}"
        wrong = _wrong_value(row, value)
        if wrong:
            return f"{what}: {row['field']} {wrong}"
    return None


def _wrong_value(row: Mapping[str, Any], value: Any) -> str | None:
    if "equals" in row and row["equals"] is not None and value != row["equals"]:
        return f"is {value!r}, expected {row['equals']!r}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}"
    for bound, holds in (("above", lambda v, b: v > b), ("below", lambda v, b: v < b)):
        limit = row.get(bound)
        if limit is not None:
            try:
                if not holds(float(value), float(limit)):
                    return f"is {value}, expected {bound} {limit}"
            except (TypeError, ValueError):
                return f"is {value!r}, expected a number {bound} {limit}"
    return None


def merit(row: Mapping[str, Any], events: Iterable[Event]) -> Merit:
    """A figure of merit of one case against its reference."""
    values = [field_of(event, row["field"]) for event in selected(row, events)]
    numbers = [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    reference, tolerance = float(row["reference"]), float(row["tolerance"])
    common = {"name": row["name"], "unit": row["unit"], "samples": len(numbers)}
    if not numbers:
        return Merit(**common, measured=None, reference=reference, tolerance=tolerance, verdict="not measured")
    measured = float(STATISTICS[row.get("statistic", "median")](numbers))
    return Merit(
        **common,
        measured=measured,
        reference=reference,
        tolerance=tolerance,
        verdict=_verdict(measured, reference, tolerance, row["direction"]),
    )


def _verdict(
    measured: float, reference: float, tolerance: float, direction: str
) -> Literal["ok", "better", "worse", "not measured"]:
    margin = abs(reference) * tolerance
    if abs(measured - reference) <= margin:
        return "ok"
    if direction == "equal":
        return "worse"
    higher = measured > reference
    return "better" if higher == (direction == "higher_is_better") else "worse"


def selected(row: Mapping[str, Any], events: Iterable[Event]) -> list[Event]:
    """The events of the row's kind whose fields have its values."""
    where = row.get("where") or {}
    return [e for e in events if e["event"] == row["event"] and all(field_of(e, k) == v for k, v in where.items())]


def field_of(event: Mapping[str, Any], path: str) -> Any:
    """A field; dots lead into mappings and, by number, lists; None where there is none."""
    value: Any = event
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value
