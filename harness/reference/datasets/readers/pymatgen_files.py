"""Readers of Alexandria and MPtrj: large JSON files with pymatgen structures, which are read value by value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.datasets.containers.json_stream import (
    CHUNK_BYTES,
    JsonScanner,
    Value,
    convert_stress_from_kbar,
    decode_json,
    iter_values,
    list_site_names,
    read_crystal,
    read_site_forces,
)
from harness.reference.datasets.parsing.base import MAX_STRUCTURE_BYTES, DatasetFormat, FileChunk
from harness.reference.datasets.parsing.constants import format_formula
from harness.reference.datasets.parsing.paths import list_files, open_file, parse_chunk_bounds
from harness.reference.datasets.parsing.structure_builder import (
    InvalidStructure,
    StructureRow,
    build_each,
    build_row,
    require_key,
    tabulate_rows,
)
from harness.reference.datasets.parsing.unpacking import BZIP2, GZIP, HEAD_BYTES, XZ, detect_compression, open_unpacked
from harness.reference.errors import InputError

CHUNK_SPAN_BYTES = 256 << 20  # the size of a chunk, about 35,000 frames
MAX_KEY_BYTES = 128
NAME = rb"(?:mp|mvc)-\d+"  # the name of a material; frames are named mp-1234-0-1
MATERIAL = re.compile(rb'"(' + NAME + rb')"\s*:\s*\{')
FRAME = b'"structure"'  # a key that every frame has once
ANY_KEY = re.compile(rb'"([^"]{1,%d})"\s*:\s*$' % MAX_KEY_BYTES)


def split_alexandria(paths: Sequence[Path]) -> list[FileChunk]:
    """Return one chunk for each file; a file has about 100,000 entries."""
    listed = list_files(paths, (".json.bz2", ".json", ".json.gz", ".json.xz"), "Alexandria files")
    for path, _ in listed:
        with open_file(path, accepted=(BZIP2, GZIP, XZ)) as file:
            head = file.read(HEAD_BYTES)
        if not detect_compression(head) and not head.lstrip().startswith(b"{"):
            raise InputError(f"{path}: neither bzip2 nor JSON, it begins with {head[:16]!r}")
    return [FileChunk(path, label) for path, label in listed]


def read_alexandria(chunk: FileChunk) -> Iterator[StructureTable | RejectedStructure]:
    """Yield entries in the order of the file."""
    yield from tabulate_rows(build_each(_iter_entries(chunk), _build_alexandria_row))


def _iter_chunks(path: Path) -> Iterator[bytes]:
    with open_unpacked(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _iter_entries(chunk: FileChunk) -> Iterator[tuple[str, bytes]]:
    for count, value in enumerate(
        iter_values(_iter_chunks(chunk.path), JsonScanner(str(chunk.path), 2, longest=MAX_STRUCTURE_BYTES))
    ):
        if not count and b'"entries"' not in value.before:
            raise InputError(f"{chunk.path}: not Alexandria, expected {{'entries': [...]}}")
        where = f"{chunk.key}/{count}"
        yield where, value.text


def _build_alexandria_row(where: str, text: bytes) -> StructureRow:
    entry = decode_json(text)
    structure, data = require_key(entry, "structure"), require_key(entry, "data")
    numbers, positions, cell, periodic = read_crystal(structure)
    if not numbers:
        raise InvalidStructure("empty", "no atoms")
    energy = data["energy_total"] if "energy_total" in data else require_key(entry, "energy")
    material = data.get("mat_id")
    return build_row(
        where if material is None else f"{where.rpartition('/')[0]}/{material}",
        format_formula(numbers),
        numbers,
        positions,
        energy=energy,
        forces=read_site_forces(structure),
        cell=cell,
        periodic=periodic,
        stress=convert_stress_from_kbar(data.get("stress")),
        names=[*list_site_names(structure), *data],
    )


ALEXANDRIA = DatasetFormat("alexandria", "alexandria_*.json.bz2", split_alexandria, read_alexandria)


def split_mptrj(paths: Sequence[Path]) -> list[FileChunk]:
    """Return ranges of bytes of each file; a material belongs to the range in which its name begins."""
    chunks = []
    for path, label in list_files(paths, (".json",), "JSON files"):
        size = path.stat().st_size
        with open_file(path) as file:
            head = file.read(4096)
        if not re.match(rb'\s*\{\s*"[^"]+"\s*:\s*\{', head) and head.strip() != b"{}":
            raise InputError(f"{path}: not MPtrj, expected {{material: {{frame: ...}}}}, it begins with {head[:24]!r}")
        cuts = [*range(0, max(size - CHUNK_SPAN_BYTES // 2, 1), CHUNK_SPAN_BYTES), size]
        chunks += [FileChunk(path, f"{label} {first}:{stop}") for first, stop in pairwise(cuts)]
    return chunks


def read_mptrj(chunk: FileChunk) -> Iterator[StructureTable | RejectedStructure]:
    """Yield frames in the order of the file, with energies without the Materials Project's corrections."""
    label, first, stop = parse_chunk_bounds(chunk)
    yield from tabulate_rows(build_each(_iter_frames(chunk.path, label, first, stop), _build_mptrj_row))


def _iter_frames(path: Path, label: str, first: int, stop: int) -> Iterator[tuple[str, Any]]:
    for material, value in _iter_materials(path, first, stop):
        where = f"{label}/{material}"
        try:
            frames = decode_json(value.text)
            if not isinstance(frames, dict):
                raise InvalidStructure("malformed", f"a {type(frames).__name__}, expected frames by name")
        except InvalidStructure as error:
            yield where, RejectedStructure(where, error.kind, str(error), max(1, value.text.count(FRAME)))
            continue
        n_repeated = value.text.count(FRAME) - len(frames)
        if n_repeated > 0:
            yield (
                where,
                RejectedStructure(
                    where, "duplicate", f"{n_repeated} of its frames have the name of another frame", n_repeated
                ),
            )
        for name, frame in frames.items():
            yield f"{label}/{name}", (material, frame)


def _iter_materials(path: Path, first: int, stop: int) -> Iterator[tuple[str, Value]]:
    """Yield (name, value) of the materials whose names begin in [first, stop)."""
    with open_file(path) as file:
        start = _find_boundary(file, first) if first else 0
        if start is None or start >= stop:
            return
        file.seek(start)
        scanner = JsonScanner(str(path), 1, level=int(first > 0), offset=start)
        while chunk := file.read(CHUNK_BYTES):
            for value in scanner.feed(chunk):
                before = value.before[-2 * MAX_KEY_BYTES :]
                named = ANY_KEY.search(before)
                if named is None:
                    raise InputError(f"{path}: the object at byte {value.offset} has no name, expected a material's")
                begins = value.offset - len(before) + named.start()
                if begins >= stop and re.fullmatch(NAME, named[1]):
                    return
                yield named[1].decode("utf-8", "replace"), value
        scanner.finish()


def _find_boundary(file: Any, first: int) -> int | None:
    """Return the offset of the first material that begins at byte `first` or later; None if there is none."""
    file.seek(first)
    text, base = b"", first
    while chunk := file.read(CHUNK_BYTES):
        text += chunk
        if match := MATERIAL.search(text):
            return base + match.start()
        base += max(len(text) - MAX_KEY_BYTES, 0)
        text = text[-MAX_KEY_BYTES:]
    return None


def _build_mptrj_row(name: str, item: tuple[str, Any]) -> StructureRow:
    material, frame = item
    numbers, positions, cell, periodic = read_crystal(require_key(frame, "structure"))
    if not numbers:
        raise InvalidStructure("empty", "no atoms")
    return build_row(
        name,
        material,
        numbers,
        positions,
        energy=require_key(frame, "uncorrected_total_energy"),
        forces=require_key(frame, "force"),
        cell=cell,
        periodic=periodic,
        stress=convert_stress_from_kbar(frame.get("stress")),
        names=frame,
    )


MPTRJ = DatasetFormat("mptrj", "MPtrj_2022.9_full.json", split_mptrj, read_mptrj)
