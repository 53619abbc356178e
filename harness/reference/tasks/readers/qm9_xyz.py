"""QM9 as its authors deposited it: dsgdb9nsd.xyz.tar.bz2, or the folder of dsgdb9nsd_*.xyz that it unfolds to.

A file holds the number of atoms, a line of properties (the tag gdb, the index, then fifteen values, U0 the eleventh,
in hartree), a line for each atom (element, x, y, z in angstrom, charge), frequencies, SMILES and InChI. Some numbers
are in the form of Mathematica: 1.5*^-6 is 1.5e-6.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harness.reference.datasets.parsing.structure_builder import Unfit, one_line
from harness.reference.errors import InputError

ARCHIVES = ("dsgdb9nsd.xyz.tar.bz2", "dsgdb9nsd.xyz.tar", "dsgdb9nsd.tar.bz2")
FILES = "dsgdb9nsd_*.xyz"
LARGEST_BYTES = 1 << 20  # of one molecule; the official ones have a few kilobytes
U0 = 12  # among the words of the second line


class Molecule(NamedTuple):
    """One file. energy: U0 in hartree, as written."""

    number: int
    symbols: list[str]
    positions: list[list[float]]
    energy: str


def find_source(folder: Path) -> Path | None:
    """Return the archive in a folder, or the folder of molecules that it unfolds to, or None."""
    for name in ARCHIVES:
        if (folder / name).is_file():
            return folder / name
    first = next(folder.rglob(FILES), None)
    return None if first is None else first.parent


def read_texts(source: Path) -> Iterator[tuple[str, str]]:
    """Yield (file name, its text) of each molecule; raises InputError where the archive is damaged."""
    if source.is_dir():
        for path in sorted(source.glob(FILES)):
            try:
                with path.open(errors="replace") as file:
                    yield path.name, file.read(LARGEST_BYTES)
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        return
    try:
        with tarfile.open(source, mode="r|*") as archive:
            for member in archive:
                name = Path(member.name).name
                if not (member.isfile() and name.startswith("dsgdb9nsd") and name.endswith(".xyz")):
                    continue
                content = archive.extractfile(member)
                assert content is not None
                yield name, content.read(LARGEST_BYTES).decode(errors="replace")
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
        raise InputError(f"{source}: cut short, or not a tar archive ({one_line(error)})") from None


def parse(text: str) -> Molecule:
    """Return the molecule of a file; raises Unfit, or ValueError for numbers that are none."""
    lines = text.splitlines()
    count = int(lines[0]) if lines else 0
    words = lines[1].split() if len(lines) > 1 else []
    if len(words) <= U0 or words[0] != "gdb":
        raise Unfit("malformed", "the second line is not the tag gdb, an index and fifteen values")
    if not 0 < count <= len(lines) - 2:
        raise Unfit("malformed", f"{count} atoms, but {len(lines)} lines")
    atoms = [line.split() for line in lines[2 : 2 + count]]
    if any(len(atom) < 4 for atom in atoms):
        raise Unfit("malformed", "a line of an atom has fewer than four words")
    positions = [[_number(word) for word in atom[1:4]] for atom in atoms]
    return Molecule(int(words[1]), [atom[0] for atom in atoms], positions, words[U0].replace("*^", "e"))


def _number(word: str) -> float:
    return float(word.replace("*^", "e"))
