"""Structures deep inside JSON files that are too large to load, found by their brackets a chunk at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson
from ase.data import atomic_numbers
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.datasets.parsing.constants import KBAR_EV_PER_A3
from harness.reference.datasets.parsing.structure_builder import InvalidStructure, first_line, require_key
from harness.reference.errors import InputError

CHUNK_BYTES = 4 << 20
MAX_VALUE_BYTES = 256 << 20  # bytes of a value; a larger one means that the file is of another layout
MAX_GAP_BYTES = 64 << 10  # bytes kept of what stands between values
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


class JsonScanner:
    """Finds every object or array that lies inside `depth` others, in order, in text that is fed to it in chunks.

    level: how deep the first byte lies. offset: where in the file it stands. longest: bytes that a value may have (from
    compressed files a few bytes unfold to many). Memory: one chunk and one value.
    """

    def __init__(self, where: str, depth: int, *, level: int = 0, offset: int = 0, longest: int | None = None) -> None:
        self.where, self.depth, self.level, self.offset = where, depth, level, offset
        self.longest = MAX_VALUE_BYTES if longest is None else longest
        self._held = b""  # from the end of the last value on
        self._scanned = 0
        self._in_string = False
        self._start: int | None = None  # of the value that is open, in _held

    def feed(self, chunk: bytes) -> Iterator[Value]:
        """Yield the values that end in this chunk; raises InputError where more is closed than was opened."""
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
            cut = max(cut, self._scanned - MAX_GAP_BYTES)
        elif len(self._held) - self._start > self.longest:
            raise InputError(
                f"{self.where}: the value at byte {self.offset + self._start} does not end; another layout?"
            )
        self._drop(cut)

    def finish(self) -> bytes:
        """Return the rest after the last value; raises InputError where a bracket or string is still open."""
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
        """Return (position, opens) of the brackets that begin and end values, and update the state."""
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


def decode_json(text: bytes) -> Any:
    """Decode a value, NaN and Infinity included; raises InvalidStructure."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidStructure("corrupt", f"not JSON ({first_line(error)})") from None


def _trailing_backslashes(text: bytes) -> int:
    return len(text) - len(text.rstrip(b"\\"))


def iter_values(chunks: Iterable[bytes], scanner: JsonScanner) -> Iterator[Value]:
    """Yield the values of a whole text; raises InputError where it is not JSON or truncated."""
    first = True
    for chunk in chunks:
        if first and chunk.lstrip()[:1] not in (b"{", b"["):
            raise InputError(f"{scanner.where}: not JSON, begins with {chunk.lstrip()[:20]!r}")
        first = False
        yield from scanner.feed(chunk)
    if first:
        raise InputError(f"{scanner.where}: empty")
    scanner.finish()


def read_crystal(structure: Any) -> tuple[list[int], Array, Array, list[bool]]:
    """Return (atomic numbers [n], positions [n, 3], cell [3, 3], periodic [3]); raises InvalidStructure."""
    lattice = require_key(structure, "lattice")
    cell = np.asarray(require_key(lattice, "matrix"), dtype=np.float64)
    sites = require_key(structure, "sites")
    numbers = [_element(site) for site in sites]
    if sites and "xyz" in sites[0]:
        positions = np.array([site["xyz"] for site in sites], dtype=np.float64)
    else:
        positions = np.array([require_key(site, "abc") for site in sites], dtype=np.float64) @ cell
    return numbers, positions, cell, list(lattice.get("pbc", (True, True, True)))


def _element(site: Any) -> int:
    species = require_key(site, "species")
    if len(species) != 1 or abs(species[0].get("occu", 1) - 1) > 1e-6:
        raise InvalidStructure("disorder", "a site with more than one element, or partly occupied")
    symbol = str(require_key(species[0], "element"))
    number = atomic_numbers.get(symbol.rstrip("0123456789+-"))
    if not number:
        raise InvalidStructure("atomic number", f"{symbol!r} is not an element")
    return int(number)


def read_site_forces(structure: Any) -> Array | None:
    """Return the forces kept with the sites, [n, 3]; None unless every site has them."""
    forces = [(site.get("properties") or {}).get("forces") for site in structure["sites"]]
    return None if any(f is None for f in forces) else np.array(forces, dtype=np.float64)


def list_site_names(structure: Any) -> list[str]:
    """Return the names of the properties that the first site has."""
    sites = structure["sites"]
    return list(sites[0].get("properties") or {}) if sites else []


def convert_stress_from_kbar(stress: Any) -> Array | None:
    """Convert VASP's stress (kbar, compression positive) to eV/angstrom^3, tension positive."""
    return None if stress is None else -KBAR_EV_PER_A3 * np.asarray(stress, dtype=np.float64)
