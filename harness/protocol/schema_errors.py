"""Messages about plain data that does not match a msgspec type, with the name of the invalid field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import orjson
from msgspec import inspect

from harness.protocol.errors import did_you_mean, shorten

MESSAGE = re.compile(r"(?P<problem>.*?)(?: - at `(?P<path>(?:key in )?\$.*)`)?", re.DOTALL)
STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>\d+)\]|(?P<any>\[\.\.\.\])")
KINDS = {
    "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "array": "a list",
    "object": "a mapping", "null": "null",
}  # fmt: skip
BOUND = re.compile(r"Expected `(?:int|float)(?: \| null)?` (?P<sign>>=|<=|>|<) (?P<bound>\S+)")
LENGTH = re.compile(r"Expected `array` of length (?P<sign>>= |<= |)(?P<length>\d+)")
BOUNDS = {
    ">": "a number above {:g}",
    ">=": "a number of at least {:g}",
    "<": "a number below {:g}",
    "<=": "at most {:g}",
}


def find_problem(kind: Any, value: Any) -> str | None:
    """Return a message about the first field of plain data that does not match a type, or None if all match."""
    try:
        msgspec.json.decode(orjson.dumps(value), type=kind)
    except msgspec.ValidationError as error:
        return _describe(*_narrow(error, kind, value), kind)
    return None


def _narrow(error: msgspec.ValidationError, kind: Any, value: Any) -> tuple[msgspec.ValidationError, Any]:
    """Reduce mappings to the key that causes the error, and return the narrower error and the reduced value.

    msgspec does not name the keys of mappings in its errors, so each key is tried alone.
    """
    steps = _parse_path(error)
    for end, step in enumerate(steps):
        if step is not ...:
            continue
        container = _get_at(value, steps[:end])
        for key in list(container) if len(container) > 1 else ():
            single = {key: container[key]}
            reduced = _replace_at(value, steps[:end], single)
            try:
                msgspec.json.decode(orjson.dumps(reduced), type=kind)
            except msgspec.ValidationError as narrower:
                value, error = reduced, narrower
                break
    return error, value


def _parse_path(error: msgspec.ValidationError) -> list[Any]:
    match = MESSAGE.fullmatch(str(error))
    path = (match["path"] if match else None) or ""
    return [m["name"] or (int(m["index"]) if m["index"] else ...) for m in STEP.finditer(path)]


def _get_at(value: Any, steps: list[Any]) -> Any:
    for step in steps:
        value = value[next(iter(value)) if step is ... else step]
    return value


def _replace_at(value: Any, steps: list[Any], inner: Any) -> Any:
    if not steps:
        return inner
    key = next(iter(value)) if steps[0] is ... else steps[0]
    copy = value.copy()
    copy[key] = _replace_at(value[key], steps[1:], inner)
    return copy


def _describe(error: msgspec.ValidationError, value: Any, kind: Any) -> str:
    match = MESSAGE.fullmatch(str(error))
    problem = match["problem"] if match else str(error)
    types = [inspect.type_info(kind)]
    path: list[str] = []
    for step in _parse_path(error):
        types = [inner for outer in types for inner in _iter_inner_types(outer, step)]
        key = next(iter(value)) if step is ... else step
        value = value.get(key) if isinstance(value, dict) else value[key]
        path.append(str(key))
    name = ".".join(path)
    if missing := re.fullmatch(r"Object missing required field `(.*)`", problem):
        return f"{'.'.join([*path, missing[1]])} is missing"
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", problem):
        known = [field.encode_name for t in types if isinstance(t, inspect.StructType) for field in t.fields]
        return f"unknown field {shorten('.'.join([*path, unknown[1]]))}{did_you_mean(unknown[1], known)}"
    if not problem.startswith(("Expected", "Invalid enum", "Number out")):
        return f"{name}: {problem}" if name else problem
    return f"{name or 'value'} is {shorten(value)}, expected {_describe_expected(problem, types)}"


def _iter_inner_types(kind: inspect.Type, step: Any) -> Iterator[inspect.Type]:
    """Yield the types that a value may have at a key or an index of a container."""
    match kind:
        case inspect.UnionType():
            for member in kind.types:
                yield from _iter_inner_types(member, step)
        case inspect.StructType():
            yield from (field.type for field in kind.fields if field.encode_name == step)
        case inspect.ListType():
            yield kind.item_type
        case inspect.TupleType() if isinstance(step, int):
            yield from kind.item_types[step : step + 1]
        case inspect.DictType():
            yield kind.value_type


def _describe_expected(problem: str, types: list[inspect.Type]) -> str:
    if bound := BOUND.match(problem):
        return BOUNDS[bound["sign"]].format(float(bound["bound"]))
    if length := LENGTH.match(problem):
        prefix = {">= ": "at least ", "<= ": "at most ", "": ""}[length["sign"]]
        return f"{prefix}{length['length']} value{'s' * (length['length'] != '1')}"
    if problem.startswith("Invalid enum"):
        members = [m for t in types for m in (t.types if isinstance(t, inspect.UnionType) else [t])]
        return "one of " + ", ".join(str(v) for m in members if isinstance(m, inspect.LiteralType) for v in m.values)
    if kinds := re.match(r"Expected `([^`]*)`", problem):
        words = [KINDS.get(word, word) for word in kinds[1].split(" | ") if word != "null"]
        return " or ".join(dict.fromkeys(words))
    return "a number of a possible size"
