"""Alexandria: *.json.bz2 files of pymatgen computed entries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.reference.data.structure_table import Fault, Frames
from harness.reference.datasets.containers.json_stream import CHUNK, Scanner, decoded, values
from harness.reference.datasets.parsing.base import MOST_BYTES, Format, Part
from harness.reference.datasets.parsing.composition import formula
from harness.reference.datasets.parsing.paths import files, opened
from harness.reference.datasets.parsing.pymatgen_json import crystal, site_forces, site_names, stress_from_kbar
from harness.reference.datasets.parsing.structure_builder import Row, Unfit, gathered, made, need, row
from harness.reference.datasets.parsing.unpacking import BZIP2, GZIP, HEAD, XZ, packing, unpacked
from harness.reference.errors import InputError


def parts(paths: Sequence[Path]) -> list[Part]:
    """One part for each file, about 100,000 entries."""
    listed = files(paths, (".json.bz2", ".json", ".json.gz", ".json.xz"), "Alexandria files")
    for path, _ in listed:
        with opened(path, accepted=(BZIP2, GZIP, XZ)) as file:
            head = file.read(HEAD)
        if not packing(head) and not head.lstrip().startswith(b"{"):
            raise InputError(f"{path}: neither bzip2 nor JSON, it begins {head[:16]!r}")
    return [Part(path, label) for path, label in listed]


def read(part: Part) -> Iterator[Frames | Fault]:
    """Entries in the order of the file."""
    yield from gathered(made(_entries(part), _row))


def _chunks(path: Path) -> Iterator[bytes]:
    with unpacked(path) as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _entries(part: Part) -> Iterator[tuple[str, bytes]]:
    for count, value in enumerate(values(_chunks(part.path), Scanner(str(part.path), 2, longest=MOST_BYTES))):
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
        names=[*site_names(structure), *data],
    )


FORMAT = Format("alexandria", "alexandria_*.json.bz2", parts, read)
