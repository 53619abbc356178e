"""ASE's SQLite databases (*.db): Nabla2DFT."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from harness.reference.data.structure_table import Fault, Frames, Remark
from harness.reference.datasets.containers.ase_data import decode_data
from harness.reference.datasets.parsing.base import MOST_BYTES, Format, Part
from harness.reference.datasets.parsing.composition import formula
from harness.reference.datasets.parsing.energy_units import Sample, describe, fitting_units
from harness.reference.datasets.parsing.paths import PART, bounds, files, opened
from harness.reference.datasets.parsing.structure_builder import (
    LARGEST_BYTE,
    Row,
    Unfit,
    gathered,
    made,
    missing,
    one_line,
    row,
)
from harness.reference.datasets.units import BOHR_ANGSTROM, HARTREE_EV, KCAL_PER_MOL_EV
from harness.reference.errors import InputError

MOST_ROWS = 10**10
SAMPLES = 64  # rows whose energies decide on their unit
SQLITE = b"SQLite format 3\x00"
ENERGY_UNITS = {"ev": 1.0, "ha": HARTREE_EV, "hartree": HARTREE_EV, "kcal/mol": KCAL_PER_MOL_EV}
LENGTH_UNITS = {"ang": 1.0, "angstrom": 1.0, "a": 1.0, "bohr": BOHR_ANGSTROM}
VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])  # ASE's order: xx yy zz yz xz xy
_QUERY = "SELECT id, numbers, positions, cell, pbc, energy, forces, stress, key_value_pairs, data FROM systems"


class Units(NamedTuple):
    """What the labels of row.data are multiplied by; assumed: how the energy's unit was found, "" if it is written."""

    energy: float
    force: float
    length: float
    assumed: str = ""


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
    _check_whole(path)
    try:
        with closing(sqlite3.connect(_address(path), uri=True)) as database:
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_BYTES)
            database.text_factory = lambda text: text.decode("utf-8", "replace")
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            if "systems" not in tables:
                raise InputError(f"{path}: not an ASE database, {missing('systems', tables)}")
            yield database
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not an ASE database, or a damaged one ({one_line(error)})") from None


def _check_whole(path: Path) -> None:
    """Raise InputError for a file that is no database, or shorter than its own first page says."""
    with opened(path) as file:
        head = file.read(100)
    size = path.stat().st_size
    if head.startswith(SQLITE) and head[24:28] == head[92:96]:  # else an old version did not write the count
        needed = (int.from_bytes(head[16:18], "big") & 0xFFFE or 65536) * int.from_bytes(head[28:32], "big")
        if size < needed:
            reason = f"truncated, {size} of {needed} bytes; fetch it again"
            raise InputError(f"{path}: not an ASE database, or a damaged one ({reason})")


def _address(path: Path) -> str:
    """The address to open, so that changes in a write-ahead log are read too; raises InputError for unfinished ones."""
    log, journal = Path(f"{path}-wal"), Path(f"{path}-journal")
    if journal.is_file() and journal.read_bytes()[:1].strip(b"\x00"):
        raise InputError(
            f"{path}: {journal.name} lies with it, a write was interrupted; open it once with `sqlite3` where it was"
            " written, which undoes that write"
        )
    has_log = log.is_file() and log.stat().st_size > 0
    return f"file:{quote(os.fsencode(path))}?mode=ro{'' if has_log else '&immutable=1'}"


def read(part: Part) -> Iterator[Frames | Fault]:
    """Rows in the order of their ids; labels of row.data in the units of the metadata, or else the row's, in eV."""
    label, first, stop = bounds(part)
    with _reading(part.path) as database:
        units = _units(part.path, database)
        if units.assumed:
            yield Remark(part.path.name, "units", units.assumed, 0)
        rows = database.execute(f"{_QUERY} WHERE id >= ? AND id < ? ORDER BY id", (first, stop))
        yield from gathered(made(((f"{label}/{found[0]}", found) for found in rows), lambda w, r: _row(w, r, units)))


def _units(path: Path, database: sqlite3.Connection) -> Units:
    """The units of the metadata; an energy's that is not among them is the one in which energies are plausible."""
    metadata: dict[str, Any] = {}
    for name, value in database.execute("SELECT name, value FROM information"):
        if name == "metadata":
            try:
                metadata = json.loads(value)
            except (TypeError, ValueError, RecursionError):
                raise InputError(f"{path}: its metadata are not JSON") from None
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: its metadata are not named values")
    properties = metadata.get("_property_unit_dict")
    properties = properties if isinstance(properties, dict) else {}
    length = _unit(path, str(metadata.get("_distance_unit", "Ang")), LENGTH_UNITS)
    named, assumed = str(properties.get("energy") or ""), ""
    if not named:
        named, assumed = _plausible_unit(path, database)
    energy = _unit(path, named, ENERGY_UNITS)
    force = str(properties.get("forces", ""))
    if not force:
        return Units(energy, energy / length, length, assumed)
    above, _, below = force.rpartition("/")
    return Units(energy, _unit(path, above, ENERGY_UNITS) / _unit(path, below, LENGTH_UNITS), length, assumed)


def _plausible_unit(path: Path, database: sqlite3.Connection) -> tuple[str, str]:
    """(unit, how it was found) of the energies in row.data; raises InputError where none or several are plausible."""
    rows = database.execute("SELECT numbers, data FROM systems")
    samples = list(islice((s for s in (_sample(*found) for found in rows) if s is not None), SAMPLES))
    if not samples:
        return "eV", ""
    units = fitting_units(samples)
    if len(units) != 1:
        fits = "both hartree and eV" if units else "neither hartree nor eV"
        raise InputError(
            f"{path}: its metadata name no unit of energy, and energies such as {describe(samples)} fit {fits};"
            " add {'_property_unit_dict': {'energy': 'Hartree' or 'eV', ...}} to the metadata of the database"
        )
    return units[0], f"no unit in the metadata; energies are taken as {units[0]}, such as {describe(samples)}"


def _sample(numbers: Any, data: Any) -> Sample | None:
    """A row's atomic numbers and energy, None where it has none that can be read."""
    try:
        energy = decode_data(data, ("energy",)).get("energy")
        found = np.frombuffer(numbers, dtype="<i4").astype(np.int64)
        value = float(np.asarray(energy, dtype=np.float64).reshape(-1)[0])
    except (Unfit, ValueError, TypeError, OverflowError, IndexError):
        return None
    fits = len(found) and found.min() > 0 and found.max() <= LARGEST_BYTE and np.isfinite(value)
    return (found, value) if fits else None


def _unit(path: Path, name: str, known: dict[str, float]) -> float:
    try:
        return known[name.lower()]
    except KeyError:
        raise InputError(f"{path}: metadata name the unit {name!r}; known are {', '.join(known)}") from None


def _row(where: str, stored: tuple[Any, ...], units: Units) -> Row:
    _, numbers, positions, cell, periodic, energy, forces, stress, pairs, data = stored
    labels = decode_data(data, ("energy", "forces", "stress", "charge", "spin"))
    keys = json.loads(pairs) if pairs else {}
    if labels.get("energy") is not None:
        energy = np.asarray(labels["energy"], dtype=np.float64) * units.energy
        forces = None if labels.get("forces") is None else np.asarray(labels["forces"], dtype=np.float64) * units.force
        stress = None
    else:
        forces = None if forces is None else np.frombuffer(forces, dtype="<f8").reshape(-1, 3)
        stress = None if stress is None else np.frombuffer(stress, dtype="<f8").reshape(6)[VOIGT]
    if energy is None:
        raise Unfit("unlabelled", missing("energy", [*labels, *keys]))
    found = np.frombuffer(numbers, dtype="<i4")
    box = np.zeros(9) if cell is None else np.frombuffer(cell, dtype="<f8")
    molecule = keys.get("moses_id", keys.get("smiles"))
    return row(
        where,
        formula(found) if molecule is None else str(molecule),
        found,
        np.frombuffer(positions, dtype="<f8") * units.length,
        energy=energy,
        forces=forces,
        cell=box * units.length,
        periodic=[bool(periodic >> k & 1) for k in range(3)],
        stress=stress,
        charge=labels.get("charge", keys.get("charge")),
        multiplicity=labels.get("spin", keys.get("spin")),
        names=[*labels, *keys],
    )


FORMAT = Format("asedb", "*.db (ASE, SQLite)", parts, read)
