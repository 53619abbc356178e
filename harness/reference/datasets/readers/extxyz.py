"""Extended XYZ text, frame by frame: headers as ASE reads them, atoms without ASE's overhead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, NamedTuple

import numpy as np
from ase.data import atomic_numbers
from ase.io.extxyz import key_val_str_to_dict

from harness.reference.data.structure import Array
from harness.reference.datasets.parsing.base import MOST_ATOMS, MOST_BYTES
from harness.reference.datasets.parsing.structure_builder import Unfit, missing, one_line, shown
from harness.reference.errors import InputError

LONGEST_LINE = 1 << 20  # characters
PLAIN = "species:S:1:pos:R:3"  # what the columns are where the header does not say


@dataclass(frozen=True)
class Text:
    """One frame: its second line, and the lines of its atoms."""

    comment: str
    atoms: list[str]

    @cached_property
    def keys(self) -> dict[str, Any]:
        """The header's keys with values as ASE has them; raises Unfit where ASE refuses the header."""
        line = self.comment.strip()
        if not line:
            return {}
        try:
            found: dict[str, Any] = key_val_str_to_dict(line)
        except (ValueError, RecursionError, TypeError) as error:
            kind = "shape" if "3x3" in str(error) else "malformed"
            raise Unfit(kind, f"the frame's second line is no extended XYZ header ({one_line(error)})") from None
        return found


class Parsed(NamedTuple):
    """One frame of n atoms: numbers [n], positions, forces [n, 3], cell, stress [3, 3], periodic [3]; None: absent.

    names: of all keys and columns.
    """

    numbers: list[int]
    positions: Array
    forces: Array | None
    cell: Array | None
    periodic: Any
    stress: Array | None
    names: list[str]


def frames(file: IO[str], where: str) -> Iterator[Text]:
    """The frames of a text; raises InputError with the line where it comes apart or ends too early."""
    line = blank = 0
    while count_line := file.readline(LONGEST_LINE):
        line += 1
        if not count_line.strip():
            blank = blank or line
            continue
        if blank:
            raise InputError(f"{where}, line {blank}: a blank line before more frames; readers stop there, remove it")
        try:
            n = int(count_line)
        except ValueError:
            n = -1
        if not 0 <= n <= MOST_ATOMS:
            found = repr(count_line.strip()[:40])
            raise InputError(
                f"{where}, line {line}: {found} is not a number of atoms (0 .. {MOST_ATOMS}); not extended XYZ, or cut"
            )
        comment, atoms = _lines(file, n, f"{where}, line {line}")
        if not comment or (atoms and not atoms[-1].endswith("\n") and len(atoms[-1].split()) < 4):
            raise InputError(f"{where}, line {line}: truncated inside a frame of {n} atoms")
        line += 1 + n
        yield Text(comment, atoms)


def _lines(file: IO[str], n: int, where: str) -> tuple[str, list[str]]:
    """The second line of a frame and those of its atoms; raises InputError where they are too long for one."""
    comment = file.readline(LONGEST_LINE)
    size, atoms = len(comment), []
    for _ in range(n):
        atom = file.readline(LONGEST_LINE)
        atoms.append(atom)
        size += len(atom)
        if not atom or size > MOST_BYTES:
            break
    if size > MOST_BYTES or len(comment) == LONGEST_LINE:
        raise InputError(f"{where}: a frame of more than {MOST_BYTES >> 20} MB, or a line of more than 1 MB; damaged?")
    return comment, atoms


def parsed(text: Text) -> Parsed:
    """The numbers of a frame as ASE reads them; raises Unfit."""
    columns = _columns(str(text.keys.get("Properties", PLAIN)))
    width = max(stop for _, stop in columns.values())
    tokens = [line.split() for line in text.atoms]
    short = next((k for k, row in enumerate(tokens) if len(row) < width), None)
    if short is not None:
        raise Unfit("malformed", f"atom {short} has {len(tokens[short])} columns of {width}")
    kind = "Z" if "Z" in columns else "species"
    for needed in (kind, "pos"):
        if needed not in columns:
            raise Unfit("missing key", "Properties: " + missing(needed, columns))
    first = columns[kind][0]
    lattice = text.keys.get("Lattice")
    return Parsed(
        numbers=[_number(row[first]) for row in tokens],
        positions=_reals(tokens, columns["pos"]),
        forces=_reals(tokens, columns["forces"]) if "forces" in columns else None,
        cell=None if lattice is None else lattice.T,
        periodic=_periodic(text.keys.get("pbc", lattice is not None)),
        stress=_symmetric(text.keys.get("stress")),
        names=[*columns, *text.keys],
    )


def _periodic(stored: Any) -> Any:
    """Whether the frame repeats along each vector: one truth for all, or three; raises Unfit."""
    flags = np.asarray(stored)
    if flags.dtype.kind not in "biuf" or flags.shape not in ((), (3,)):
        raise Unfit("malformed", f'pbc is {shown(stored)}, expected three of T and F, as in pbc="T T F"')
    return np.broadcast_to(flags.astype(bool), 3)


def _symmetric(stress: Any) -> Array | None:
    """Of a stress, the six components that ASE takes."""
    if stress is None:
        return None
    upper = np.triu(np.asarray(stress, dtype=np.float64))
    return upper + np.triu(upper, 1).T


def _columns(properties: str) -> dict[str, tuple[int, int]]:
    """(first column, one past the last) of each property."""
    words = properties.split(":")
    if len(words) % 3:
        raise Unfit("malformed", f"Properties {properties[:60]!r} do not come in threes")
    found: dict[str, tuple[int, int]] = {}
    first = 0
    for name, kind, count in zip(words[::3], words[1::3], words[2::3], strict=True):
        if kind not in ("R", "I", "S", "L") or not count.isdecimal() or int(count) < 1 or name in found:
            raise Unfit(
                "malformed", f"Properties: {name[:20]}:{kind[:20]}:{count[:20]} is not name:type:columns, or repeated"
            )
        found[name] = (first, first + int(count))
        first += int(count)
    return found


def _number(symbol: str) -> int:
    number = atomic_numbers.get(symbol.capitalize()) or (int(symbol) if symbol.isdecimal() else 0)
    if not number:
        raise Unfit("atomic number", f"{symbol[:20]!r} is not an element")
    return int(number)


def _reals(tokens: list[list[str]], columns: tuple[int, int]) -> Array:
    first, stop = columns
    if stop - first != 3:
        raise Unfit("shape", f"a vector of {stop - first} columns, expected 3")
    flat: list[Any] = [word for row in tokens for word in row[first:stop]]
    return np.array(flat, dtype=np.float64).reshape(-1, 3)
