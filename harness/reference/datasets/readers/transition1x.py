"""Reader of Transition1x: an HDF5 file with points of nudged-elastic-band runs in /data/<formula>/<reaction>."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.datasets.containers import h5
from harness.reference.datasets.parsing.base import DatasetFormat, FileChunk
from harness.reference.datasets.parsing.paths import list_files, parse_chunk_bounds, split_into_chunks
from harness.reference.datasets.parsing.structure_builder import InvalidStructure, resize_tables
from harness.reference.errors import InputError

KEYS = ("positions", "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces")
SPLITS = ("test", "train", "val")


def list_chunks(paths: Sequence[Path]) -> list[FileChunk]:
    """Return ranges of each file's reactions, in the order of formula and name."""
    chunks = []
    for path, label in list_files(paths, (".h5", ".hdf5"), "HDF5 files"):
        with h5.open_root(path) as root:
            sizes = [_count_points(root, reaction) for reaction in _list_reactions(root, path)]
            if not any(sizes):
                raise InputError(f"{path}: not Transition1x, no reaction in it has {KEYS[1]!r}")
        chunks += split_into_chunks(path, label, sizes)
    return chunks


def _list_reactions(root: h5.Group, path: Path) -> list[tuple[str, str, str]]:
    """Return (split, formula, reaction) of all reactions: those in `data`, or in all splits if there is no `data`."""
    members = h5.list_names(root, str(path))
    splits = ["data"] if "data" in members else [name for name in SPLITS if name in members]
    if not splits:
        named = ", ".join(members[:6]) or "none"
        raise InputError(f"{path}: not Transition1x, its groups are {named}; expected data, or train, val and test")
    reactions = []
    for split in splits:
        try:
            group = h5.open_child(root, split)
            for formula in h5.list_names(group, f"{path}:{split}"):
                names = h5.list_names(h5.open_child(group, formula), f"{path}:{split}/{formula}")
                reactions += [(split, formula, name) for name in names]
        except InvalidStructure as error:
            raise InputError(f"{path}:{split}: not Transition1x, {error}") from None
    return reactions


def _count_points(root: h5.Group, reaction: tuple[str, str, str]) -> int:
    """Return the number of points of a reaction: that of its longest key, as each key may lack some of them."""
    try:
        group = h5.open_child(root, "/".join(reaction))
    except InvalidStructure:
        return 0
    return max(h5.count_dataset_rows(group, key) for key in KEYS)


def read_chunk(chunk: FileChunk) -> Iterator[StructureTable | RejectedStructure]:
    """Yield the points of reactions; separate copies of reactant, product and transition state are not read."""
    yield from resize_tables(_iter_tables(chunk))


def _iter_tables(chunk: FileChunk) -> Iterator[StructureTable | RejectedStructure]:
    label, first, stop = parse_chunk_bounds(chunk)
    with h5.open_root(chunk.path) as root:
        for reaction in _list_reactions(root, chunk.path)[first:stop]:
            where = "/".join((label, *reaction[1:]))
            start = count = 0
            try:
                group = h5.open_child(root, "/".join(reaction))
                numbers = h5.read_atomic_numbers(group, "atomic_numbers")
                for start, positions, energy, forces in h5.iter_conformations(group, numbers, KEYS):
                    count = start + len(energy)
                    ids = [f"{where}/{k}" for k in range(start, count)]
                    yield h5.tabulate_conformations(
                        ids, reaction[1], numbers=numbers, positions=positions, energy=energy, forces=forces
                    )
            except InvalidStructure as error:
                yield RejectedStructure(where, error.kind, str(error), max(1, _count_points(root, reaction) - count))


FORMAT = DatasetFormat("transition1x", "Transition1x.h5", list_chunks, read_chunk)
