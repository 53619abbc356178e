"""Reader of ASE's SQLite databases (*.db): Nabla2DFT."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from harness.reference.data.structure_table import RejectedStructure, Remark, StructureTable
from harness.reference.datasets.containers.json_stream import decode_json
from harness.reference.datasets.parsing.base import MAX_STRUCTURE_BYTES, VOIGT, DatasetFormat, FileChunk
from harness.reference.datasets.parsing.constants import BOHR_ANGSTROM, HARTREE_EV, KCAL_PER_MOL_EV, format_formula
from harness.reference.datasets.parsing.paths import CHUNK_STRUCTURES, list_files, open_file, parse_chunk_bounds
from harness.reference.datasets.parsing.plausibility import EnergySample, describe_sample, find_fitting_units
from harness.reference.datasets.parsing.structure_builder import (
    MAX_BYTE,
    InvalidStructure,
    StructureRow,
    build_each,
    build_row,
    describe_missing_key,
    tabulate_rows,
)
from harness.reference.errors import InputError, get_first_line

MAX_ROWS = 10**10
SAMPLES = 64  # number of rows from which the unit of energies is determined
SQLITE = b"SQLite format 3\x00"
ENERGY_UNITS = {"ev": 1.0, "ha": HARTREE_EV, "hartree": HARTREE_EV, "kcal/mol": KCAL_PER_MOL_EV}
LENGTH_UNITS = {"ang": 1.0, "angstrom": 1.0, "a": 1.0, "bohr": BOHR_ANGSTROM}
_QUERY = "SELECT id, numbers, positions, cell, pbc, energy, forces, stress, key_value_pairs, data FROM systems"


class Units(NamedTuple):
    """The factors that convert the labels in row.data to eV and angstrom.

    Attributes:
        energy: eV per unit of energy.
        force: eV/angstrom per unit of force.
        length: Angstrom per unit of length.
        assumed: How the unit of energy was determined; "" if the metadata name it.
    """

    energy: float
    force: float
    length: float
    assumed: str = ""


def list_chunks(paths: Sequence[Path]) -> list[FileChunk]:
    """Return ranges of row ids of each file."""
    chunks = []
    for path, label in list_files(paths, (".db",), "ASE databases"):
        with _open_database(path) as database:
            low, high = database.execute("SELECT min(id), max(id) FROM systems").fetchone()
        if low is None:
            raise InputError(f"{path}: the database has no rows")
        if not (isinstance(low, int) and isinstance(high, int) and high - low < MAX_ROWS):
            raise InputError(f"{path}: row ids from {str(low)[:20]} to {str(high)[:20]}; damaged?")
        chunks += [
            FileChunk(path, f"{label} {k}:{min(k + CHUNK_STRUCTURES, high + 1)}")
            for k in range(low, high + 1, CHUNK_STRUCTURES)
        ]
    return chunks


@contextmanager
def _open_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database, read-only; raises InputError if it is not one of ASE."""
    _check_size(path)
    try:
        with closing(sqlite3.connect(_find_address(path), uri=True)) as database:
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_STRUCTURE_BYTES)
            database.text_factory = lambda text: text.decode("utf-8", "replace")
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            if "systems" not in tables:
                raise InputError(f"{path}: not an ASE database, {describe_missing_key('systems', tables)}")
            yield database
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not an ASE database, or a damaged one ({get_first_line(error)})") from None


def _check_size(path: Path) -> None:
    """Raise InputError for a file that is empty, or shorter than its first page says."""
    with open_file(path) as file:
        head = file.read(100)
    size = path.stat().st_size
    if head.startswith(SQLITE) and head[24:28] == head[92:96]:  # otherwise, the number of pages is not valid
        needed = (int.from_bytes(head[16:18], "big") & 0xFFFE or 65536) * int.from_bytes(head[28:32], "big")
        if size < needed:
            reason = f"truncated, {size} of {needed} bytes; fetch it again"
            raise InputError(f"{path}: not an ASE database, or a damaged one ({reason})")


def _find_address(path: Path) -> str:
    """Return the URI that opens a database with its write-ahead log; raises InputError for an interrupted write."""
    log, journal = Path(f"{path}-wal"), Path(f"{path}-journal")
    if journal.is_file() and journal.read_bytes()[:1].strip(b"\x00"):
        raise InputError(
            f"{path}: {journal.name} is next to it, so a write was interrupted; open the database once with `sqlite3`"
            " where it was written, which undoes that write"
        )
    has_log = log.is_file() and log.stat().st_size > 0
    return f"file:{quote(os.fsencode(path))}?mode=ro{'' if has_log else '&immutable=1'}"


def read_chunk(chunk: FileChunk) -> Iterator[StructureTable | RejectedStructure]:
    """Yield rows in the order of their ids, with labels converted from the units of the metadata."""
    label, first, stop = parse_chunk_bounds(chunk)
    with _open_database(chunk.path) as database:
        units = _read_units(chunk.path, database)
        if units.assumed:
            yield Remark(chunk.path.name, "units", units.assumed, 0)
        rows = database.execute(f"{_QUERY} WHERE id >= ? AND id < ? ORDER BY id", (first, stop))
        yield from tabulate_rows(
            build_each(((f"{label}/{record[0]}", record) for record in rows), lambda w, r: _build_row(w, r, units))
        )


def _read_units(path: Path, database: sqlite3.Connection) -> Units:
    """Return the units in the metadata; a missing unit of energy is the one in which energies are plausible."""
    metadata: dict[str, Any] = {}
    for name, value in database.execute("SELECT name, value FROM information"):
        if name == "metadata":
            try:
                metadata = json.loads(value)
            except (TypeError, ValueError, RecursionError):
                raise InputError(f"{path}: its metadata are not JSON") from None
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: its metadata are not a mapping")
    properties = metadata.get("_property_unit_dict")
    properties = properties if isinstance(properties, dict) else {}
    length = _get_unit_factor(path, str(metadata.get("_distance_unit", "Ang")), LENGTH_UNITS)
    name, assumed = str(properties.get("energy") or ""), ""
    if not name:
        name, assumed = _find_plausible_unit(path, database)
    energy = _get_unit_factor(path, name, ENERGY_UNITS)
    force = str(properties.get("forces", ""))
    if not force:
        return Units(energy, energy / length, length, assumed)
    numerator, _, denominator = force.rpartition("/")
    factor = _get_unit_factor(path, numerator, ENERGY_UNITS) / _get_unit_factor(path, denominator, LENGTH_UNITS)
    return Units(energy, factor, length, assumed)


def _find_plausible_unit(path: Path, database: sqlite3.Connection) -> tuple[str, str]:
    """Return (unit, explanation) of the energies in row.data; raises InputError unless exactly one is plausible."""
    rows = database.execute("SELECT numbers, data FROM systems")
    samples = list(islice((s for s in (_read_sample(*record) for record in rows) if s is not None), SAMPLES))
    if not samples:
        return "eV", ""
    units = find_fitting_units(samples)
    if len(units) != 1:
        fits = "both hartree and eV" if units else "neither hartree nor eV"
        raise InputError(
            f"{path}: its metadata name no unit of energy, and energies such as {describe_sample(samples)} fit {fits};"
            " add {'_property_unit_dict': {'energy': 'Hartree' or 'eV', ...}} to the metadata of the database"
        )
    return units[0], f"no unit in the metadata; energies are taken as {units[0]}, such as {describe_sample(samples)}"


def _read_sample(numbers: Any, data: Any) -> EnergySample | None:
    """Return the atomic numbers and the energy of a row, or None if they cannot be read."""
    try:
        energy = decode_data(data, ("energy",)).get("energy")
        elements = np.frombuffer(numbers, dtype="<i4").astype(np.int64)
        value = float(np.asarray(energy, dtype=np.float64).reshape(-1)[0])
    except (InvalidStructure, ValueError, TypeError, OverflowError, IndexError):
        return None
    fits = len(elements) and elements.min() > 0 and elements.max() <= MAX_BYTE and np.isfinite(value)
    return (elements, value) if fits else None


def _get_unit_factor(path: Path, name: str, known: dict[str, float]) -> float:
    try:
        return known[name.lower()]
    except KeyError:
        raise InputError(f"{path}: metadata name the unit {name!r}; known are {', '.join(known)}") from None


def _build_row(where: str, stored: tuple[Any, ...], units: Units) -> StructureRow:
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
        raise InvalidStructure("unlabelled", describe_missing_key("energy", [*labels, *keys]))
    elements = np.frombuffer(numbers, dtype="<i4")
    box = np.zeros(9) if cell is None else np.frombuffer(cell, dtype="<f8")
    molecule = keys.get("moses_id", keys.get("smiles"))
    return build_row(
        where,
        format_formula(elements) if molecule is None else str(molecule),
        elements,
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


FORMAT = DatasetFormat("asedb", "*.db (ASE, SQLite)", list_chunks, read_chunk)


def decode_data(data: Any, keys: Collection[str]) -> dict[str, Any]:
    """Decode row.data: return the values of the selected keys, and None for all other keys.

    Before version 8 of its databases, ASE stores row.data as JSON text; since then, it stores bytes: the offset of the
    JSON in the first eight bytes, then numbers, then JSON that refers to them.

    Raises:
        InvalidStructure: The data have another form.
    """
    if not data or data == "null":
        return {}
    raw = data.encode() if isinstance(data, str) else bytes(data)
    start = 0 if isinstance(data, str) else int.from_bytes(raw[:8], "little")
    if start > len(raw):
        raise InvalidStructure("malformed", "row.data points beyond its end")
    try:
        result = decode_json(raw[start:])
    except InvalidStructure as error:
        raise InvalidStructure("malformed", f"row.data is {error}") from None
    if not isinstance(result, dict):
        raise InvalidStructure("malformed", f"row.data is a {type(result).__name__}")
    return {str(name): _decode_value(value, raw) if name in keys else None for name, value in result.items()}


def _decode_value(value: Any, raw: bytes) -> Any:
    if not isinstance(value, dict):
        return value
    stored = value.get("__ndarray__")
    if not isinstance(stored, list) or len(stored) != 3:
        return None
    shape, name, offset = stored
    kind = np.dtype(str(name)[:10])
    if kind.kind not in "biuf":
        raise InvalidStructure("malformed", f"row.data has numbers of type {str(name)[:10]!r}")
    if isinstance(offset, list):
        return np.array(offset, dtype=kind).reshape(shape)
    count = int(np.prod(shape, dtype=np.float64))
    if not (isinstance(offset, int) and 0 <= offset <= offset + count * kind.itemsize <= len(raw)):
        raise InvalidStructure("malformed", "row.data points beyond its end")
    return np.frombuffer(raw, kind, count, offset).reshape(shape)
