"""Parser of extended XYZ text, frame by frame; ASE parses only the headers, as it is slow for atoms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

import numpy as np
from ase.data import atomic_numbers
from ase.io.extxyz import key_val_str_to_dict

from harness.reference.data.structure import Array
from harness.reference.datasets.parsing.base import MAX_ATOMS, MAX_STRUCTURE_BYTES
from harness.reference.datasets.parsing.structure_builder import (
    InvalidStructure,
    describe_missing_key,
    describe_value,
)
from harness.reference.errors import InputError, get_first_line

MAX_LINE = 1 << 20  # characters
DEFAULT_COLUMNS = "species:S:1:pos:R:3"


@dataclass(frozen=True)
class FrameText:
    """The text of one frame: its second line (comment), and the lines of its atoms."""

    comment: str
    atoms: list[str]

    @cached_property
    def keys(self) -> dict[str, Any]:
        """The keys of the header with their values, parsed by ASE; raises InvalidStructure if ASE rejects it."""
        line = self.comment.strip()
        if not line:
            return {}
        try:
            keys: dict[str, Any] = key_val_str_to_dict(line)
        except (ValueError, RecursionError, TypeError) as error:
            kind = "shape" if "3x3" in str(error) else "malformed"
            raise InvalidStructure(
                kind, f"the frame's second line is not an extended XYZ header ({get_first_line(error)})"
            ) from None
        return keys


def iter_frames(file: IO[str], where: str) -> Iterator[FrameText]:
    """Yield the frames of a file; raises InputError, with the line, if it is malformed or truncated."""
    line = blank = 0
    while count_line := file.readline(MAX_LINE):
        line += 1
        if not count_line.strip():
            blank = blank or line
            continue
        if blank:
            raise InputError(f"{where}, line {blank}: a blank line between frames, where other readers stop; remove it")
        try:
            n = int(count_line)
        except ValueError:
            n = -1
        if not 0 <= n <= MAX_ATOMS:
            text = repr(count_line.strip()[:40])
            raise InputError(
                f"{where}, line {line}: {text} is not a number of atoms (0 .. {MAX_ATOMS}); not extended XYZ, or cut"
            )
        comment, atoms = _read_lines(file, n, f"{where}, line {line}")
        if not comment or (atoms and not atoms[-1].endswith("\n") and len(atoms[-1].split()) < 4):
            raise InputError(f"{where}, line {line}: truncated inside a frame of {n} atoms")
        line += 1 + n
        yield FrameText(comment, atoms)


def _read_lines(file: IO[str], n: int, where: str) -> tuple[str, list[str]]:
    """Read the second line of a frame and the lines of its n atoms; raises InputError if they are too long."""
    comment = file.readline(MAX_LINE)
    size, atoms = len(comment), []
    for _ in range(n):
        atom = file.readline(MAX_LINE)
        atoms.append(atom)
        size += len(atom)
        if not atom or size > MAX_STRUCTURE_BYTES:
            break
    if size > MAX_STRUCTURE_BYTES or len(comment) == MAX_LINE:
        raise InputError(
            f"{where}: a frame of more than {MAX_STRUCTURE_BYTES >> 20} MB, or a line of more than 1 MB; damaged?"
        )
    return comment, atoms


def parse_frame(text: FrameText) -> dict[str, Any]:
    """Parse a frame to arguments of `build_row`; raises InvalidStructure if it is malformed."""
    columns = _parse_columns(str(text.keys.get("Properties", DEFAULT_COLUMNS)))
    width = max(stop for _, stop in columns.values())
    tokens = [line.split() for line in text.atoms]
    short = next((k for k, row in enumerate(tokens) if len(row) < width), None)
    if short is not None:
        raise InvalidStructure("malformed", f"atom {short} has {len(tokens[short])} columns of {width}")
    kind = "Z" if "Z" in columns else "species"
    for key in (kind, "pos"):
        if key not in columns:
            raise InvalidStructure("missing key", "Properties: " + describe_missing_key(key, columns))
    first = columns[kind][0]
    lattice = text.keys.get("Lattice")
    return {
        "numbers": [_parse_element(words[first]) for words in tokens],
        "positions": _parse_reals(tokens, columns["pos"]),
        "forces": _parse_reals(tokens, columns["forces"]) if "forces" in columns else None,
        "cell": None if lattice is None else lattice.T,
        "periodic": _read_periodic(text.keys.get("pbc", lattice is not None)),
        "stress": _symmetrize(text.keys.get("stress")),
        "names": [*columns, *text.keys],
    }


def _read_periodic(stored: Any) -> Any:
    """Return whether the frame is periodic along each vector, from one flag or three; raises InvalidStructure."""
    flags = np.asarray(stored)
    if flags.dtype.kind not in "biuf" or flags.shape not in ((), (3,)):
        raise InvalidStructure(
            "malformed", f'pbc is {describe_value(stored)}, expected three of T and F, as in pbc="T T F"'
        )
    return np.broadcast_to(flags.astype(bool), 3)


def _symmetrize(stress: Any) -> Array | None:
    """Return the symmetric stress [3, 3] that has the upper triangle of the given one, which is the part ASE reads."""
    if stress is None:
        return None
    upper = np.triu(np.asarray(stress, dtype=np.float64))
    return upper + np.triu(upper, 1).T


def _parse_columns(properties: str) -> dict[str, tuple[int, int]]:
    """Return (first, stop) of the columns of each property."""
    words = properties.split(":")
    if len(words) % 3:
        raise InvalidStructure("malformed", f"Properties {properties[:60]!r} do not come in threes")
    columns: dict[str, tuple[int, int]] = {}
    first = 0
    for name, kind, count in zip(words[::3], words[1::3], words[2::3], strict=True):
        if kind not in ("R", "I", "S", "L") or not count.isdecimal() or int(count) < 1 or name in columns:
            raise InvalidStructure(
                "malformed", f"Properties: {name[:20]}:{kind[:20]}:{count[:20]} is not name:type:columns, or repeated"
            )
        columns[name] = (first, first + int(count))
        first += int(count)
    return columns


def _parse_element(symbol: str) -> int:
    number = atomic_numbers.get(symbol.capitalize()) or (int(symbol) if symbol.isdecimal() else 0)
    if not number:
        raise InvalidStructure("atomic number", f"{symbol[:20]!r} is not an element")
    return int(number)


def _parse_reals(tokens: list[list[str]], columns: tuple[int, int]) -> Array:
    first, stop = columns
    if stop - first != 3:
        raise InvalidStructure("shape", f"a vector of {stop - first} columns, expected 3")
    flat: list[Any] = [word for row in tokens for word in row[first:stop]]
    return np.array(flat, dtype=np.float64).reshape(-1, 3)
