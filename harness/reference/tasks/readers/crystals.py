"""Readers of formation energies of crystals: OQMD and ABX3 perovskites."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase.data import atomic_numbers

from harness.reference.datasets.containers.json_stream import decode_json, read_crystal
from harness.reference.datasets.parsing.constants import format_formula
from harness.reference.datasets.parsing.paths import list_files
from harness.reference.datasets.parsing.structure_builder import (
    InvalidStructure,
    build_each,
    build_row,
    describe_missing_key,
    require_key,
)
from harness.reference.datasets.readers import extxyz
from harness.reference.errors import InputError, get_first_line
from harness.reference.tasks.dataset import LabelledRow, TaskDataset, collect_rows
from harness.reference.tasks.readers.energy_checks import check_formation_energies

ENERGY_KEY = "formation_energy_per_atom"
MAX_FIELD_CHARACTERS = 1 << 24
# The location of a structure, and a function that builds its row.
Sample = tuple[str, Callable[[], LabelledRow]]
OQMD_TABLE, OQMD_ENTRY, OQMD_ENERGY = "oqmd_data.csv", "entry_id", "Ef"
Energies = dict[str, str]
ABX3_ID, ABX3_ENERGY = "mp_id", "formation_energy (eV/atom)"
ABX3_COLUMNS = ("poscar", "cif", "structure")
ABX3_STRUCTURES = "structures.json"


def call_sample(_: str, make: Callable[[], LabelledRow]) -> LabelledRow:
    """Call the function of a sample, and return its row."""
    return make()


def build_crystal(name: str, numbers: Any, positions: Any, cell: Any, energy: Any) -> LabelledRow:
    """Build the row of a periodic crystal, whose group is its reduced formula.

    Args:
        name: The id.
        numbers: [n] atomic numbers.
        positions: [n, 3] angstrom.
        cell: [3, 3] angstrom.
        energy: Formation energy in eV/atom.

    Raises:
        InvalidStructure: The energy is missing, or a shape is wrong.
    """
    if energy in (None, ""):
        raise InvalidStructure("value not finite", f"{name} has no formation energy")
    columns = build_row(name, reduce_formula(numbers), numbers, positions, cell=cell, periodic=True)
    return LabelledRow(columns, float(energy))


def iter_frames(path: Path) -> Iterator[Sample]:
    """Yield the frames of extended XYZ with `formation_energy_per_atom` (eV/atom) and, if present, `id`."""
    with path.open(errors="replace") as file:
        for k, frame in enumerate(extxyz.iter_frames(file, str(path))):
            name = str(_read_keys(frame).get("id", f"{path.stem}/{k}"))
            yield name, partial(_build_from_frame, name, frame)


def _read_keys(frame: extxyz.FrameText) -> dict[str, Any]:
    """Return the keys of a frame; none if its header is invalid, which is reported when the row is built."""
    try:
        return frame.keys
    except InvalidStructure:
        return {}


def _build_from_frame(name: str, frame: extxyz.FrameText) -> LabelledRow:
    columns = extxyz.parse_frame(frame)
    return build_crystal(
        name, columns["numbers"], columns["positions"], columns["cell"], require_key(frame.keys, ENERGY_KEY)
    )


def iter_table(path: Path, needed: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file; raises InputError if it cannot be read or one of the columns is missing."""
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    try:
        with path.open(newline="", errors="replace") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            for column in needed:
                if column not in reader.fieldnames:
                    raise InputError(f"{path}: " + describe_missing_key(column, reader.fieldnames))
            yield from reader
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table ({get_first_line(error)})") from None


def load_json(path: Path) -> Any:
    """Return the content of a JSON file; raises InputError if it is truncated or not JSON."""
    try:
        return decode_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except InvalidStructure as error:
        raise InputError(f"{path}: truncated, or {error}") from None


def reduce_formula(numbers: Any) -> str:
    """Return the reduced formula, with elements in the order of atomic numbers."""
    counts = np.bincount(np.asarray(numbers, dtype=np.int64))
    common = math.gcd(*counts.tolist())
    return format_formula(np.repeat(np.arange(len(counts)), counts // max(common, 1)))


def read_oqmd(path: Path) -> TaskDataset:
    """Read the crystals of the Open Quantum Materials Database, grouped by reduced formula.

    Raises:
        InputError: Files are missing or damaged.
    """
    paths = [file for file, _ in list_files([path], (".json", ".extxyz", ".xyz"), "OQMD files")]
    table_path = (path if path.is_dir() else path.parent) / OQMD_TABLE
    energies = (
        {r[OQMD_ENTRY]: r[OQMD_ENERGY] for r in iter_table(table_path, (OQMD_ENTRY, OQMD_ENERGY))}
        if table_path.is_file()
        else None
    )
    samples = [
        s for file in paths for s in (_iter_oqmd_page(file, energies) if file.suffix == ".json" else iter_frames(file))
    ]
    absent = 0 if energies is None else len(energies.keys() - {where for where, _ in samples})
    labelled = collect_rows(
        build_each(samples, call_sample),
        str(path),
        "official OQMD, {count} crystals",
        "PBE / PBE+U (VASP)",
        Counter({f"in {OQMD_TABLE}, not in the pages": absent}),
    )
    return check_formation_energies(labelled, path)


def _iter_oqmd_page(path: Path, energies: Energies | None) -> Iterator[Sample]:
    page = load_json(path)
    entries = page.get("data") if isinstance(page, dict) else page
    if not isinstance(entries, list):
        raise InputError(f"{path}: not a page of the OQMD's API, expected {{'data': [...]}}")
    for k, entry in enumerate(entries):
        name = str(entry.get(OQMD_ENTRY, f"{path.stem}/{k}")) if isinstance(entry, dict) else f"{path.stem}/{k}"
        if energies is None or name in energies:
            yield name, partial(_build_oqmd_crystal, name, entry, energies)


def _build_oqmd_crystal(name: str, entry: Any, energies: Energies | None) -> LabelledRow:
    cell = np.array(require_key(entry, "unit_cell"), dtype=float)
    sites = [site.partition("@") for site in require_key(entry, "sites")]
    symbols = [symbol.strip().rstrip("0123456789+-") for symbol, _, _ in sites]
    if unknown := [s for s in symbols if not atomic_numbers.get(s)]:
        raise InvalidStructure("atomic number", f"{unknown[0]!r} is not an element")
    fractions = np.array([[float(x) for x in position.split()] for _, _, position in sites])
    energy = require_key(entry, "delta_e") if energies is None else energies[name]
    return build_crystal(name, [atomic_numbers[s] for s in symbols], fractions @ cell, cell, energy)


def read_abx3(path: Path) -> TaskDataset:
    """Read the perovskites, grouped by reduced formula; raises InputError if files are missing or damaged."""
    paths = [file for file, _ in list_files([path], (".csv", ".extxyz", ".xyz"), "tables of perovskites")]
    left_out: Counter[str] = Counter()
    samples = [
        s for file in paths for s in (_iter_abx3_table(file, left_out) if file.suffix == ".csv" else iter_frames(file))
    ]
    data_origin = "official ABX3 perovskites, {count} crystals"
    return check_formation_energies(
        collect_rows(build_each(samples, call_sample), str(path), data_origin, "PBE (VASP)", left_out), path
    )


def _iter_abx3_table(path: Path, left_out: Counter[str]) -> Iterator[Sample]:
    structures_path = path.parent / ABX3_STRUCTURES
    structures = load_json(structures_path) if structures_path.is_file() else None
    if not isinstance(structures, dict | None):
        raise InputError(
            f"{structures_path}: expected the structures by their mp_id, got a {type(structures).__name__}"
        )
    for fields in iter_table(path, (ABX3_ID, ABX3_ENERGY)):
        name = fields[ABX3_ID]
        column = next((c for c in ABX3_COLUMNS if c in fields), "")
        if column:
            yield name, partial(_build_from_text, name, column, fields[column], fields[ABX3_ENERGY])
        elif structures is None:
            raise InputError(f"{path}: no column {', '.join(ABX3_COLUMNS)}, and no {ABX3_STRUCTURES} next to it")
        elif name in structures:
            yield name, partial(_build_from_pymatgen, name, structures[name], fields[ABX3_ENERGY])
        else:
            left_out[f"not in {ABX3_STRUCTURES}"] += 1


def _build_from_pymatgen(name: str, structure: Any, energy: str) -> LabelledRow:
    numbers, positions, cell, _ = read_crystal(structure)
    return build_crystal(name, numbers, positions, cell, energy)


def _build_from_text(name: str, kind: str, text: str, energy: str) -> LabelledRow:
    if kind == "structure":
        return _build_from_pymatgen(name, decode_json(text.encode()), energy)
    try:
        atoms = next(ase.io.iread(io.StringIO(text), format="vasp" if kind == "poscar" else "cif"))
    except Exception as error:  # each of ASE's parsers fails in its own way
        raise InvalidStructure("unreadable structure", get_first_line(error)) from None
    return build_crystal(name, atoms.numbers, atoms.positions, np.array(atoms.cell), energy)
