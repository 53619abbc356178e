"""The files of a case, read as this version writes them, or the reason why one of them cannot be read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from harness.protocol.case_schema import find_case_fault
from harness.protocol.errors import shortened
from harness.protocol.event_schema import find_fault, upgrade
from harness.protocol.events import FILE_NAME, Event, read_bytes, read_run


class Unreadable(Exception):
    """Why a case cannot be read: the file, the line and the field at fault."""


def read_case(folder: Path | str) -> dict[str, Any]:
    """Read case.json; raise Unreadable where it does not describe a case."""
    try:
        case = read_json(f"{folder}/case.json")
    except (FileNotFoundError, NotADirectoryError):
        raise Unreadable("not a folder of a case: there is no case.json") from None
    fault = find_case_fault(case)
    if fault is not None:
        raise Unreadable(f"case.json: {fault}")
    return dict(case)


def read_log(folder: Path | str, case: dict[str, Any]) -> Sequence[Event]:
    """Read the events of a case's last run; raise Unreadable where one of them is damaged or impossible."""
    run = read_run(f"{folder}/{FILE_NAME}")
    if run.damaged is not None:
        raise Unreadable(f"{FILE_NAME}:{run.damaged}: not an event; expected a JSON object with `event`")
    try:
        log = upgrade(run.events)
    except ValueError as error:
        raise Unreadable(f"{FILE_NAME}:{run.lines[0]}: {error}") from None
    fault = find_fault(case["program"], log)
    if fault is not None:
        raise Unreadable(f"{FILE_NAME}:{run.lines[fault[0]]}: {fault[1]}")
    if log and log[0]["event"] == "start":
        for key, name in (("program", "program"), ("case", "id")):
            theirs, ours = log[0].get(key), case.get(name)
            if theirs is not None and ours is not None and theirs != ours:
                what = f"{key} is {shortened(theirs)}, and case.json has {shortened(ours)}"
                raise Unreadable(f"{FILE_NAME}:{run.lines[0]}: the log of another case: {what}")
    return log


def read_json(path: str) -> Any:
    """Read a JSON file; raise Unreadable with the line at fault, or OSError."""
    try:
        return orjson.loads(read_bytes(path))
    except orjson.JSONDecodeError as error:
        raise Unreadable(f"{os.path.basename(path)}:{error.lineno}: not JSON: {error.msg}") from None
