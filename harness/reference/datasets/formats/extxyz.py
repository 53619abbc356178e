"""Extended XYZ text, frame by frame: the part of it that the Open Catalyst datasets use, without ASE's overhead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np
from ase.data import atomic_numbers

from harness.reference.datasets.formats.gather import Unfit, missing
from harness.reference.errors import InputError
from harness.reference.structures import Array

LONGEST = 1_000_000  # atoms of a frame; a larger count means that the text has come apart
_PAIR = re.compile(r"""([\w./-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|(\S+))""")
_TRUE = frozenset("TtRrUuEe1")


class Text(NamedTuple):
    """One frame: the keys of its second line, and the lines of its atoms."""

    keys: dict[str, str]
    atoms: list[str]


class Parsed(NamedTuple):
    """One frame of n atoms: numbers [n], positions [n, 3], forces [n, 3], cell [3, 3], periodic [3]; None: absent."""

    numbers: list[int]
    positions: Array
    forces: Array | None
    cell: Array | None
    periodic: list[bool] | None


def frames(file: IO[str], where: str) -> Iterator[Text]:
    """The frames of a text; raises InputError with the line where it comes apart or ends too early."""
    line = 0
    while count_line := file.readline():
        line += 1
        if not count_line.strip():
            continue
        try:
            n = int(count_line)
        except ValueError:
            n = -1
        if not 0 <= n <= LONGEST:
            shown = count_line.strip()[:40]
            raise InputError(f"{where}, line {line}: {shown!r} is not a number of atoms; not extended XYZ, or cut")
        comment = file.readline()
        atoms = [file.readline() for _ in range(n)]
        if not comment or (atoms and not atoms[-1].endswith("\n") and len(atoms[-1].split()) < 4):
            raise InputError(f"{where}, line {line}: truncated inside a frame of {n} atoms")
        line += 1 + n
        yield Text({m[1]: m[2] or m[3] or m[4] or "" for m in _PAIR.finditer(comment)}, atoms)


def parsed(text: Text) -> Parsed:
    """The numbers of a frame; raises Unfit."""
    columns = _columns(text.keys.get("Properties", "species:S:1:pos:R:3"))
    width = max(stop for _, stop in columns.values())
    tokens = [line.split() for line in text.atoms]
    short = next((k for k, row in enumerate(tokens) if len(row) < width), None)
    if short is not None:
        raise Unfit("malformed", f"atom {short} has {len(tokens[short])} columns of {width}")
    for needed in ("species", "pos"):
        if needed not in columns:
            raise Unfit("missing key", "Properties: " + missing(needed, columns))
    force = next((columns[name] for name in ("forces", "force") if name in columns), None)
    first = columns["species"][0]
    lattice, periodic = text.keys.get("Lattice"), text.keys.get("pbc")
    cell = None if lattice is None else np.array(lattice.split(), dtype=np.float64)
    return Parsed(
        numbers=[_number(row[first]) for row in tokens],
        positions=_reals(tokens, columns["pos"]),
        forces=None if force is None else _reals(tokens, force),
        cell=cell,
        periodic=[cell is not None] * 3 if periodic is None else [word[:1] in _TRUE for word in periodic.split()],
    )


def _columns(properties: str) -> dict[str, tuple[int, int]]:
    """(first column, one past the last) of each property."""
    words = properties.split(":")
    if len(words) % 3:
        raise Unfit("malformed", f"Properties {properties[:60]!r} do not come in threes")
    found, first = {}, 0
    for name, count in zip(words[::3], words[2::3], strict=True):
        found[name] = (first, first + int(count))
        first += int(count)
    return found


def _number(symbol: str) -> int:
    number = atomic_numbers.get(symbol) or (int(symbol) if symbol.isdigit() else 0)
    if not number:
        raise Unfit("atomic number", f"{symbol!r} is not an element")
    return int(number)


def _reals(tokens: list[list[str]], columns: tuple[int, int]) -> Array:
    first, stop = columns
    if stop - first != 3:
        raise Unfit("shape", f"a vector of {stop - first} columns, expected 3")
    flat: list[Any] = [word for row in tokens for word in row[first:stop]]
    return np.array(flat, dtype=np.float64).reshape(-1, 3)
