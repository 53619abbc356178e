"""QM9 in hartree: the authors' archive of xyz files, the tables of PyPI's qm9pack, or gdb9.sdf with gdb9.sdf.csv.

Where uncharacterized.txt lies beside the archive or gdb9.sdf, the molecules that it lists are left out and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
from ase.data import atomic_numbers

from harness.reference.data.structure_table import Fault
from harness.reference.datasets.parsing.structure_builder import Unfit, made, need, row
from harness.reference.datasets.units import HARTREE_EV
from harness.reference.errors import InputError
from harness.reference.tasks.catalog import task
from harness.reference.tasks.dataset import Labelled, Value, collected
from harness.reference.tasks.readers import qm9_xyz
from harness.reference.tasks.readers.crystals import table
from harness.reference.tasks.readers.energy_checks import check_molecules

LEVEL = "B3LYP/6-31G(2df,p)"
_BARE_POINT = re.compile(r"\.(?=[,\]])")
ENERGY, POSITIONS, ELEMENTS, INDEX = "InternalEnergy_0K_au", "XYZ_Ang", "Elements", "Index"
SDF, SDF_TABLE, UNCHARACTERIZED = "gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt"


def read(path: Path) -> Labelled:
    """The molecules of a folder with their U0 in eV; raises InputError naming file and fault."""
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        raise InputError(f"{path}: no such file or folder")
    parts = sorted(folder.glob("qm9_part*.csv"))
    skipped: set[int] = set()
    if parts:
        values = made((pair for part in parts for pair in _table_rows(part)), _from_table)
    elif (folder / SDF).is_file():
        skipped = _uncharacterized(folder / UNCHARACTERIZED)
        values = made(_sdf_rows(folder, skipped), _from_sdf)
    elif source := qm9_xyz.find_source(folder):
        skipped = _uncharacterized(folder / UNCHARACTERIZED) or _uncharacterized(source.parent / UNCHARACTERIZED)
        values = (v for v in made(qm9_xyz.read_texts(source), _from_xyz) if not _is_listed(v, skipped))
    else:
        raise InputError(
            f"{path}: neither {qm9_xyz.ARCHIVES[0]} nor {qm9_xyz.FILES} nor qm9_part*.csv nor {SDF} with {SDF_TABLE}"
            " is there"
        )
    found = list(values)
    left_out = Counter({"uncharacterized": len(skipped), "not in the files": max(0, task("qm9").size - len(found))})
    labelled = collected(found, str(path), "official QM9, {count} molecules", LEVEL, left_out)
    return check_molecules(labelled, path)


def _is_listed(value: Value | Fault, skipped: set[int]) -> bool:
    return isinstance(value, Value) and int(value.row.id.rpartition("_")[2]) in skipped


def _from_xyz(_: str, text: str) -> Value:
    return _molecule(*qm9_xyz.parse(text))


def _table_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    for number, fields in enumerate(table(path, (INDEX, ELEMENTS, POSITIONS, ENERGY)), start=2):
        yield f"{path.name}, line {number}", fields


def _from_table(_: str, fields: dict[str, str]) -> Value:
    # Python's lists as JSON: the quotes differ, and so does 1. for 1.0
    symbols = orjson.loads(need(fields, ELEMENTS).replace("'", '"'))
    positions = orjson.loads(_BARE_POINT.sub(".0", need(fields, POSITIONS)))
    return _molecule(int(fields[INDEX]), symbols, positions, fields[ENERGY])


def _uncharacterized(path: Path) -> set[int]:
    """Return the numbers of the molecules whose geometry fell apart.

    They begin the lines of the list, but for its last ("3054 compounds"), which says how many there are.
    """
    if not path.is_file():
        return set()
    words = [line.split() for line in path.read_text(errors="replace").splitlines()]
    return {
        int(w[0])
        for w in words
        if len(w) > 1 and w[0].isdecimal() and len(w[0]) < 10 and not w[1].startswith("compound")
    }


def _sdf_rows(folder: Path, skipped: set[int]) -> Iterator[tuple[str, tuple[list[str], str]]]:
    """(where, (lines of the molecule, U0)) of each molecule that is not to be skipped."""
    energies = _sdf_energies(folder / SDF_TABLE)
    count = 0
    for count, block in enumerate(_blocks(folder / SDF), start=1):
        name = block[0].strip()
        if count <= len(energies) and energies[count - 1][0] != name:
            raise InputError(f"{folder / SDF}: molecule {count} is {name!r}, in {SDF_TABLE} {energies[count - 1][0]!r}")
        if count <= len(energies) and count not in skipped:
            yield f"{SDF}/{name}", (block, energies[count - 1][1])
    if count != len(energies):
        raise InputError(f"{folder / SDF}: {count} molecules, but {len(energies)} rows in {SDF_TABLE}")


def _sdf_energies(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file, and {SDF} has no energies")
    return [(fields["mol_id"], fields["u0"] or "") for fields in table(path, ("mol_id", "u0"))]


def _blocks(path: Path) -> Iterator[list[str]]:
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


def _from_sdf(_: str, molecule: tuple[list[str], str]) -> Value:
    lines, energy = molecule
    # V2000: the fourth line begins with the number of atoms in three columns
    atoms = [line.split() for line in lines[4 : 4 + int(lines[3][:3])]]
    positions = [[float(x) for x in words[:3]] for words in atoms]
    return _molecule(int(lines[0].strip().rpartition("_")[2]), [words[3] for words in atoms], positions, energy)


def _molecule(index: int, symbols: list[str], positions: list[list[float]], energy: str) -> Value:
    if unknown := [s for s in symbols if s not in atomic_numbers]:
        raise Unfit("atomic number", f"{unknown[0]!r} is not an element")
    value = float(energy) * HARTREE_EV if energy.strip() else np.nan
    columns = row(
        f"gdb_{index}",
        f"qm9-{index:06d}",
        [atomic_numbers[s] for s in symbols],
        positions,
        energy=value,
        multiplicity=1,
    )
    return Value(columns, value)
