"""No name is a bare participle or another word that says nothing to a reader, and docstrings are sentences."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import inspect
from ruamel.yaml import YAML

from harness.experiments.tables import build_results
from harness.protocol.events import COMMON_EVENTS
from harness.protocol.registry import IMPORTED, PROGRAMS, find_log_types
from tests.conftest import ROOT

BANNED = {
    "asked", "beside", "drawn", "found", "given", "held", "kept", "made", "meant", "own", "said", "says", "seen",
    "shown", "taken", "tells", "told", "together", "wanted",
}  # fmt: skip
SHORTEST_SENTENCE = 3


def test_no_name_is_a_bare_participle() -> None:
    names = [
        f"{location}: {name}"
        for path in list_sources("harness", "tests")
        for name, location in iter_defined_names(path)
        if name in BANNED
    ]
    assert not names, "\n".join(names)


@pytest.mark.parametrize("program", [*PROGRAMS, *IMPORTED])
def test_no_event_or_field_is_a_bare_participle(program: str) -> None:
    types = find_log_types(program)
    assert types is not None
    names = {
        name
        for kind in (*COMMON_EVENTS, *types.events, types.facts)
        for name in list_encoded_names(inspect.type_info(kind))
    }
    assert not names & BANNED


def test_no_column_is_a_bare_participle() -> None:
    tables = build_results([]).tables()
    assert {str(column) for table in tables.values() for column in table} & BANNED == set()
    assert not tables.keys() & BANNED


@pytest.mark.parametrize("folder", ["suites", "systems", "reports/claims"])
def test_no_key_of_yaml_is_a_bare_participle(folder: str) -> None:
    names = {
        f"{path.name}: {name}"
        for path in sorted((ROOT / folder).glob("*.yaml"))
        for name in list_keys(YAML(typ="safe").load(path.read_text(encoding="utf-8")))
        if name in BANNED
    }
    assert not names


def list_encoded_names(kind: inspect.Type) -> Iterator[str]:
    """Yield the tags and field names that a type and its fields have in JSON."""
    match kind:
        case inspect.StructType():
            if kind.tag is not None:
                yield str(kind.tag)
            for field in kind.fields:
                yield field.encode_name
                yield from list_encoded_names(field.type)
        case inspect.UnionType():
            for member in kind.types:
                yield from list_encoded_names(member)
        case inspect.ListType():
            yield from list_encoded_names(kind.item_type)
        case inspect.DictType():
            yield from list_encoded_names(kind.value_type)


def list_keys(node: Any) -> Iterator[str]:
    """Yield every key of nested mappings and lists."""
    if isinstance(node, dict):
        yield from map(str, node)
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from list_keys(child)


def test_docstrings_are_sentences() -> None:
    incomplete_docstrings = []
    for path in list_sources("harness"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
                summary = text.split("\n\n")[0]
                if len(summary.split()) < SHORTEST_SENTENCE or summary.rstrip()[-1] not in ".:?!":
                    incomplete_docstrings.append(f"{path}:{getattr(node, 'lineno', 1)}: {summary}")
    assert not incomplete_docstrings, "\n".join(incomplete_docstrings)


def list_sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def iter_defined_names(path: Path) -> Iterator[tuple[str, str]]:
    """Yield every name that a file defines (functions, parameters, variables) with its location."""
    for node in ast.walk(parse(path)):
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                yield node.name, f"{path}:{node.lineno}"
            case ast.arg():
                yield node.arg, f"{path}:{node.lineno}"
            case ast.Name(ctx=ast.Store()):
                yield node.id, f"{path}:{node.lineno}"
