"""Alexandria: *.json.bz2 files of pymatgen computed entries."""

from __future__ import annotations

import bz2
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.reference.datasets.formats.composition import formula
from harness.reference.datasets.formats.gather import Row, Unfit, gathered, made, need, one_line, row
from harness.reference.datasets.formats.json_stream import CHUNK, Scanner, decoded, values
from harness.reference.datasets.formats.paths import files, opened
from harness.reference.datasets.formats.pymatgen_json import crystal, site_forces, stress_from_kbar
from harness.reference.datasets.formats.reader import Format, Part
from harness.reference.errors import InputError
from harness.reference.frames import Fault, Frames


def parts(paths: Sequence[Path]) -> list[Part]:
    """One part for each file, about 100,000 entries."""
    listed = files(paths, (".json.bz2", ".json"), "Alexandria files")
    for path, _ in listed:
        with opened(path) as file:
            head = file.read(64)
        if not (head.startswith(b"BZh") if path.suffix == ".bz2" else head.lstrip().startswith(b"{")):
            raise InputError(f"{path}: neither bzip2 nor JSON, it begins {head[:16]!r}")
    return [Part(path, label) for path, label in listed]


def read(part: Part) -> Iterator[Frames | Fault]:
    """Entries in the order of the file."""
    yield from gathered(made(_entries(part), _row))


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with bz2.open(path) if path.suffix == ".bz2" else path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: truncated or not a bzip2 file ({one_line(error)})") from None


def _entries(part: Part) -> Iterator[tuple[str, bytes]]:
    for count, value in enumerate(values(_chunks(part.path), Scanner(str(part.path), 2))):
        if not count and b'"entries"' not in value.before:
            raise InputError(f"{part.path}: not Alexandria, expected {{'entries': [...]}}")
        where = f"{part.key}/{count}"
        yield where, value.text


def _row(where: str, text: bytes) -> Row:
    entry = decoded(text)
    structure, data = need(entry, "structure"), need(entry, "data")
    numbers, positions, cell, periodic = crystal(structure)
    if not numbers:
        raise Unfit("empty", "no atoms")
    energy = data["energy_total"] if "energy_total" in data else need(entry, "energy")
    material = data.get("mat_id")
    return row(
        where if material is None else f"{where.rpartition('/')[0]}/{material}",
        formula(numbers),
        numbers,
        positions,
        energy=energy,
        forces=site_forces(structure),
        cell=cell,
        periodic=periodic,
        stress=stress_from_kbar(data.get("stress")),
    )


FORMAT = Format("alexandria", "alexandria_*.json.bz2", parts, read)
