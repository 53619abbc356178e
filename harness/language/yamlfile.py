"""A YAML file as plain data in which every value still knows its file, line and column."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from harness.errors import UsageError

Loc = tuple[int | str, ...]
MAX_BYTES = 2_000_000
MAX_VALUES = 200_000
MAX_DEPTH = 40
LINE_SHOWN = 120


class Mark(NamedTuple):
    """Where something stands; line and column count from 1."""

    path: Path
    line: int
    column: int


@dataclass(frozen=True)
class Document:
    """A mapping and the places of all its parts."""

    path: Path
    data: dict[str, Any]
    marks: Mapping[Loc, Mark]

    def mark(self, loc: Loc) -> Mark:
        """The place of the deepest part of loc that a file has."""
        for depth in range(len(loc), 0, -1):
            if loc[:depth] in self.marks:
                return self.marks[loc[:depth]]
        return Mark(self.path, 1, 1)

    def problem(self, loc: Loc, message: str) -> str:
        """`file:line:column: message`, and below it the line of the file."""
        path, line, column = self.mark(loc)
        return f"{path}:{line}:{column}: {message}" + offending_line(path, line)

    def error(self, loc: Loc, message: str) -> UsageError:
        """The problem as an exception."""
        return UsageError(self.problem(loc, message))

    def part(self, loc: Loc) -> Document:
        """What stands at loc, as a document of its own."""
        data: Any = self.data
        for step in loc:
            data = data[step]
        return Document(self.path, data, {k[len(loc) :]: m for k, m in self.marks.items() if k[: len(loc)] == loc})

    def without(self, *keys: str) -> Document:
        """The same without some of its top-level keys."""
        return Document(
            self.path,
            {k: v for k, v in self.data.items() if k not in keys},
            {loc: m for loc, m in self.marks.items() if not loc or loc[0] not in keys},
        )

    def over(self, base: Document) -> Document:
        """This laid over a base: mappings are merged key by key, null takes a key away, all else is replaced."""
        marks = dict(base.marks)
        data = _merge(base.data, self.data, (), marks, self.marks)
        return Document(self.path, data, marks)


def _merge(base: dict[str, Any], top: dict[str, Any], at: Loc, marks: dict[Loc, Mark], new: Any) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        loc = (*at, key)
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        if not both:
            for old in [k for k in marks if k[: len(loc)] == loc]:
                del marks[old]
            marks.update({k: m for k, m in new.items() if k[: len(loc)] == loc})
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged[key], value, loc, marks, new) if both else value
    return merged


@cache
def _lines(path: Path) -> Sequence[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()


def offending_line(path: Path, line: int) -> str:
    """`\\n    7 | the line`, or nothing if it is empty."""
    lines = _lines(path)
    text = lines[line - 1].rstrip() if line <= len(lines) else ""
    shown = "".join(ch if ch.isprintable() else "?" for ch in text)
    return f"\n    {line} | {shown[:LINE_SHOWN]}" if shown.strip() else ""


def parse(path: Path) -> Document:
    """The file's top-level mapping as plain data; raises UsageError with file:line:column."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: larger than {MAX_BYTES // 1_000_000} MB, which no suite or system needs")
        tree = YAML(typ="rt").load(path.read_text(encoding="utf-8-sig"))
    except UsageError:
        raise
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = (error.problem or error.context or "not YAML").splitlines()[0]
        raise UsageError(f"{_place(path, mark)}: {said}{_text_at(path, mark)}") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deep") from None
    # A YAML library answers bytes that are no YAML with exceptions of every kind.
    except Exception as error:
        said = (str(error).splitlines() or ["not YAML"])[0]
        raise UsageError(f"{path}: cannot be read as YAML ({said})") from None
    if not isinstance(tree, CommentedMap):
        raise UsageError(f"{path}:1:1: expected a mapping of keys at the top of the file{offending_line(path, 1)}")
    return _Reader(path).document(tree)


def _place(path: Path, mark: Any) -> str:
    return f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)


def _text_at(path: Path, mark: Any) -> str:
    return offending_line(path, mark.line + 1) if mark else ""


class _Reader:
    """ruamel's tree -> plain data and marks, refusing what has no place in plain data."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.marks: dict[Loc, Mark] = {}
        self.values = 0

    def document(self, tree: CommentedMap) -> Document:
        return Document(self.path, self.plain(tree, ()), self.marks)

    def plain(self, node: Any, loc: Loc) -> Any:
        self.values += 1
        if self.values > MAX_VALUES or len(loc) > MAX_DEPTH:
            what = f"more than {MAX_VALUES} values" if self.values > MAX_VALUES else f"deeper than {MAX_DEPTH} levels"
            raise self.refuse(loc[:1], f"{what}, aliases written out")
        if isinstance(node, (CommentedMap, CommentedSeq)):
            if node.tag.value is not None and not str(node.tag.value).startswith("tag:yaml.org,2002:"):
                raise self.refuse(loc, f"tags have no meaning here, got {node.tag.value}")
            return dict(self.items(node, loc)) if isinstance(node, CommentedMap) else self.sequence(node, loc)
        return self.scalar(node, loc)

    def items(self, node: CommentedMap, loc: Loc) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if not isinstance(key, str):
                raise self.refuse(loc, f"keys are words, got {key!r}")
            try:
                line, column = node.lc.key(key)
            except (KeyError, TypeError):  # a key that `<<` brought in
                line, column = node.lc.line, node.lc.col
            self.marks[(*loc, key)] = Mark(self.path, line + 1, column + 1)
            yield str(key), self.plain(value, (*loc, str(key)))

    def sequence(self, node: CommentedSeq, loc: Loc) -> list[Any]:
        found = []
        for index, value in enumerate(node):
            line, column = node.lc.item(index)
            self.marks[(*loc, index)] = Mark(self.path, line + 1, column + 1)
            found.append(self.plain(value, (*loc, index)))
        return found

    def scalar(self, node: Any, loc: Loc) -> Any:
        if node is None or isinstance(node, bool):
            return node
        if isinstance(node, ScalarBoolean):
            return bool(node)
        for kind in (int, float, str):
            if isinstance(node, kind):
                value = kind(node)
                if isinstance(value, float) and not math.isfinite(value):
                    raise self.refuse(loc, f"expected a finite number, got {value}")
                if isinstance(value, int) and value.bit_length() > 63:
                    raise self.refuse(loc, "expected a number of at most 63 bits")
                return value
        said = getattr(getattr(node, "tag", None), "value", None) or type(node).__name__
        raise self.refuse(loc, f"expected a number, a word, a list or a mapping, got {said} (quote it if it is a word)")

    def refuse(self, loc: Loc, message: str) -> UsageError:
        return Document(self.path, {}, self.marks).error(loc, message)
