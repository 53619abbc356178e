"""ABX3 perovskites: abc3_data.csv with the structures it names, or extended XYZ.

The table has mp_id and formation_energy (eV/atom). Its structures are in a column of their own (poscar, cif, or
structure: pymatgen's JSON), or beside it in structures.json, {mp_id: pymatgen's JSON}, as downloaded from the Materials
Project.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import numpy as np

from harness.reference.datasets.containers.json_stream import decoded
from harness.reference.datasets.parsing.paths import files
from harness.reference.datasets.parsing.pymatgen_json import crystal
from harness.reference.datasets.parsing.structure_builder import Unfit, made, one_line
from harness.reference.errors import InputError
from harness.reference.tasks.dataset import Labelled, Value, collected
from harness.reference.tasks.readers.crystals import Sample, finished, frames, json_file, table, value
from harness.reference.tasks.readers.energy_checks import check_formation

ID, ENERGY = "mp_id", "formation_energy (eV/atom)"
COLUMNS = ("poscar", "cif", "structure")
BESIDE = "structures.json"


def read(path: Path) -> Labelled:
    """All crystals, grouped by reduced formula; raises InputError naming file and fault."""
    found = [file for file, _ in files([path], (".csv", ".extxyz", ".xyz"), "tables of perovskites")]
    left_out: Counter[str] = Counter()
    samples = [s for file in found for s in (_table(file, left_out) if file.suffix == ".csv" else frames(file))]
    role = "official ABX3 perovskites, {count} crystals"
    return check_formation(collected(made(samples, finished), str(path), role, "PBE (VASP)", left_out), path)


def _table(path: Path, left_out: Counter[str]) -> Iterator[Sample]:
    beside = path.parent / BESIDE
    structures = json_file(beside) if beside.is_file() else None
    if not isinstance(structures, dict | None):
        raise InputError(f"{beside}: expected the structures by their mp_id, got a {type(structures).__name__}")
    for fields in table(path, (ID, ENERGY)):
        name = fields[ID]
        column = next((c for c in COLUMNS if c in fields), "")
        if column:
            yield name, partial(_from_text, name, column, fields[column], fields[ENERGY])
        elif structures is None:
            raise InputError(f"{path}: no column {', '.join(COLUMNS)}, and no {BESIDE} beside it")
        elif name in structures:
            yield name, partial(_from_pymatgen, name, structures[name], fields[ENERGY])
        else:
            left_out[f"not in {BESIDE}"] += 1


def _from_pymatgen(name: str, structure: Any, energy: str) -> Value:
    numbers, positions, cell, _ = crystal(structure)
    return value(name, numbers, positions, cell, energy)


def _from_text(name: str, kind: str, text: str, energy: str) -> Value:
    if kind == "structure":
        return _from_pymatgen(name, decoded(text.encode()), energy)
    try:
        atoms = next(ase.io.iread(io.StringIO(text), format="vasp" if kind == "poscar" else "cif"))
    except Exception as error:  # each of ASE's parsers fails in its own way
        raise Unfit("unreadable structure", one_line(error)) from None
    return value(name, atoms.numbers, atoms.positions, np.array(atoms.cell), energy)
