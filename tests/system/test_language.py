"""Names are the field's words: verb phrases for functions, nouns for what they return; no bare participles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

BANNED = {
    "asked", "beside", "drawn", "found", "given", "held", "kept", "made", "meant", "own", "said", "says", "seen",
    "shown", "taken", "tells", "told", "together", "wanted",
}  # fmt: skip
SHORTEST_SENTENCE = 3


def test_no_name_is_a_bare_participle() -> None:
    names = [f"{place}: {name}" for path in list_sources("harness", "tests") for name, place in defined_names(path)
             if name in BANNED]  # fmt: skip
    assert not names, "\n".join(names)


def test_docstrings_are_sentences() -> None:
    faults = []
    for path in list_sources("harness"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
                summary = text.split("\n\n")[0]
                if len(summary.split()) < SHORTEST_SENTENCE or summary.rstrip()[-1] not in ".:?!":
                    faults.append(f"{path}:{getattr(node, 'lineno', 1)}: {summary}")
    assert not faults, "\n".join(faults)


def list_sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def defined_names(path: Path) -> Iterator[tuple[str, str]]:
    """Yield every name that a file defines (functions, parameters, variables) with its place."""
    for node in ast.walk(parse(path)):
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                yield node.name, f"{path}:{node.lineno}"
            case ast.arg():
                yield node.arg, f"{path}:{node.lineno}"
            case ast.Name(ctx=ast.Store()):
                yield node.id, f"{path}:{node.lineno}"
