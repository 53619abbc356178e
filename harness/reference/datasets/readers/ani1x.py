"""Reader of ANI-1x: ani1x-release.h5, with a group per formula that contains all conformations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.datasets.containers import h5
from harness.reference.datasets.parsing.base import DatasetFormat, FileChunk
from harness.reference.datasets.parsing.constants import HARTREE_EV
from harness.reference.datasets.parsing.paths import list_files, parse_chunk_bounds, split_into_chunks
from harness.reference.datasets.parsing.structure_builder import InvalidStructure, resize_tables
from harness.reference.errors import InputError

KEYS = ("coordinates", "wb97x_dz.energy", "wb97x_dz.forces")


def list_chunks(paths: Sequence[Path]) -> list[FileChunk]:
    """Return ranges of each file's groups, in the order of their names."""
    chunks = []
    for path, label in list_files(paths, (".h5", ".hdf5"), "HDF5 files"):
        with h5.open_root(path) as root:
            groups = h5.list_names(root, str(path))
            sizes = [_count_conformations(root, name) for name in groups]
            if not any(sizes):
                raise InputError(f"{path}: not ANI-1x, {_describe_mismatch(root, groups)}")
        chunks += split_into_chunks(path, label, sizes)
    return chunks


def _describe_mismatch(root: h5.Group, groups: list[str]) -> str:
    if not groups:
        return "it holds no groups"
    try:
        h5.open_dataset(h5.open_child(root, groups[0]), KEYS[0])
    except InvalidStructure as error:
        return f"{groups[0]!r}: {error}"
    return "its groups hold no conformations"


def _count_conformations(root: h5.Group, name: str) -> int:
    """Return the number of conformations of a group: that of its longest key, as each key may lack some of them."""
    try:
        group = h5.open_child(root, name)
    except InvalidStructure:
        return 0
    return max(h5.count_dataset_rows(group, key) for key in KEYS)


def read_chunk(chunk: FileChunk) -> Iterator[StructureTable | RejectedStructure]:
    """Yield conformations group by group; one rejection per group stands for those without wB97X/6-31G(d) labels."""
    yield from resize_tables(_iter_tables(chunk))


def _iter_tables(chunk: FileChunk) -> Iterator[StructureTable | RejectedStructure]:
    label, first, stop = parse_chunk_bounds(chunk)
    with h5.open_root(chunk.path) as root:
        for name in h5.list_names(root, str(chunk.path))[first:stop]:
            yielded = 0
            try:
                for piece in _iter_group(h5.open_child(root, name), label, name):
                    yielded += piece.count if isinstance(piece, RejectedStructure) else len(piece)
                    yield piece
            except InvalidStructure as error:
                rest = _count_conformations(root, name) - yielded
                yield RejectedStructure(f"{label}/{name}", error.kind, str(error), max(1, rest))


def _iter_group(group: h5.Group, label: str, name: str) -> Iterator[StructureTable | RejectedStructure]:
    numbers = h5.read_atomic_numbers(group, "atomic_numbers")
    unlabelled = total = 0
    for first, positions, energy, forces in h5.iter_conformations(group, numbers, KEYS):
        total += len(energy)
        absent = np.isnan(energy) | np.isnan(forces).all(axis=(1, 2))
        unlabelled += int(np.count_nonzero(absent))
        ids = [f"{label}/{name}/{k}" for k in range(first, first + len(energy))]
        table = h5.tabulate_conformations(
            ids, name, numbers=numbers, positions=positions, energy=energy * HARTREE_EV, forces=forces * HARTREE_EV
        )
        yield table[~absent] if absent.any() else table
    if unlabelled:
        reason = f"{unlabelled} of {total} conformations lack {KEYS[1]} or its forces"
        yield RejectedStructure(f"{label}/{name}", "unlabelled", reason, unlabelled)


FORMAT = DatasetFormat("ani1x", "ani1x-release.h5", list_chunks, read_chunk)
