"""Plain data whose every part knows where it stands, and what is wrong with a part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from harness.protocol.errors import UsageError, did_you_mean
from harness.protocol.text import sanitize

Loc = tuple[int | str, ...]
LINE_SHOWN = 120
MOST_TOLD = 40
_texts: dict[Path, str] = {}


class Mark(NamedTuple):
    """Where something stands; line and column count from 1."""

    path: Path
    line: int
    column: int


class Problem(NamedTuple):
    """What is wrong, and where."""

    mark: Mark
    message: str

    def told(self) -> str:
        """`file:line:column: message`, and below it the line of the file."""
        path, line, column = self.mark
        return f"{path}:{line}:{column}: {self.message}{offending_line(path, line)}"


@dataclass(frozen=True)
class Document:
    """A mapping and the places of all its parts."""

    path: Path
    data: dict[str, Any]
    marks: Mapping[Loc, Mark]

    def mark(self, loc: Loc) -> Mark:
        """The place of the deepest part of loc that a file has."""
        for depth in range(len(loc), -1, -1):
            if loc[:depth] in self.marks:
                return self.marks[loc[:depth]]
        return Mark(self.path, 1, 1)

    def problem(self, loc: Loc, message: str) -> Problem:
        """The message at the place of a part."""
        return Problem(self.mark(loc), message)

    def error(self, loc: Loc, message: str) -> UsageError:
        """The problem as an exception."""
        return UsageError(self.problem(loc, message).told())

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
        replaced: set[Loc] = set()
        data = _merge(base.data, self.data, (), replaced)
        marks = {loc: m for loc, m in base.marks.items() if not _inside(loc, replaced)}
        marks |= {loc: m for loc, m in self.marks.items() if not loc or _inside(loc, replaced)}
        return Document(self.path, data, marks)

    def takes_nothing(self, base: Document) -> Iterator[Problem]:
        """Every null that should take away a key of the base which it does not have."""
        yield from self._nothing(self.data, base.data, ())

    def _nothing(self, top: Mapping[str, Any], base: Mapping[str, Any], at: Loc) -> Iterator[Problem]:
        for key, value in top.items():
            if value is None and key not in base:
                said = f"null takes a key away, and there is none{did_you_mean(key, base)}"
                yield self.problem((*at, key), f"{'.'.join(map(str, (*at, key)))}: {said}")
            elif isinstance(value, dict) and isinstance(base.get(key), dict):
                yield from self._nothing(value, base[key], (*at, key))


def _merge(base: dict[str, Any], top: dict[str, Any], at: Loc, replaced: set[Loc]) -> dict[str, Any]:
    """base with top laid over it; adds to replaced where top's values stand."""
    merged = dict(base)
    for key, value in top.items():
        loc = (*at, key)
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = _merge(below, value, loc, replaced)
            continue
        replaced.add(loc)
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def _inside(loc: Loc, places: set[Loc]) -> bool:
    return any(loc[:depth] in places for depth in range(1, len(loc) + 1))


def gather(checks: Iterable[Iterable[Problem]]) -> None:
    """Raise one UsageError with all the problems in the order of the file, each told once; the first MOST_TOLD."""
    found: dict[Problem, None] = {}
    for problem in (p for check in checks for p in check):
        found[problem] = None
        if len(found) > MOST_TOLD:
            break
    if found:
        told = [problem.told() for problem in sorted(islice(found, MOST_TOLD))]
        more = [f"{next(iter(found)).mark.path}: and more"] if len(found) > MOST_TOLD else []
        raise UsageError("\n".join([*told, *more]))


def remember(path: Path, text: str) -> None:
    """Keep the text of a file for the lines that messages show."""
    _texts[path] = text


def offending_line(path: Path, line: int) -> str:
    """`\\n    7 | the line`, or nothing if it is empty."""
    lines = _texts.get(path, "").split("\n")
    text = lines[line - 1].rstrip()[:LINE_SHOWN] if line <= len(lines) else ""
    return f"\n    {line} | {sanitize(text)}" if text.strip() else ""
