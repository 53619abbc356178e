"""Objects deep inside a JSON file that is too large to load: found by their brackets, a chunk at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from harness.reference.datasets.parsing.structure_builder import Unfit, one_line
from harness.reference.errors import InputError

CHUNK = 4 << 20
LONGEST = 256 << 20  # bytes of a value; a larger one means that the file is of another layout
BETWEEN = 64 << 10  # bytes kept of what stands between values
_QUOTE, _OPEN, _CLOSE = 1, 2, 3
_CLASS = np.zeros(256, dtype=np.uint8)
_CLASS[list(b'"')] = _QUOTE
_CLASS[list(b"{[")] = _OPEN
_CLASS[list(b"}]")] = _CLOSE
_ESCAPE = re.compile(rb"\\.", re.DOTALL)


class Value(NamedTuple):
    """An object or array: what stands before it (since the last one), its own bytes, where it begins."""

    before: bytes
    text: bytes
    offset: int


class Scanner:
    """Finds every object or array that lies inside `depth` others, in order, in text that is fed to it in chunks.

    level: how deep the first byte lies. offset: where in the file it stands. longest: bytes that a value may have (from
    compressed files a few bytes unfold to many). Memory: one chunk and one value.
    """

    def __init__(self, where: str, depth: int, *, level: int = 0, offset: int = 0, longest: int | None = None) -> None:
        self.where, self.depth, self.level, self.offset = where, depth, level, offset
        self.longest = LONGEST if longest is None else longest
        self._held = b""  # from the end of the last value on
        self._scanned = 0
        self._in_string = False
        self._start: int | None = None  # of the value that is open, in _held

    def feed(self, chunk: bytes) -> Iterator[Value]:
        """The values that end in this chunk; raises InputError where more is closed than was opened."""
        self._held += chunk
        stop = len(self._held) - _trailing_backslashes(self._held) % 2
        edges = self._edges(self._held[self._scanned : stop])
        base, self._scanned = self._scanned, stop
        cut = 0
        for position, opens in edges:
            at = base + position
            if opens:
                self._start = at
            elif self._start is not None:
                yield Value(self._held[cut : self._start], self._held[self._start : at + 1], self.offset + self._start)
                cut, self._start = at + 1, None
        if self._start is None:
            cut = max(cut, self._scanned - BETWEEN)
        elif len(self._held) - self._start > self.longest:
            raise InputError(
                f"{self.where}: the value at byte {self.offset + self._start} does not end; another layout?"
            )
        self._drop(cut)

    def finish(self) -> bytes:
        """What is left after the last value; raises InputError where something is still open."""
        if self.level > 0 or self._in_string:
            raise InputError(f"{self.where}: truncated, the JSON ends inside {self.level} brackets")
        return self._held

    def _drop(self, cut: int) -> None:
        self._held = self._held[cut:]
        self._scanned -= cut
        self.offset += cut
        if self._start is not None:
            self._start -= cut

    def _edges(self, text: bytes) -> list[tuple[int, bool]]:
        """(position, opens) of the brackets that begin and end values, and the state after the text."""
        if b"\\" in text:
            text = _ESCAPE.sub(b"  ", text)
        kinds = _CLASS[np.frombuffer(text, dtype=np.uint8)]
        marks = np.flatnonzero(kinds)
        kinds = kinds[marks]
        quotes = np.cumsum(kinds == _QUOTE) + self._in_string
        brackets = (kinds != _QUOTE) & (quotes % 2 == 0)
        self._in_string = bool(quotes[-1] % 2) if len(quotes) else self._in_string
        marks, opens = marks[brackets], kinds[brackets] == _OPEN
        levels: NDArray[np.int64] = self.level + np.cumsum(np.where(opens, 1, -1))
        if len(levels):
            self.level = int(levels[-1])
            if levels.min() < 0:
                raise InputError(f"{self.where}: not JSON, more brackets are closed than opened")
        wanted = np.where(opens, levels == self.depth + 1, levels == self.depth)
        return list(zip(marks[wanted].tolist(), opens[wanted].tolist(), strict=True))


def decoded(text: bytes) -> Any:
    """A value as Python objects, NaN and Infinity included; raises Unfit."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unfit("corrupt", f"not JSON ({one_line(error)})") from None


def _trailing_backslashes(text: bytes) -> int:
    return len(text) - len(text.rstrip(b"\\"))


def values(chunks: Iterable[bytes], scanner: Scanner) -> Iterator[Value]:
    """The values of a whole text; raises InputError where it is no JSON or ends too early."""
    first = True
    for chunk in chunks:
        if first and chunk.lstrip()[:1] not in (b"{", b"["):
            raise InputError(f"{scanner.where}: not JSON, begins with {chunk.lstrip()[:20]!r}")
        first = False
        yield from scanner.feed(chunk)
    if first:
        raise InputError(f"{scanner.where}: empty")
    scanner.finish()
