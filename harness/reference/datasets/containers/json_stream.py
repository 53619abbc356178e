"""Read nested values from JSON files that are too large to load, by a scanner that follows brackets."""

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
from harness.reference.datasets.parsing.structure_builder import InvalidStructure, require_key
from harness.reference.errors import InputError, get_first_line

CHUNK_BYTES = 4 << 20
MAX_VALUE_BYTES = 256 << 20  # a larger value means that the file has another layout
MAX_GAP_BYTES = 64 << 10  # number of bytes between two values that are retained
_QUOTE, _OPEN, _CLOSE = 1, 2, 3
_CLASS = np.zeros(256, dtype=np.uint8)
_CLASS[list(b'"')] = _QUOTE
_CLASS[list(b"{[")] = _OPEN
_CLASS[list(b"}]")] = _CLOSE
_ESCAPE = re.compile(rb"\\.", re.DOTALL)


class Value(NamedTuple):
    """An object or array in a JSON file.

    Attributes:
        before: The text between the previous value and this one.
        text: The text of the value.
        offset: The offset of the value in the file.
    """

    before: bytes
    text: bytes
    offset: int


class JsonScanner:
    """A scanner of text in chunks that finds every object or array that is nested in `depth` others.

    It holds no more than one chunk and one value in memory.

    Args:
        where: The name of the file in messages.
        depth: The number of objects and arrays around the values.
        level: The nesting level of the first byte.
        offset: The offset of the first byte in the file.
        longest: Maximum size of a value in bytes, since a small compressed file may contain a huge value.
    """

    def __init__(self, where: str, depth: int, *, level: int = 0, offset: int = 0, longest: int | None = None) -> None:
        self.where, self.depth, self.level, self.offset = where, depth, level, offset
        self.longest = MAX_VALUE_BYTES if longest is None else longest
        self._buffer = b""  # text from the end of the last value on
        self._scanned = 0
        self._in_string = False
        self._start: int | None = None  # start of the open value in _buffer

    def feed(self, chunk: bytes) -> Iterator[Value]:
        """Yield the values that end in this chunk; raises InputError for a closing bracket without an opening one."""
        self._buffer += chunk
        stop = len(self._buffer) - _count_trailing_backslashes(self._buffer) % 2
        edges = self._find_edges(self._buffer[self._scanned : stop])
        base, self._scanned = self._scanned, stop
        cut = 0
        for position, opens in edges:
            index = base + position
            if opens:
                self._start = index
            elif self._start is not None:
                yield Value(
                    self._buffer[cut : self._start], self._buffer[self._start : index + 1], self.offset + self._start
                )
                cut, self._start = index + 1, None
        if self._start is None:
            cut = max(cut, self._scanned - MAX_GAP_BYTES)
        elif len(self._buffer) - self._start > self.longest:
            raise InputError(
                f"{self.where}: the value at byte {self.offset + self._start} does not end; another layout?"
            )
        self._drop(cut)

    def finish(self) -> bytes:
        """Return the text after the last value; raises InputError if a bracket or string is still open."""
        if self.level > 0 or self._in_string:
            raise InputError(f"{self.where}: truncated, the JSON ends inside {self.level} brackets")
        return self._buffer

    def _drop(self, cut: int) -> None:
        self._buffer = self._buffer[cut:]
        self._scanned -= cut
        self.offset += cut
        if self._start is not None:
            self._start -= cut

    def _find_edges(self, text: bytes) -> list[tuple[int, bool]]:
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
        selected = np.where(opens, levels == self.depth + 1, levels == self.depth)
        return list(zip(marks[selected].tolist(), opens[selected].tolist(), strict=True))


def decode_json(text: bytes) -> Any:
    """Decode a value, NaN and Infinity included; raises InvalidStructure."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidStructure("corrupt", f"not JSON ({get_first_line(error)})") from None


def _count_trailing_backslashes(text: bytes) -> int:
    return len(text) - len(text.rstrip(b"\\"))


def iter_values(chunks: Iterable[bytes], scanner: JsonScanner) -> Iterator[Value]:
    """Yield the values of a whole file; raises InputError if it is not JSON or truncated."""
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
    """Read a structure of pymatgen.

    Returns:
        (atomic numbers [n], positions [n, 3] angstrom, cell [3, 3] angstrom, periodic [3]).

    Raises:
        InvalidStructure: A key is missing, an element is unknown, or a site is disordered.
    """
    lattice = require_key(structure, "lattice")
    cell = np.asarray(require_key(lattice, "matrix"), dtype=np.float64)
    sites = require_key(structure, "sites")
    numbers = [_parse_element(site) for site in sites]
    if sites and "xyz" in sites[0]:
        positions = np.array([site["xyz"] for site in sites], dtype=np.float64)
    else:
        positions = np.array([require_key(site, "abc") for site in sites], dtype=np.float64) @ cell
    return numbers, positions, cell, list(lattice.get("pbc", (True, True, True)))


def _parse_element(site: Any) -> int:
    species = require_key(site, "species")
    if len(species) != 1 or abs(species[0].get("occu", 1) - 1) > 1e-6:
        raise InvalidStructure("disorder", "a site with more than one element, or partly occupied")
    symbol = str(require_key(species[0], "element"))
    number = atomic_numbers.get(symbol.rstrip("0123456789+-"))
    if not number:
        raise InvalidStructure("atomic number", f"{symbol!r} is not an element")
    return int(number)


def read_site_forces(structure: Any) -> Array | None:
    """Return the forces stored with the sites, [n, 3]; None unless every site has them."""
    forces = [(site.get("properties") or {}).get("forces") for site in structure["sites"]]
    return None if any(f is None for f in forces) else np.array(forces, dtype=np.float64)


def list_site_names(structure: Any) -> list[str]:
    """Return the names of the properties of the first site, such as "forces"; empty if there are no sites."""
    sites = structure["sites"]
    return list(sites[0].get("properties") or {}) if sites else []


def convert_stress_from_kbar(stress: Any) -> Array | None:
    """Convert VASP's stress (kbar, compression positive) to eV/angstrom^3, tension positive."""
    return None if stress is None else -KBAR_EV_PER_A3 * np.asarray(stress, dtype=np.float64)
