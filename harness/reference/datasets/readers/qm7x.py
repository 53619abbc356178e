"""Reader of QM7-X: 1000.xz .. 8000.xz, compressed HDF5 files with a group per molecule and per conformation."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.datasets.containers import h5
from harness.reference.datasets.parsing.base import DatasetFormat, FileChunk
from harness.reference.datasets.parsing.paths import list_files, open_file, parse_chunk_bounds, split_into_chunks
from harness.reference.datasets.parsing.structure_builder import InvalidStructure, resize_tables
from harness.reference.datasets.parsing.unpacking import (
    CHUNK,
    DECODING_ERRORS,
    HEAD_BYTES,
    XZ,
    detect_compression,
    unpack_stream,
)
from harness.reference.errors import InputError, get_first_line

WHOLE = "all"  # the key of a chunk with all molecules of a compressed file, in place of a range
# The decompressed size may be up to MIN_LIMIT_BYTES, or MAX_COMPRESSION times the compressed size if that is larger.
MIN_LIMIT_BYTES, MAX_COMPRESSION = 1 << 30, 50


def list_chunks(paths: Sequence[Path]) -> list[FileChunk]:
    """Return ranges of molecules of each file.

    A compressed file is one chunk; it is ignored if its decompressed copy exists too.
    """
    listed = list_files(paths, (".xz", ".hdf5", ".h5"), "QM7-X files (1000.xz .. 8000.xz or 1000.hdf5 ..)")
    chunks = []
    for path, label in listed:
        if path.suffix == ".xz":
            with open_file(path, accepted=(XZ,)) as file:
                if detect_compression(file.read(HEAD_BYTES)) != XZ:
                    raise InputError(f"{path}: not an xz file")
            chunks.append(FileChunk(path, f"{label} {WHOLE}"))
            continue
        with h5.open_root(path) as root:
            sizes = [_count_conformations(root, name) for name in h5.list_names(root, str(path))]
            if not any(sizes):
                raise InputError(f"{path}: not QM7-X, no molecule in it has conformations with 'atXYZ'")
        chunks += split_into_chunks(path, label, sizes)
    return chunks


def _count_conformations(root: h5.Group, name: str) -> int:
    try:
        return h5.count_members(h5.open_child(root, name))
    except InvalidStructure:
        return 0


def read_chunk(chunk: FileChunk) -> Iterator[StructureTable | RejectedStructure]:
    """Yield conformations molecule by molecule, with energies and forces of PBE0+MBD."""
    yield from resize_tables(_iter_tables(chunk))


def _iter_tables(chunk: FileChunk) -> Iterator[StructureTable | RejectedStructure]:
    if not chunk.key.endswith(f" {WHOLE}"):
        with h5.open_root(chunk.path) as root:
            label, first, stop = parse_chunk_bounds(chunk)
            yield from _iter_molecules(root, label, h5.list_names(root, str(chunk.path))[first:stop])
        return
    with _decompress(chunk.path) as path, h5.open_root(path) as root:
        yield from _iter_molecules(root, chunk.key.rpartition(" ")[0], h5.list_names(root, str(chunk.path)))


@contextmanager
def _decompress(path: Path) -> Iterator[Path]:
    """Decompress a file into a temporary folder (TMPDIR), which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="qm7x-") as folder:
        target = Path(folder) / f"{path.stem}.hdf5"
        try:
            with (
                open_file(path, accepted=(XZ,)) as packed,
                unpack_stream(packed, XZ) as plain,
                target.open("wb") as file,
            ):
                limit = max(MIN_LIMIT_BYTES, MAX_COMPRESSION * path.stat().st_size)
                while chunk := plain.read(CHUNK):
                    file.write(chunk)
                    if file.tell() > limit:
                        raise InputError(f"{path}: decompresses to more than {limit >> 20} MB; not QM7-X")
        except DECODING_ERRORS as error:
            if isinstance(error, OSError) and error.errno:
                raise InputError(f"{path}: cannot be decompressed into {folder} ({get_first_line(error)})") from None
            raise InputError(f"{path}: truncated or not an xz file ({get_first_line(error)})") from None
        yield target


def _iter_molecules(root: h5.Group, label: str, molecules: list[str]) -> Iterator[StructureTable | RejectedStructure]:
    for molecule in molecules:
        where = f"{label}/{molecule}"
        try:
            group = h5.open_child(root, molecule)
            names = h5.list_names(group, where)
        except (InvalidStructure, InputError) as error:
            yield RejectedStructure(where, "corrupt", str(error))
            continue
        yield from _iter_molecule(group, where, molecule, names)


def _iter_molecule(
    group: h5.Group, where: str, molecule: str, names: list[str]
) -> Iterator[StructureTable | RejectedStructure]:
    conformations: list[tuple[str, NDArray[np.uint8], Array, Array, Array]] = []
    for name in names:
        try:
            conformations.append((f"{where}/{name}", *_read_conformation(h5.open_child(group, name))))
        except InvalidStructure as error:
            yield RejectedStructure(f"{where}/{name}", error.kind, str(error))
    if conformations:
        yield _build_table(molecule, conformations)


def _read_conformation(group: h5.Group) -> tuple[NDArray[np.uint8], Array, Array, Array]:
    numbers = h5.read_atomic_numbers(group, "atNUM")
    positions, forces = (
        h5.read_values(h5.open_dataset(group, "atXYZ")),
        h5.read_values(h5.open_dataset(group, "totFOR")),
    )
    energy = h5.read_values(h5.open_dataset(group, "ePBE0+MBD")).reshape(-1)
    for key, array in (("atXYZ", positions), ("totFOR", forces)):
        if array.shape != (len(numbers), 3):
            raise InvalidStructure("shape", f"{key!r} has shape {array.shape}, expected ({len(numbers)}, 3)")
    if len(energy) != 1:
        raise InvalidStructure("shape", f"'ePBE0+MBD' holds {len(energy)} numbers, expected 1")
    return numbers, positions, energy, forces


def _build_table(
    molecule: str, conformations: list[tuple[str, NDArray[np.uint8], Array, Array, Array]]
) -> StructureTable:
    """Return the table of the conformations of one molecule, even if their numbers of atoms differ."""
    ids, numbers, positions, energy, forces = zip(*conformations, strict=True)
    count = len(ids)
    return StructureTable(
        ids=np.array(ids),
        groups=np.full(count, molecule),
        sizes=np.array([len(z) for z in numbers], dtype=np.int64),
        numbers=np.concatenate(numbers),
        positions=np.concatenate(positions),
        energy=np.concatenate(energy),
        cell=np.zeros((count, 3, 3)),
        periodic=np.zeros((count, 3), dtype=bool),
        charge=np.zeros(count, dtype=np.int64),
        multiplicity=np.zeros(count, dtype=np.int64),
        forces=np.concatenate(forces),
    )


FORMAT = DatasetFormat("qm7x", "1000.xz .. 8000.xz, or decompressed (.hdf5)", list_chunks, read_chunk)
