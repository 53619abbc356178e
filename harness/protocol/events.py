"""The event log of a case: JSON lines, appended one whole line at a time. All that harness and reference share.

Every line holds `event` (what it is) and `time_s` (Unix time); harness.protocol.records has the events of every
program, harness.protocol.programs those of each.
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

from harness.protocol.errors import did_you_mean, shortened
from harness.protocol.records import COMMON_EVENTS, EventRecord, FactEvent, Facts, Start
from harness.protocol.registry import find_log_types
from harness.protocol.schema_errors import find_problem

FILE_NAME = "events.jsonl"
VERSION = 2
Event = dict[str, Any]
# Version of a log -> what makes an event of the next version of one of this; None: they are the same.
MIGRATIONS: dict[int, Callable[[Event], Event] | None] = {1: None}


class JsonLinesLog:
    """An append-only file of JSON lines; each reaches the file in one write, so that a kill tears at most the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, event: str, **fields: Any) -> None:
        """Append one line; fields must be plain JSON data."""
        line = json.dumps({"event": event, "time_s": round(time.time(), 6), **fields}, allow_nan=False)
        whole = ("\n" * self._torn + line + "\n").encode()
        self._torn = os.write(self._handle, whole) < len(whole)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def sync(self) -> None:
        """Have the disk hold what was written."""
        os.fsync(self._handle)

    def fact(self, name: str, value: Any) -> None:
        """Append something true of the whole case."""
        self.write("fact", name=name, value=value)


class CaseLog:
    """The event log of one run of a program: typed events and facts, and no other."""

    def __init__(self, path: Path, program: str) -> None:
        self.path = path
        self._program = program
        self._lines = JsonLinesLog(path)

    def write(self, event: EventRecord) -> None:
        """Append one event; raise ValueError where no reader would take it."""
        self._append(msgspec.to_builtins(event, enc_hook=_plain_number))

    def record_facts(self, facts: Facts) -> None:
        """Append each fact that has a value, as something true of the whole case."""
        types = find_log_types(self._program)
        if types is not None and not isinstance(facts, types.facts):
            raise ValueError(f"{type(facts).__name__} does not hold the facts of the program {self._program}")
        for name, value in msgspec.to_builtins(facts, enc_hook=_plain_number).items():
            self._append({"event": "fact", "name": name, "value": value})

    def replay(self, event: Event) -> None:
        """Append an event that was kept as plain data; raise ValueError where no reader would take it."""
        self._append(dict(event))

    def _append(self, event: Event) -> None:
        json.dumps(event, allow_nan=False)  # what checks an event takes a number that is not finite for null
        fault = find_fault(self._program, [event])
        if fault is not None:
            raise ValueError(fault[1])
        self._lines.write(**event)

    def sync(self) -> None:
        """Have the disk hold what was written."""
        self._lines.sync()


def _plain_number(value: Any) -> Any:
    """Return a number of numpy or torch as a plain one."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON data")


def parse(lines: Iterable[str | bytes]) -> Iterator[Event]:
    """Yield the events among the lines; a torn or foreign line is passed over."""
    for line in lines:
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if _is_event(event):
            yield event


def _is_event(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("event"), str)


def last_run(path: Path | str) -> list[Event]:
    """Return the events since the last `start`: a case run again by hand appends to the same log."""
    return read_run(path).events


def read(path: Path | str) -> Iterator[Event]:
    """Yield the events of a log, oldest first; none if there is no file."""
    lines = _lines(path)
    events = _parse_at_once(lines)
    yield from parse(lines) if events is None else events


@dataclass(frozen=True)
class Run:
    """The last run of a log: its events, the line number of each, and that of the first line that is damaged.

    What a kill or a full disk tears is no damage: the last line, and one before a `start` or an `error`. checked:
    whether the events are known to be as their program writes them.
    """

    events: list[Event]
    lines: Sequence[int]
    damaged: int | None
    checked: bool = False


def read_run(path: Path | str, program: str | None = None) -> Run:
    """Read the last run of a log, and check it where the program is known; nothing in it if there is no file."""
    lines = _lines(path)
    checked = _parse_checked(program, lines) if program is not None and find_log_types(program) else None
    events = _parse_at_once(lines) if checked is None else checked
    if events is not None:
        last = len(events) - 1
        first = next((k for k in range(last, 0, -1) if events[k]["event"] == "start"), 0)
        return Run(events[first:], range(first + 1, len(events) + 1), None, checked is not None)
    events = []
    numbers: list[int] = []
    damaged = torn = None
    for number, event in _numbered(lines):
        if event is None:
            torn = torn or number
            continue
        if event["event"] == "start":
            events.clear()
            numbers.clear()
            damaged = None
        elif torn and event["event"] != "error":
            damaged = damaged or torn
        torn = None
        events.append(event)
        numbers.append(number)
    return Run(events, numbers, damaged)


def read_bytes(path: Path | str) -> bytes:
    """Return the content of a regular file; raise OSError for a pipe or a device, which could have no end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        content = os.read(handle, about.st_size)
        while len(content) < about.st_size and (more := os.read(handle, about.st_size - len(content))):
            content += more
        return content
    finally:
        os.close(handle)


def _lines(path: Path | str) -> list[bytes]:
    try:
        return read_bytes(path).splitlines()
    except FileNotFoundError:
        return []


def _parse_at_once(lines: list[bytes]) -> list[Event] | None:
    """Parse a log as one piece, in half the time; return None if a line of it is no event."""
    try:
        events = orjson.loads(b"[" + b",".join(lines) + b"]")
    except orjson.JSONDecodeError:
        return None
    return events if len(events) == len(lines) and all(map(_is_event, events)) else None


def _numbered(lines: list[bytes]) -> Iterator[tuple[int, Event | None]]:
    """Yield each line that is not empty with its number, and its event; None where it holds none."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, next(parse([line]), None)


@cache
def _event_types(program: str) -> dict[str, type[EventRecord]]:
    """Return the types of the events that a program may write, by their names."""
    types = find_log_types(program)
    return {str(kind.__struct_config__.tag): kind for kind in (*COMMON_EVENTS, *(types.events if types else ()))}


@cache
def _fact_types(program: str) -> dict[str, Any]:
    """Return the types of the facts of a program, by their names."""
    types = find_log_types(program)
    return {field.encode_name: field.type for field in msgspec.structs.fields(types.facts)} if types else {}


@cache
def _decoders(program: str) -> tuple[msgspec.json.Decoder[Any], dict[str, msgspec.json.Decoder[Any]]]:
    """Return what decodes a log of a program, and each of its facts, and so checks them."""
    union: Any = reduce(operator.or_, _event_types(program).values())
    facts = {name: msgspec.json.Decoder(kind) for name, kind in _fact_types(program).items()}
    return msgspec.json.Decoder(list[union]), facts


def _parse_checked(program: str, lines: Sequence[bytes]) -> list[Event] | None:
    """Parse a log as one piece; return None if a line of it is not as the program writes it."""
    whole = b"[" + b",".join(lines) + b"]"
    decoder, facts = _decoders(program)
    try:
        for event in decoder.decode(whole):
            if type(event) is FactEvent:
                facts[event.name].decode(event.value)
    except (msgspec.MsgspecError, KeyError):
        return None
    events: list[Event] = orjson.loads(whole)
    return events if len(events) == len(lines) else None


def find_fault(program: str, events: Sequence[Event]) -> tuple[int, str] | None:
    """Return the index of the first event that is not as the program writes it, and what is wrong with it.

    Of a program that is not at hand, the events of every program are checked for their fields alone.
    """
    for k, event in enumerate(events):
        problem = _problem(program, event)
        if problem is not None:
            return k, problem
    return None


def _problem(program: str, event: Event) -> str | None:
    kind, types = event["event"], _event_types(program)
    if find_log_types(program) is None:
        known = types.get(kind, EventRecord).__struct_fields__
        event = {"event": kind, **{name: value for name, value in event.items() if name in known}}
        return _mismatch(types.get(kind, Start), event if kind in types else event | {"event": "start"}, kind)
    if kind not in types:
        return f"unknown event {shortened(kind)} of the program {program}{did_you_mean(kind, types)}"
    problem = _mismatch(types[kind], event, kind)
    if problem is not None or kind != "fact":
        return problem
    name, facts = event["name"], _fact_types(program)
    if name not in facts:
        return f"unknown fact {shortened(name)} of the program {program}{did_you_mean(name, facts)}"
    return _mismatch(facts[name], event["value"], f"fact {name}")


def _mismatch(kind: Any, value: Any, what: str) -> str | None:
    problem = find_problem(kind, value)
    return None if problem is None else f"{what}: {problem}"


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
