"""Evaluation of the checks that a suite requests of the events of a case: sanity checks and figures of merit."""

from __future__ import annotations

import math
import operator
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from harness.protocol.errors import did_you_mean
from harness.protocol.events import Event
from harness.protocol.text import sanitize_line

State = Literal["not run", "waiting", "running", "done", "failed", "cancelled", "lost", "blocked", "unreadable"]
MISSING = object()  # in place of a field that an event does not have
STATISTICS: dict[str, Callable[[list[float]], float]] = {
    "median": statistics.median,
    "mean": statistics.fmean,
    "min": min,
    "max": max,
}


@dataclass(frozen=True)
class FigureOfMerit:
    """A figure of merit and its reference; `ok` means that the two agree within the tolerance."""

    name: str
    unit: str
    measured: float | None
    samples: int
    reference: float
    tolerance: float
    verdict: Literal["ok", "better", "worse", "not measured"]


def evaluate_case(case: Mapping[str, Any], events: Sequence[Event], exit_code: int | None) -> tuple[State, str]:
    """Return the state of a case according to its log and its exit code, and the reason if it is not done.

    The reason of a case that is done is empty, unless the file system of its log has stalled.

    A case is lost if it has started and there is no exit code. It is done if the exit code is 0, there is a `done`
    event, and every sanity check passes. If the last event is `done` and the job was killed before it could write the
    exit code, the exit code counts as 0.
    """
    if exit_code is None and not has_finished(events):
        return ("lost", "it began and left no exit code") if events else ("not run", "")
    if exit_code:
        messages = [e["message"] for e in events if e["event"] == "error" and isinstance(e.get("message"), str)]
        return "failed", sanitize_line(messages[-1]) if messages else f"exit code {exit_code}"
    if not has_finished(events) and not any(e["event"] == "done" for e in events):
        return "failed", "exit code 0 without a `done` event"
    failures = [failure for check in case.get("sanity", ()) if (failure := find_sanity_failure(check, events))]
    return ("failed", "sanity: " + "; ".join(failures)) if failures else ("done", _describe_stalls(events))


def _describe_stalls(events: Iterable[Event]) -> str:
    """Return for how long the file system of the log stalled, or an empty string."""
    seconds = sum(float(event["seconds"]) for event in events if event["event"] == "stall")
    return f"the file system did not answer for {seconds:.0f} s, so that times are too long" if seconds else ""


def has_finished(events: Sequence[Event]) -> bool:
    """Return whether the last event of the program is `done`."""
    return bool(events) and events[-1]["event"] == "done"


def find_sanity_failure(check: Mapping[str, Any], events: Iterable[Event]) -> str | None:
    """Return a message about the first violation of a check, or None."""
    matching = select_events(check, events)
    description = check["event"] + (f" {dict(check['where'])}" if check.get("where") else "")
    if len(matching) < check.get("min_events", 1):
        return f"{len(matching)} events {description}, expected at least {check.get('min_events', 1)}"
    if check.get("max_events") is not None and len(matching) > check["max_events"]:
        return f"{len(matching)} events {description}, expected at most {check['max_events']}"
    if check.get("field") is None:
        return None
    for event in matching:
        value = get_field(event, check["field"], MISSING)
        if value is MISSING:
            return f"{description} has no field {check['field']!r}{did_you_mean(check['field'], event)}"
        problem = _find_violation(check, value)
        if problem:
            return f"{description}: {check['field']} {problem}"
    return None


def _find_violation(check: Mapping[str, Any], value: Any) -> str | None:
    if value is None:
        return "is null"
    expected = check.get("equals")
    if expected is not None and (value != expected or isinstance(value, bool) != isinstance(expected, bool)):
        return f"is {value!r}, expected {expected!r}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}"
    for bound, words, holds in (("at_least", "at least", operator.ge), ("at_most", "at most", operator.le)):
        limit = check.get(bound)
        if limit is not None:
            if not is_number(value) or not is_number(limit):
                return f"is {value!r}, expected a number of {words} {limit}"
            if not holds(value, limit):
                return f"is {value}, expected {words} {limit}"
    return None


def compute_figure_of_merit(check: Mapping[str, Any], events: Iterable[Event]) -> FigureOfMerit:
    """Return a figure of merit of one case, compared with its reference.

    It is not measured if one of the events has no finite number, such as an event of a run that diverged.
    """
    values = [get_field(event, check["field"]) for event in select_events(check, events)]
    numbers = [float(value) for value in values if is_number(value) and math.isfinite(value)]
    reference, tolerance = float(check["reference"]), float(check["tolerance"])
    common = {"name": check["name"], "unit": check["unit"], "samples": len(numbers)}
    if not numbers or len(numbers) < len(values):
        return FigureOfMerit(**common, measured=None, reference=reference, tolerance=tolerance, verdict="not measured")
    measured = float(STATISTICS[check.get("statistic", "median")](numbers))
    return FigureOfMerit(
        **common,
        measured=measured,
        reference=reference,
        tolerance=tolerance,
        verdict=_find_verdict(measured, reference, tolerance, check["direction"]),
    )


def _find_verdict(
    measured: float, reference: float, tolerance: float, direction: str
) -> Literal["ok", "better", "worse"]:
    margin = abs(reference) * tolerance
    if abs(measured - reference) <= margin:
        return "ok"
    if direction == "equal":
        return "worse"
    higher = measured > reference
    return "better" if higher == (direction == "higher_is_better") else "worse"


def select_events(check: Mapping[str, Any], events: Iterable[Event]) -> list[Event]:
    """Return the events that a check is about: those of its kind `event` whose fields have the values in `where`."""
    where = check.get("where") or {}
    return [e for e in events if e["event"] == check["event"] and all(get_field(e, k) == v for k, v in where.items())]


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a number, which truth values are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def get_field(event: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """Return the field at a dotted path, whose parts are keys of mappings or indices of lists, or the default."""
    value: Any = event
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return default
    return value
