"""The event log of a case: JSON lines, appended one whole line at a time. All that harness and reference share.

Every line holds `event` (what it is) and `time_s` (Unix time). Kinds in use:
    start      case, program, pid              progress  done, total, what
    sample     a raw measurement, never summarised
    fact       name, value: something true of the whole case (workload, model, machine ceilings, ...)
    done       the case ended well             error     message: it did not
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

FILE_NAME = "events.jsonl"
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
    found: list[Event] = []
    for event in read(path):
        if event["event"] == "start":
            found.clear()
        found.append(event)
    return found


def read(path: Path | str) -> Iterator[Event]:
    """The events of a log, oldest first; none if there is no file."""
    try:
        with open(path, "rb") as handle:
            content = handle.read()
    except FileNotFoundError:
        return
    lines = content.splitlines()
    try:  # a sound log as one piece takes half the time
        yield from filter(_is_event, orjson.loads(b"[" + b",".join(lines) + b"]"))
    except orjson.JSONDecodeError:
        yield from parse(lines)
