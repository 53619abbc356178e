"""Conversion of logs, cases and checkpoint notes of older versions to the present names, and hints at them."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

from harness.protocol.renamed import CASE_KEYS, PARAMETERS, RECORDS, YAML_KEYS, YAML_VALUES, Group, Names, Record


@cache
def _collect_records(program: str) -> dict[str, Record]:
    """Return what has a new name in the log of a program, by old kind of the event or `fact NAME`."""
    records = [r for r in RECORDS if not r.programs] + [r for r in RECORDS if program in r.programs.split()]
    merged: dict[str, Record] = {}
    for record in records:
        other = merged.get(record.old, Record(program, record.old))
        new, fields, values = (
            record.new or other.new,
            {**other.fields, **record.fields},
            {**other.values, **record.values},
        )
        merged[record.old] = Record(program, record.old, new, fields, values)
    present = {f"fact {r.new}" if r.old.startswith("fact ") else r.new: r for r in merged.values() if r.new}
    return {**present, **merged}


def convert_event(program: str, event: dict[str, Any]) -> dict[str, Any]:
    """Return an event of any older version with the present names."""
    records, kind = _collect_records(program), event["event"]
    if kind == "fact":
        record = records.get(f"fact {event.get('name')}")
        if record is None or "value" not in event:
            return event
        return {**event, "name": record.new or event["name"], "value": _rename(event["value"], record)}
    record = records.get(kind)
    if record is None:
        return event
    return {**_rename(event, record), "event": record.new or kind}


def _rename(value: Any, names: Record | Group, values: Names | None = None) -> Any:
    """Return plain data with the present names; a field whose present name is in use keeps its own."""
    if isinstance(value, dict):
        fields = names.fields if isinstance(names, Record) else names.names
        present = {}
        for old, inner in value.items():
            new = fields.get(old, old)
            name = old if new in value else new
            present[name] = _rename(inner, names, names.values.get(name))
        return present
    if isinstance(value, list):
        return [_rename(inner, names, values) for inner in value]
    return values.get(value, value) if values and isinstance(value, str) else value


def convert_parameters(program: str, parameters: Any) -> Any:
    """Return the parameters of a case of any older version with the present names."""
    group = PARAMETERS.get(program)
    return parameters if group is None else _rename(parameters, group)


def convert_case(case: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a case.json of any older version with the present names."""
    case = {name if (name := CASE_KEYS.get(key, key)) not in case else key: value for key, value in case.items()}
    program = str(case.get("program"))
    for key in ("parameters", "axis_values"):
        if key in case:
            case[key] = convert_parameters(program, case[key])
    for key in ("sanity", "performance"):
        if isinstance(case.get(key), list):
            case[key] = [_convert_check(program, row) if isinstance(row, dict) else row for row in case[key]]
    return case


def _convert_check(program: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a check of events, or a figure of merit, with the present names of what it reads."""
    kind, where = row.get("event"), row.get("where")
    name = where.get("name") if kind == "fact" and isinstance(where, dict) else None
    record = _collect_records(program).get(f"fact {name}" if name else str(kind))
    if record is None:
        return row
    row = {**row, "event": record.new or kind} if name is None else row
    if isinstance(where, dict):
        where = {_convert_path(at, record): _convert_value(at, value, record) for at, value in where.items()}
        row["where"] = where if name is None else {**where, "name": record.new or name}
    if isinstance(row.get("field"), str):
        row["field"] = _convert_path(row["field"], record)
        if "equals" in row:
            row["equals"] = _convert_value(row["field"], row["equals"], record)
    return row


def _convert_path(path: str, record: Record) -> str:
    return ".".join(record.fields.get(part, part) for part in path.split("."))


def _convert_value(path: str, value: Any, record: Record) -> Any:
    values = record.values.get(_convert_path(path, record).rpartition(".")[2], {})
    return values.get(value, value) if isinstance(value, str) else value


def find_new_name(old: str, known: Collection[str]) -> str | None:
    """Return which of the known names of parameters or keys an old name has now, or None.

    Programs may differ: the answer is from the table that has the most of the known names.
    """
    tables = [YAML_KEYS, *(group.names for group in PARAMETERS.values())]
    tables = [names for names in tables if names.get(old) in known]
    return max(tables, key=lambda names: len(set(names.values()) & set(known)))[old] if tables else None


def find_new_value(old: object, known: Collection[str]) -> str | None:
    """Return which of the known values of a parameter an old value has now, or None."""
    tables = [YAML_VALUES, *(table for group in PARAMETERS.values() for table in group.values.values())]
    return next((table[old] for table in tables if isinstance(old, str) and table.get(old) in known), None)


def describe_renamed(old: str, known: Collection[str]) -> str | None:
    """Return the message for a key with an old name, or None if it never was the name of one that is known."""
    new = find_new_name(old, known)
    return None if new is None else f"key {old!r} is now called {new!r}"


def convert_notes(notes: dict[str, Any]) -> dict[str, Any]:
    """Return the notes of a checkpoint of any older version with the present names."""
    notes = dict(notes)
    if "held_out" in notes and "test_errors" not in notes:
        event = convert_event("train", {"event": "fact", "name": "held_out", "value": notes.pop("held_out")})
        notes[event["name"]] = event["value"]
    if isinstance(notes.get("training"), dict):
        notes["training"] = convert_parameters("train", notes["training"])
    return notes
