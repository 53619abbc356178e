"""QM9 in hartree: the authors' archive of xyz files, the tables of PyPI's qm9pack, or gdb9.sdf with gdb9.sdf.csv.

Where uncharacterized.txt is next to the archive or gdb9.sdf, the molecules that it lists are left out and counted.
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
LARGEST_BYTES = 1 << 20  # largest file of one molecule; the official ones have a few kilobytes
U0 = 12  # among the words of the second line


def read_qm9(path: Path) -> TaskDataset:
    """Return the molecules of a folder with their U0 in eV; raises InputError naming file and fault."""
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        raise InputError(f"{path}: no such file or folder")
    parts = sorted(folder.glob("qm9_part*.csv"))
    skipped: set[int] = set()
    if parts:
        values = build_each((pair for part in parts for pair in _iter_table_rows(part)), _build_from_table)
    elif (folder / SDF).is_file():
        skipped = _read_uncharacterized(folder / UNCHARACTERIZED)
        values = build_each(_iter_sdf_rows(folder, skipped), _build_from_sdf)
    elif source := find_xyz_source(folder):
        skipped = _read_uncharacterized(folder / UNCHARACTERIZED) or _read_uncharacterized(
            source.parent / UNCHARACTERIZED
        )
        values = (v for v in build_each(iter_strings(source), _build_from_xyz) if not _is_listed(v, skipped))
    else:
        raise InputError(
            f"{path}: neither {ARCHIVES[0]} nor {FILES} nor qm9_part*.csv nor {SDF} with {SDF_TABLE} is there"
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
    # Python's lists as JSON: the quotes differ, and so does 1. for 1.0
    symbols = orjson.loads(require_key(fields, ELEMENTS).replace("'", '"'))
    positions = orjson.loads(_BARE_POINT.sub(".0", require_key(fields, POSITIONS)))
    return _build_molecule(int(fields[INDEX]), symbols, positions, fields[ENERGY])


def _read_uncharacterized(path: Path) -> set[int]:
    """Return the numbers of the molecules whose geometry fell apart.

    Each begins a line of the list; the last line ("3054 compounds") has their count.
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
    """Yield (where, (lines of the molecule, U0)) of each molecule that is not to be skipped."""
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
    """A molecule of one file. energy: U0 in hartree, as text."""

    number: int
    symbols: list[str]
    positions: list[list[float]]
    energy: str


def find_xyz_source(folder: Path) -> Path | None:
    """Return the archive in a folder, or the folder of its unpacked molecules, or None."""
    for name in ARCHIVES:
        if (folder / name).is_file():
            return folder / name
    first = next(folder.rglob(FILES), None)
    return None if first is None else first.parent


def iter_strings(source: Path) -> Iterator[tuple[str, str]]:
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
        raise InputError(f"{source}: cut short, or not a tar archive ({get_first_line(error)})") from None


def parse_xyz(text: str) -> Molecule:
    """Return the molecule of a file; raises InvalidStructure, or ValueError for malformed numbers."""
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
