"""ASE's SQLite databases (*.db): Nabla2DFT."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from ase.db.core import bytes_to_object

from harness.reference.datasets.formats.composition import formula
from harness.reference.datasets.formats.gather import Row, Unfit, gathered, made, missing, one_line, row
from harness.reference.datasets.formats.paths import PART, bounds, files
from harness.reference.datasets.formats.reader import Format, Part
from harness.reference.datasets.units import BOHR_ANGSTROM, HARTREE_EV, KCAL_PER_MOL_EV
from harness.reference.errors import InputError
from harness.reference.frames import Fault, Frames

MOST_ROWS = 10**10
ENERGY_UNITS = {"ev": 1.0, "ha": HARTREE_EV, "hartree": HARTREE_EV, "kcal/mol": KCAL_PER_MOL_EV}
LENGTH_UNITS = {"ang": 1.0, "angstrom": 1.0, "a": 1.0, "bohr": BOHR_ANGSTROM}
_QUERY = "SELECT id, numbers, positions, cell, pbc, energy, forces, key_value_pairs, data FROM systems"


def parts(paths: Sequence[Path]) -> list[Part]:
    """Ranges of row ids of each file."""
    found = []
    for path, label in files(paths, (".db",), "ASE databases"):
        with _reading(path) as database:
            low, high = database.execute("SELECT min(id), max(id) FROM systems").fetchone()
        if low is None:
            raise InputError(f"{path}: the database has no rows")
        if not (isinstance(low, int) and isinstance(high, int) and high - low < MOST_ROWS):
            raise InputError(f"{path}: row ids from {str(low)[:20]} to {str(high)[:20]}; damaged?")
        found += [Part(path, f"{label} {k}:{min(k + PART, high + 1)}") for k in range(low, high + 1, PART)]
    return found


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """The database, read-only; raises InputError for what is not ASE's."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)) as database:
            database.text_factory = lambda text: text.decode("utf-8", "replace")
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            if "systems" not in tables:
                raise InputError(f"{path}: not an ASE database, {missing('systems', tables)}")
            yield database
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not an ASE database, or a damaged one ({one_line(error)})") from None


def read(part: Part) -> Iterator[Frames | Fault]:
    """Rows in the order of their ids; labels of row.data in the units of the metadata, or else the row's, in eV."""
    label, first, stop = bounds(part)
    with _reading(part.path) as database:
        units = _units(part.path, database)
        rows = database.execute(f"{_QUERY} WHERE id >= ? AND id < ? ORDER BY id", (first, stop))
        yield from gathered(made(((f"{label}/{found[0]}", found) for found in rows), lambda w, r: _row(w, r, units)))


def _units(path: Path, database: sqlite3.Connection) -> tuple[float, float, float]:
    """(energy, force, length) of the file in eV and angstrom; without metadata: hartree and angstrom, Nabla2DFT's."""
    metadata: dict[str, Any] = {}
    for name, value in database.execute("SELECT name, value FROM information"):
        if name == "metadata":
            try:
                metadata = json.loads(value)
            except (TypeError, ValueError):
                raise InputError(f"{path}: its metadata are not JSON") from None
    properties = metadata.get("_property_unit_dict") or {}
    length = _unit(path, str(metadata.get("_distance_unit", "Ang")), LENGTH_UNITS)
    energy = _unit(path, str(properties.get("energy", "Hartree")), ENERGY_UNITS)
    force = str(properties.get("forces", ""))
    if not force:
        return energy, energy / length, length
    above, _, below = force.rpartition("/")
    return energy, _unit(path, above, ENERGY_UNITS) / _unit(path, below, LENGTH_UNITS), length


def _unit(path: Path, name: str, known: dict[str, float]) -> float:
    try:
        return known[name.lower()]
    except KeyError:
        raise InputError(f"{path}: metadata name the unit {name!r}; known are {', '.join(known)}") from None


def _row(where: str, stored: tuple[Any, ...], units: tuple[float, float, float]) -> Row:
    _, numbers, positions, cell, periodic, energy, forces, pairs, data = stored
    energy_unit, force_unit, length_unit = units
    labels = _object(data)
    keys = json.loads(pairs) if pairs else {}
    if "energy" in labels:
        energy = float(np.asarray(labels["energy"], dtype=np.float64).reshape(-1)[0]) * energy_unit
        forces = None if labels.get("forces") is None else np.asarray(labels["forces"], dtype=np.float64) * force_unit
    else:
        forces = None if forces is None else np.frombuffer(forces, dtype="<f8").reshape(-1, 3)
    if energy is None:
        raise Unfit("unlabelled", missing("energy", labels))
    found = np.frombuffer(numbers, dtype="<i4")
    box = np.zeros(9) if cell is None else np.frombuffer(cell, dtype="<f8")
    molecule = keys.get("moses_id", keys.get("smiles"))
    return row(
        where,
        formula(found) if molecule is None else str(molecule),
        found,
        np.frombuffer(positions, dtype="<f8") * length_unit,
        energy=energy,
        forces=forces,
        cell=box * length_unit,
        periodic=[bool(periodic >> k & 1) for k in range(3)],
    )


def _object(data: Any) -> dict[str, Any]:
    """row.data as ASE packs it: in bytes since version 8 of its databases, as text before."""
    if not data or data == "null":
        return {}
    found = json.loads(data) if isinstance(data, str) else bytes_to_object(data)
    if not isinstance(found, dict):
        raise Unfit("malformed", f"row.data is a {type(found).__name__}")
    return found


FORMAT = Format("asedb", "*.db (ASE, SQLite)", parts, read)
