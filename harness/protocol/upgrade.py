"""Conversion of logs, cases and notes of checkpoints from older versions to new names, and messages about old names."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from functools import cache, lru_cache
from typing import Any

from harness.protocol.renamed import (
    CASE_KEYS,
    CHECK_KEYS,
    CLAIM_KEYS,
    FUNCTIONS,
    PARAMETERS,
    RECORDS,
    SETTINGS,
    SUFFIXES,
    SUITE_KEYS,
    SUITE_NAMES,
    SYSTEM_KEYS,
    YAML_VALUES,
    Names,
    Parameters,
    Record,
)


@cache
def _collect_records(program: str) -> dict[str, Record]:
    """Return the renamed parts of the events and facts of a program, by old and by new `Record.old`."""
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
    by_new_name = {f"fact {r.new}" if r.old.startswith("fact ") else r.new: r for r in merged.values() if r.new}
    return {**by_new_name, **merged}


def convert_event(program: str, event: dict[str, Any]) -> dict[str, Any]:
    """Return an event of any older version with the new names."""
    kind = event["event"]
    if kind == "fact":
        if not isinstance(event.get("name"), str) or "value" not in event:
            return event
        name, value = convert_fact(program, event["name"], event["value"])
        return {**event, "name": name, "value": value}
    record = _find_record(program, kind)
    return {**_rename(event, record), "event": record.new or kind}


def convert_fact(program: str, name: str, value: Any) -> tuple[str, Any]:
    """Return the name and the value of a fact of any older version with the new names."""
    record = _find_record(program, f"fact {name}")
    return record.new or name, _rename(value, record)


def _find_record(program: str, old: str) -> Record:
    """Return the renamed parts of an event, or of a fact if `old` is `fact NAME`."""
    return _collect_records(program).get(old) or Record(program, old)


def _find_field(old: str, fields: Names) -> str:
    """Return the new name of a field."""
    return fields.get(old) or _replace_suffix(old)


@lru_cache(4096)
def _replace_suffix(old: str) -> str:
    """Return the name of a field with its new suffix, or the unchanged name."""
    return next((old.removesuffix(end) + new for end, new in SUFFIXES.items() if old.endswith(end)), old)


def _rename(value: Any, names: Record | Parameters, values: Names | None = None) -> Any:
    """Return plain data with the new names; a field keeps its old name if another field has its new name."""
    if isinstance(value, dict):
        fields = names.fields if isinstance(names, Record) else names.names
        converted = {}
        for old, inner in value.items():
            new = _find_field(old, fields)
            name = old if new in value else new
            converted[name] = _rename(inner, names, names.values.get(name))
        return converted
    if isinstance(value, list):
        return [_rename(inner, names, values) for inner in value]
    return values.get(value, value) if values and isinstance(value, str) else value


def convert_parameters(program: str, parameters: Any) -> Any:
    """Return the parameters of a case of any older version with the new names."""
    group = PARAMETERS.get(program)
    return parameters if group is None else _rename(parameters, group)


def convert_case(case: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a case.json of any older version with the new names."""
    case = {name if (name := CASE_KEYS.get(key, key)) not in case else key: value for key, value in case.items()}
    program = str(case.get("program"))
    for key in ("parameters", "axis_values"):
        if key in case:
            case[key] = convert_parameters(program, case[key])
    if isinstance(case.get("settings"), dict):
        case["settings"] = {SETTINGS.get(name, name): value for name, value in case["settings"].items()}
    for key in ("sanity", "performance"):
        if isinstance(case.get(key), list):
            case[key] = [_convert_check(program, row) if isinstance(row, dict) else row for row in case[key]]
    if isinstance(case.get("sanity"), list):
        case["sanity"] = [_convert_bounds(row) if isinstance(row, dict) else row for row in case["sanity"]]
    return case


def _convert_bounds(row: dict[str, Any]) -> dict[str, Any]:
    """Return a sanity check with inclusive bounds, which are equivalent to the old exclusive ones."""
    row = dict(row)
    for name, limit in (("above", math.inf), ("below", -math.inf)):
        if isinstance(row.get(name), (int, float)):
            row[name] = math.nextafter(row[name], limit)
    return {CHECK_KEYS.get(key, key): value for key, value in row.items()}


def _convert_check(program: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a sanity check or a figure of merit with the new names of its event, field and values."""
    kind, where = row.get("event"), row.get("where")
    name = where.get("name") if kind == "fact" and isinstance(where, dict) else None
    record = _find_record(program, f"fact {name}" if name else str(kind))
    row = {**row, "event": record.new} if record.new and name is None else dict(row)
    if isinstance(where, dict):
        where = {_convert_path(at, record): _convert_value(at, value, record) for at, value in where.items()}
        row["where"] = where if name is None else {**where, "name": record.new or name}
    if isinstance(row.get("field"), str):
        row["field"] = _convert_path(row["field"], record)
        if "equals" in row:
            row["equals"] = _convert_value(row["field"], row["equals"], record)
    return row


def _convert_path(path: str, record: Record) -> str:
    """Return the path of a field, such as `model.config`, with the new names."""
    return ".".join(_find_field(part, record.fields) for part in path.split("."))


def _convert_value(path: str, value: Any, record: Record) -> Any:
    """Return the new value of a field, or the unchanged value."""
    values = record.values.get(_convert_path(path, record).rpartition(".")[2], {})
    return values.get(value, value) if isinstance(value, str) else value


def list_old_names(program: str, row: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the key path and the message for each old name of an event, a field or a value in a check of a suite."""
    converted = _convert_check(program, dict(row))
    for key, kind in (("event", "event"), ("field", "field"), ("equals", "value")):
        if row.get(key) != converted.get(key):
            yield (key,), f"{kind} {row[key]!r} is now called {converted[key]!r}"
    where = row["where"] if isinstance(row.get("where"), dict) else {}
    name = {"name": where["name"]} if "name" in where else {}
    for old, old_value in where.items():
        converted_where = _convert_check(program, {**row, "where": {**name, old: old_value}})["where"]
        new, value = list(converted_where.items())[-1]
        if old != new:
            yield ("where", old), f"field {old!r} is now called {new!r}"
        elif old_value != value:
            yield ("where", old), f"{old_value!r} is now called {value!r}"


def find_new_name(old: str, known: Collection[str]) -> str | None:
    """Return the new name of a parameter, key, setting or function if it is one of the known names, otherwise None.

    The old name may have several new names: the table that shares the most names with the known names decides.
    """
    tables = [
        SUITE_KEYS,
        SYSTEM_KEYS,
        CLAIM_KEYS,
        FUNCTIONS,
        SETTINGS,
        SUITE_NAMES,
        *(group.names for group in PARAMETERS.values()),
    ]
    tables = [names for names in tables if names.get(old) in known]
    return max(tables, key=lambda names: len(set(names.values()) & set(known)))[old] if tables else None


def find_new_value(old: object, known: Collection[str]) -> str | None:
    """Return the new value of a parameter for an old value if it is one of the known values, otherwise None."""
    tables = [YAML_VALUES, *(table for group in PARAMETERS.values() for table in group.values.values())]
    return next((table[old] for table in tables if isinstance(old, str) and table.get(old) in known), None)


def describe_renamed(old: str, known: Collection[str]) -> str | None:
    """Return a message with the new name of a key, or None if the key is not an old name of a known key."""
    new = find_new_name(old, known)
    return None if new is None else f"key {old!r} is now called {new!r}"


def convert_notes(notes: dict[str, Any]) -> dict[str, Any]:
    """Return the notes of a checkpoint of any older version with the new names."""
    notes = dict(
        convert_fact("train", name, value) if name in ("held_out", "test_errors") else (name, value)
        for name, value in notes.items()
    )
    if isinstance(notes.get("training"), dict):
        notes["training"] = convert_parameters("train", notes["training"])
    return notes
