"""The event log of a case: JSON lines, appended one whole line at a time. All that harness and reference share.

Every line holds `event` (what it is) and `time_s` (Unix time); event_schema has the fields of each. In use:
    start      version, case, program, pid             progress  done, total, what
    sample     a raw measurement, never summarised
    fact       name, value: something true of the whole case (workload, model, machine ceilings, ...)
    done       the case ended well             error     message: it did not
`start` tells the version of the log; a log without it is of version 1.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

FILE_NAME = "events.jsonl"
VERSION = 2
Event = dict[str, Any]


class EventLog:
    """An append-only event log; each line reaches the file in one write, so that a kill tears at most the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; fields must be plain JSON data."""
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


def parse(lines: Iterable[str | bytes]) -> Iterator[Event]:
    """The events among the lines; a torn or foreign line is passed over."""
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
    """The events since the last `start`: a case run again by hand appends to the same log."""
    return read_run(path).events


def read(path: Path | str) -> Iterator[Event]:
    """The events of a log, oldest first; none if there is no file."""
    lines = _lines(path)
    events = _parse_at_once(lines)
    yield from parse(lines) if events is None else events


@dataclass(frozen=True)
class Run:
    """The last run of a log: its events, the line number of each, and that of the first line that is damaged.

    What a kill or a full disk tears is no damage: the last line, and one before a `start` or an `error`.
    """

    events: list[Event]
    lines: Sequence[int]
    damaged: int | None


def read_run(path: Path | str) -> Run:
    """Read the last run of a log; nothing in it if there is no file."""
    lines = _lines(path)
    events = _parse_at_once(lines)
    if events is not None:
        last = len(events) - 1
        first = next((k for k in range(last, 0, -1) if events[k]["event"] == "start"), 0)
        return Run(events[first:], range(first + 1, len(events) + 1), None)
    found: list[Event] = []
    numbers: list[int] = []
    damaged = torn = None
    for number, event in _numbered(lines):
        if event is None:
            torn = torn or number
            continue
        if event["event"] == "start":
            found.clear()
            numbers.clear()
            damaged = None
        elif torn and event["event"] != "error":
            damaged = damaged or torn
        torn = None
        found.append(event)
        numbers.append(number)
    return Run(found, numbers, damaged)


def read_bytes(path: Path | str) -> bytes:
    """The content of a regular file; raises OSError for a pipe or a device, which could have no end."""
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
    """Parse a log as one piece, in half the time; None if a line of it is no event."""
    try:
        events = orjson.loads(b"[" + b",".join(lines) + b"]")
    except orjson.JSONDecodeError:
        return None
    return events if len(events) == len(lines) and all(map(_is_event, events)) else None


def _numbered(lines: list[bytes]) -> Iterator[tuple[int, Event | None]]:
    """Each line that is not empty with its number, and its event; None where it holds none."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, next(parse([line]), None)
