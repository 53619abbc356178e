"""Whether a log holds what this version expects of it: known events, their fields, and values that are possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from harness.protocol.errors import did_you_mean, shortened
from harness.protocol.event_fields import (
    COMMON,
    EVENTS,
    FACTS,
    FACTS_OF,
    ORDERED,
    PLAIN_FACTS,
    TOGETHER,
    Text,
    Time,
    typed,
)
from harness.protocol.events import VERSION, Event

# Version of a log -> what makes an event of the next version of one of this; None: they are the same.
MIGRATIONS: dict[int, Callable[[Event], Event] | None] = {1: None}
EXPECTED = {
    "missing": "is missing", "string_type": "expected text", "int_type": "expected a whole number",
    "float_type": "expected a number", "bool_type": "expected true or false", "list_type": "expected a list",
    "dict_type": "expected a mapping", "greater_than": "expected a number above {gt:g}",
    "greater_than_equal": "expected a number of at least {ge:g}", "less_than_equal": "expected at most {le:g}",
    "too_short": "expected at least {min_length} values", "too_long": "expected at most {max_length} values",
}  # fmt: skip


@cache
def _checker(program: str, kind: str) -> TypeAdapter[Any] | None:
    """Return what checks an event; None where the program does not know the kind."""
    fields = COMMON.get(kind, EVENTS.get(program, {}).get(kind))
    if fields is None:
        if program in EVENTS:
            return None
        fields = {}
    return TypeAdapter(typed({"event": Text, "time_s?": Time, **fields}))


@cache
def _fact_checker(program: str, name: str) -> TypeAdapter[Any] | None:
    if program not in EVENTS:
        return None
    fields = FACTS_OF.get(program, {}).get(name) or FACTS.get(name)
    if fields is not None:
        return TypeAdapter(typed(fields))
    if name not in PLAIN_FACTS:
        return None
    return TypeAdapter(PLAIN_FACTS[name], config=ConfigDict(strict=True, allow_inf_nan=False))


def upgrade(events: Sequence[Event]) -> Sequence[Event]:
    """Return the events of a log as this version writes them; raise ValueError for a version that is not known."""
    version = events[0].get("version", 1) if events else VERSION
    if type(version) is not int or version < 1:
        raise ValueError(f"version: {shortened(version)}, expected a whole number of at least 1")
    if version > VERSION:
        raise ValueError(f"written by a newer version ({version}; this harness reads up to {VERSION})")
    for migrate in filter(None, (MIGRATIONS[k] for k in range(version, VERSION))):
        events = [migrate(event) for event in events]
    return events


def find_fault(program: str, events: Sequence[Event]) -> tuple[int, str] | None:
    """Return the index of the first event that breaks its schema, and what is wrong with it."""
    checkers: dict[str, Any] = {}
    for k, event in enumerate(events):
        kind = event["event"]
        valid = checkers.get(kind)
        if valid is None:
            checker = _checker(program, kind)
            if checker is None:
                known = {*COMMON, *EVENTS[program]}
                return k, f"unknown event {shortened(kind)} of the program {program}{did_you_mean(kind, known)}"
            valid = checkers[kind] = checker.validator.isinstance_python
        if not valid(event):
            return k, f"{kind}: {_problem(_checker(program, kind), event)}"
        if kind == "fact":
            checker = _fact_checker(program, event["name"])
            if checker is not None and not checker.validator.isinstance_python(event["value"]):
                return k, f"fact {event['name']}: {_problem(checker, event['value'])}"
        elif kind in ORDERED and program in EVENTS:
            less, more = ORDERED[kind]
            if event[less] > event[more]:
                return k, f"{kind}: {less} is {event[less]:g}, expected at most {more}, {event[more]:g}"
            first, others = TOGETHER.get(kind, (less, ()))
            lost = next((name for name in others if event.get(name) is None), None)
            if lost is not None and event[first] is not None:
                return k, f"{kind}: {lost} is missing, and {first} is {event[first]:g}"
    return None


def describe_problem(error: ValidationError) -> str:
    """Return the first problem of a value: the field, what was expected, and what it holds."""
    first = error.errors(include_url=False)[0]
    # Members of a union stand in the path of a field under the names of their types.
    place = ".".join(str(part) for part in first["loc"] if not (isinstance(part, str) and "[" in part))
    expected = EXPECTED.get(first["type"], first["msg"]).format(**first.get("ctx", {}))
    if first["type"] == "missing":
        return f"{place} {expected}"
    return f"{place or 'value'} is {shortened(first['input'])}, {expected}"


def _problem(checker: TypeAdapter[Any] | None, value: Any) -> str:
    try:
        if checker is not None:
            checker.validate_python(value)
    except ValidationError as error:
        return describe_problem(error)
    return "not as expected"
