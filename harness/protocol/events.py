"""The event log of a case: JSON lines, each appended in one write.

Every line has the keys `event` (its kind) and `time_s` (Unix time). harness.protocol.records declares the events that
every program may write, and harness.protocol.programs declares those of a single program.
"""

from __future__ import annotations

import errno
import json
import operator
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Any

import msgspec
import orjson

from harness.protocol.errors import did_you_mean, shorten
from harness.protocol.records import COMMON_EVENTS, EventRecord, FactEvent, Facts, Stall, Start
from harness.protocol.registry import find_log_types
from harness.protocol.schema_errors import find_problem
from harness.protocol.upgrade import convert_event

EVENTS_FILE = "events.jsonl"
# A line that takes longer to write is followed by an event that says so.
MAX_WRITE_S = 5.0
VERSION = 3
Event = dict[str, Any]
# By version of a log: the function that converts an event of a program to the next version; None: nothing changes.
MIGRATIONS: dict[int, Callable[[str, Event], Event] | None] = {1: None, 2: convert_event}


class JsonLinesLog:
    """An append-only file of JSON lines, each written at once, so that only the last line can be truncated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ends_in_truncated_line = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, event: str, **fields: Any) -> None:
        """Append one line; fields must be plain JSON data."""
        line = json.dumps({"event": event, "time_s": round(time.time(), 6), **fields}, allow_nan=False)
        text = ("\n" * self._ends_in_truncated_line + line + "\n").encode()
        self._ends_in_truncated_line = os.write(self._handle, text) < len(text)
        if self._ends_in_truncated_line:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def sync(self) -> None:
        """Flush the written lines to the disk."""
        os.fsync(self._handle)

    def write_fact(self, name: str, value: Any) -> None:
        """Append a fact, which holds for the whole case."""
        self.write("fact", name=name, value=value)


class CaseLog:
    """The event log of one run of a program, which accepts only the events and facts that the program declares."""

    def __init__(self, path: Path, program: str) -> None:
        self.path = path
        self._program = program
        self._lines = JsonLinesLog(path)

    def write(self, event: EventRecord) -> None:
        """Append one event; raise ValueError if readers would refuse it."""
        self._append(msgspec.to_builtins(event, enc_hook=_to_plain_number))

    def record_facts(self, facts: Facts) -> None:
        """Append each fact that has a value."""
        types = find_log_types(self._program)
        if types is not None and not isinstance(facts, types.facts):
            raise ValueError(f"{type(facts).__name__} is not the type of the facts of the program {self._program}")
        for name, value in msgspec.to_builtins(facts, enc_hook=_to_plain_number).items():
            self._append({"event": "fact", "name": name, "value": value})

    def write_plain(self, event: Event) -> None:
        """Append an event that is plain data, such as a stored one; raise ValueError if readers would refuse it."""
        self._append(dict(event))

    def _append(self, event: Event) -> None:
        json.dumps(event, allow_nan=False)  # raises for non-finite numbers, which the check below would read as null
        invalid = find_invalid_event(self._program, [event])
        if invalid is not None:
            raise ValueError(invalid[1])
        started = time.monotonic()
        self._lines.write(**event)
        seconds = time.monotonic() - started
        if seconds > MAX_WRITE_S and event["event"] != "done":  # `done` is the last event
            self.write(Stall(seconds=round(seconds, 1)))

    def sync(self) -> None:
        """Flush the written lines to the disk."""
        self._lines.sync()


def _to_plain_number(value: Any) -> Any:
    """Convert a number of NumPy or PyTorch to one of Python."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def parse(lines: Iterable[str | bytes]) -> Iterator[Event]:
    """Yield the events among the lines; skip lines that are truncated or are not events."""
    for line in lines:
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if _is_event(event):
            yield event


def _is_event(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("event"), str)


def read_last_events(path: Path | str) -> list[Event]:
    """Return the events since the last `start`, since a repeated run of a case appends to the same log."""
    return read_last_run(path).events


def read(path: Path | str) -> Iterator[Event]:
    """Yield the events of a log, oldest first; none if there is no file."""
    lines = _read_lines(path)
    events = _parse_whole(lines)
    yield from parse(lines) if events is None else events


@dataclass(frozen=True)
class Run:
    """The last run of a log.

    Attributes:
        events: the events of the run.
        lines: the line number of each event.
        damaged_line: the number of the first damaged line, or None. The last line, and a line before a `start` or an
            `error`, do not count: they may be truncated because the process was killed or the disk was full.
        is_checked: whether the events were checked, and are valid for their program.
    """

    events: list[Event]
    lines: Sequence[int]
    damaged_line: int | None
    is_checked: bool = False


def read_last_run(path: Path | str, program: str | None = None) -> Run:
    """Read the last run of a log, and check it if possible; the run is empty if there is no file.

    Args:
        path: The log.
        program: The program whose types the events are checked against; None: no check.
    """
    lines = _read_lines(path)
    checked = _parse_checked(program, lines) if program is not None and find_log_types(program) else None
    events = _parse_whole(lines) if checked is None else checked
    if events is not None:
        last = len(events) - 1
        first = next((k for k in range(last, 0, -1) if events[k]["event"] == "start"), 0)
        return Run(events[first:], range(first + 1, len(events) + 1), None, checked is not None)
    events = []
    numbers: list[int] = []
    damaged_line = unreadable_line = None
    for number, event in _number_events(lines):
        if event is None:
            unreadable_line = unreadable_line or number
            continue
        if event["event"] == "start":
            events.clear()
            numbers.clear()
            damaged_line = None
        elif unreadable_line and event["event"] != "error":
            damaged_line = damaged_line or unreadable_line
        unreadable_line = None
        events.append(event)
        numbers.append(number)
    return Run(events, numbers, damaged_line)


def read_bytes(path: Path | str) -> bytes:
    """Return the content of a regular file; raise OSError for a pipe or a device, which might never end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        content = os.read(handle, status.st_size)
        while len(content) < status.st_size and (more := os.read(handle, status.st_size - len(content))):
            content += more
        return content
    finally:
        os.close(handle)


def _read_lines(path: Path | str) -> list[bytes]:
    try:
        return read_bytes(path).splitlines()
    except FileNotFoundError:
        return []


def _parse_whole(lines: list[bytes]) -> list[Event] | None:
    """Parse a whole log at once, twice as fast as line by line; return None if any line is not an event."""
    try:
        events = orjson.loads(b"[" + b",".join(lines) + b"]")
    except orjson.JSONDecodeError:
        return None
    return events if len(events) == len(lines) and all(map(_is_event, events)) else None


def _number_events(lines: list[bytes]) -> Iterator[tuple[int, Event | None]]:
    """Yield the number and the event of each line that is not empty; the event is None if the line is not an event."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, next(parse([line]), None)


@cache
def _get_event_types(program: str) -> dict[str, type[EventRecord]]:
    """Return the types of the events that a program may write, by name."""
    types = find_log_types(program)
    return {str(kind.__struct_config__.tag): kind for kind in (*COMMON_EVENTS, *(types.events if types else ()))}


@cache
def _get_fact_types(program: str) -> dict[str, Any]:
    """Return the types of the facts of a program, by name."""
    types = find_log_types(program)
    return {field.encode_name: field.type for field in msgspec.structs.fields(types.facts)} if types else {}


@cache
def _build_decoders(program: str) -> tuple[msgspec.json.Decoder[Any], dict[str, msgspec.json.Decoder[Any]]]:
    """Return the decoders of a program's log and of each of its facts, which check while they decode."""
    union: Any = reduce(operator.or_, _get_event_types(program).values())
    facts = {name: msgspec.json.Decoder(kind) for name, kind in _get_fact_types(program).items()}
    return msgspec.json.Decoder(list[union]), facts


def _parse_checked(program: str, lines: Sequence[bytes]) -> list[Event] | None:
    """Parse and check a whole log at once; return None if any line is invalid for the program."""
    text = b"[" + b",".join(lines) + b"]"
    decoder, facts = _build_decoders(program)
    try:
        for event in decoder.decode(text):
            if type(event) is FactEvent:
                facts[event.name].decode(event.value)
    except (msgspec.MsgspecError, KeyError):
        return None
    events: list[Event] = orjson.loads(text)
    return events if len(events) == len(lines) else None


def find_invalid_event(program: str, events: Sequence[Event]) -> tuple[int, str] | None:
    """Return the index and the problem of the first event that is invalid for the program, or None.

    For an unknown program, only the fields of the common events and the times of other events are checked.
    """
    for k, event in enumerate(events):
        problem = _find_event_problem(program, event)
        if problem is not None:
            return k, problem
    return None


def _find_event_problem(program: str, event: Event) -> str | None:
    """Return a message about an event that is invalid for the program, or None."""
    kind, types = event["event"], _get_event_types(program)
    if find_log_types(program) is None:
        # an event of an unknown program is checked as a start, for the type of its time
        known = types.get(kind, EventRecord).__struct_fields__
        event = {"event": kind, **{name: value for name, value in event.items() if name in known}}
        return _describe_mismatch(types.get(kind, Start), event if kind in types else event | {"event": "start"}, kind)
    if kind not in types:
        return f"unknown event {shorten(kind)} of the program {program}{did_you_mean(kind, types)}"
    problem = _describe_mismatch(types[kind], event, kind)
    if problem is not None or kind != "fact":
        return problem
    name, facts = event["name"], _get_fact_types(program)
    if name not in facts:
        return f"unknown fact {shorten(name)} of the program {program}{did_you_mean(name, facts)}"
    return _describe_mismatch(facts[name], event["value"], f"fact {name}")


def _describe_mismatch(kind: Any, value: Any, name: str) -> str | None:
    problem = find_problem(kind, value)
    return None if problem is None else f"{name}: {problem}"


def upgrade(events: Sequence[Event], program: str) -> Sequence[Event]:
    """Convert the events of a program's log to the current version; raise ValueError for an unknown version."""
    version = events[0].get("version", 1) if events else VERSION
    if type(version) is not int or version < 1:
        raise ValueError(f"version: {shorten(version)}, expected a whole number of at least 1")
    if version > VERSION:
        raise ValueError(f"written by a newer version ({version}; this harness reads up to {VERSION})")
    for migrate in filter(None, (MIGRATIONS[k] for k in range(version, VERSION))):
        events = [migrate(program, event) for event in events]
    return events
