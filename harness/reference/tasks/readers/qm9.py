"""Reader of QM9 (energies in hartree): the authors' archive of xyz files, the tables of PyPI's qm9pack, or gdb9.sdf.

If uncharacterized.txt is next to the archive or to gdb9.sdf, the molecules in its list are left out and counted.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
from ase.data import atomic_numbers

from harness.reference.data.structure_table import RejectedStructure
from harness.reference.datasets.parsing.constants import HARTREE_EV
from harness.reference.datasets.parsing.structure_builder import (
    InvalidStructure,
    build_each,
    build_row,
    require_key,
)
from harness.reference.errors import InputError, get_first_line
from harness.reference.tasks.catalog import find_task
from harness.reference.tasks.dataset import LabelledRow, TaskDataset, collect_rows
from harness.reference.tasks.readers.crystals import iter_table
from harness.reference.tasks.readers.energy_checks import check_molecules

LEVEL = "B3LYP/6-31G(2df,p)"
_BARE_POINT = re.compile(r"\.(?=[,\]])")
ENERGY, POSITIONS, ELEMENTS, INDEX = "InternalEnergy_0K_au", "XYZ_Ang", "Elements", "Index"
SDF, SDF_TABLE, UNCHARACTERIZED = "gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt"
ARCHIVES = ("dsgdb9nsd.xyz.tar.bz2", "dsgdb9nsd.xyz.tar", "dsgdb9nsd.tar.bz2")
FILES = "dsgdb9nsd_*.xyz"
MAX_FILE_BYTES = 1 << 20  # of the file of one molecule; official files have a few kilobytes
U0 = 12  # the position of U0 among the words of the second line


def read_qm9(path: Path) -> TaskDataset:
    """Read the molecules in a folder with their U0 in eV; raises InputError if files are missing or damaged."""
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        raise InputError(f"{path}: no such file or folder")
    tables = sorted(folder.glob("qm9_part*.csv"))
    skipped: set[int] = set()
    if tables:
        values = build_each((pair for table in tables for pair in _iter_table_rows(table)), _build_from_table)
    elif (folder / SDF).is_file():
        skipped = _read_uncharacterized(folder / UNCHARACTERIZED)
        values = build_each(_iter_sdf_rows(folder, skipped), _build_from_sdf)
    elif source := find_xyz_source(folder):
        skipped = _read_uncharacterized(folder / UNCHARACTERIZED) or _read_uncharacterized(
            source.parent / UNCHARACTERIZED
        )
        values = (v for v in build_each(iter_texts(source), _build_from_xyz) if not _is_listed(v, skipped))
    else:
        raise InputError(
            f"{path}: found neither {ARCHIVES[0]} nor {FILES} nor qm9_part*.csv nor {SDF} with {SDF_TABLE}"
        )
    rows = list(values)
    left_out = Counter({"uncharacterized": len(skipped), "not in the files": max(0, find_task("qm9").size - len(rows))})
    labelled = collect_rows(rows, str(path), "official QM9, {count} molecules", LEVEL, left_out)
    return check_molecules(labelled, path)


def _is_listed(value: LabelledRow | RejectedStructure, skipped: set[int]) -> bool:
    return isinstance(value, LabelledRow) and int(value.row.id.rpartition("_")[2]) in skipped


def _build_from_xyz(_: str, text: str) -> LabelledRow:
    return _build_molecule(*parse_xyz(text))


def _iter_table_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    for number, fields in enumerate(iter_table(path, (INDEX, ELEMENTS, POSITIONS, ENERGY)), start=2):
        yield f"{path.name}, line {number}", fields


def _build_from_table(_: str, fields: dict[str, str]) -> LabelledRow:
    # convert lists in Python's notation to JSON: other quotes, and 1.0 instead of 1.
    symbols = orjson.loads(require_key(fields, ELEMENTS).replace("'", '"'))
    positions = orjson.loads(_BARE_POINT.sub(".0", require_key(fields, POSITIONS)))
    return _build_molecule(int(fields[INDEX]), symbols, positions, fields[ENERGY])


def _read_uncharacterized(path: Path) -> set[int]:
    """Return the numbers of the molecules that fell apart during relaxation.

    Each line of the list begins with a number; the last line ("3054 compounds") is their count.
    """
    if not path.is_file():
        return set()
    words = [line.split() for line in path.read_text(errors="replace").splitlines()]
    return {
        int(w[0])
        for w in words
        if len(w) > 1 and w[0].isdecimal() and len(w[0]) < 10 and not w[1].startswith("compound")
    }


def _iter_sdf_rows(folder: Path, skipped: set[int]) -> Iterator[tuple[str, tuple[list[str], str]]]:
    """Yield (location, (lines of the molecule, U0)) for each molecule that is not skipped."""
    energies = _read_sdf_energies(folder / SDF_TABLE)
    count = 0
    for count, block in enumerate(_iter_sdf_blocks(folder / SDF), start=1):
        name = block[0].strip()
        if count <= len(energies) and energies[count - 1][0] != name:
            raise InputError(f"{folder / SDF}: molecule {count} is {name!r}, in {SDF_TABLE} {energies[count - 1][0]!r}")
        if count <= len(energies) and count not in skipped:
            yield f"{SDF}/{name}", (block, energies[count - 1][1])
    if count != len(energies):
        raise InputError(f"{folder / SDF}: {count} molecules, but {len(energies)} rows in {SDF_TABLE}")


def _read_sdf_energies(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file, and {SDF} has no energies")
    return [(fields["mol_id"], fields["u0"] or "") for fields in iter_table(path, ("mol_id", "u0"))]


def _iter_sdf_blocks(path: Path) -> Iterator[list[str]]:
    block: list[str] = []
    with path.open(errors="replace") as file:
        for line in file:
            if line.startswith("$$$$"):
                yield block
                block = []
            else:
                block.append(line)
    if any(line.strip() for line in block):
        raise InputError(f"{path}: truncated, the last molecule does not end in $$$$")


def _build_from_sdf(_: str, molecule: tuple[list[str], str]) -> LabelledRow:
    lines, energy = molecule
    # V2000: the fourth line begins with the number of atoms in three columns
    atoms = [line.split() for line in lines[4 : 4 + int(lines[3][:3])]]
    positions = [[float(x) for x in words[:3]] for words in atoms]
    return _build_molecule(int(lines[0].strip().rpartition("_")[2]), [words[3] for words in atoms], positions, energy)


def _build_molecule(index: int, symbols: list[str], positions: list[list[float]], energy: str) -> LabelledRow:
    if unknown := [s for s in symbols if s not in atomic_numbers]:
        raise InvalidStructure("atomic number", f"{unknown[0]!r} is not an element")
    value = float(energy) * HARTREE_EV if energy.strip() else np.nan
    columns = build_row(
        f"gdb_{index}",
        f"qm9-{index:06d}",
        [atomic_numbers[s] for s in symbols],
        positions,
        energy=value,
        multiplicity=1,
    )
    return LabelledRow(columns, value)


class Molecule(NamedTuple):
    """A molecule of one xyz file; positions are in angstrom, and energy is U0 in hartree, as text."""

    number: int
    symbols: list[str]
    positions: list[list[float]]
    energy: str


def find_xyz_source(folder: Path) -> Path | None:
    """Return the archive in a folder, or the folder with unpacked xyz files, or None."""
    for name in ARCHIVES:
        if (folder / name).is_file():
            return folder / name
    first = next(folder.rglob(FILES), None)
    return None if first is None else first.parent


def iter_texts(source: Path) -> Iterator[tuple[str, str]]:
    """Yield (file name, text) of each molecule in an archive or a folder; raises InputError if it is damaged."""
    if source.is_dir():
        for path in sorted(source.glob(FILES)):
            try:
                with path.open(errors="replace") as file:
                    yield path.name, file.read(MAX_FILE_BYTES)
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
                yield name, content.read(MAX_FILE_BYTES).decode(errors="replace")
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
        raise InputError(f"{source}: cut short, or not a tar archive ({get_first_line(error)})") from None


def parse_xyz(text: str) -> Molecule:
    """Parse the text of an xyz file; raises InvalidStructure, or ValueError for malformed numbers."""
    lines = text.splitlines()
    count = int(lines[0]) if lines else 0
    words = lines[1].split() if len(lines) > 1 else []
    if len(words) <= U0 or words[0] != "gdb":
        raise InvalidStructure("malformed", "the second line is not the tag gdb, an index and fifteen values")
    if not 0 < count <= len(lines) - 2:
        raise InvalidStructure("malformed", f"{count} atoms, but {len(lines)} lines")
    atoms = [line.split() for line in lines[2 : 2 + count]]
    if any(len(atom) < 4 for atom in atoms):
        raise InvalidStructure("malformed", "a line of an atom has fewer than four words")
    positions = [[_parse_number(word) for word in atom[1:4]] for atom in atoms]
    return Molecule(int(words[1]), [atom[0] for atom in atoms], positions, words[U0].replace("*^", "e"))


def _parse_number(word: str) -> float:
    return float(word.replace("*^", "e"))
