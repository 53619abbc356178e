"""ANI-1x: ani1x-release.h5, a group per formula with all of its conformations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from harness.reference.data.structure_table import Fault, Frames
from harness.reference.datasets.containers import h5
from harness.reference.datasets.parsing.base import Format, Part
from harness.reference.datasets.parsing.paths import bounds, files, ranges
from harness.reference.datasets.parsing.structure_builder import Unfit, blocked
from harness.reference.datasets.units import HARTREE_EV
from harness.reference.errors import InputError

KEYS = ("coordinates", "wb97x_dz.energy", "wb97x_dz.forces")


def parts(paths: Sequence[Path]) -> list[Part]:
    """Ranges of each file's groups, in the order of their names."""
    found = []
    for path, label in files(paths, (".h5", ".hdf5"), "HDF5 files"):
        with h5.opened(path) as root:
            groups = h5.names(root, str(path))
            sizes = [_size(root, name) for name in groups]
            if not any(sizes):
                raise InputError(f"{path}: not ANI-1x, {_why(root, groups)}")
        found += ranges(path, label, sizes)
    return found


def _why(root: h5.Group, groups: list[str]) -> str:
    if not groups:
        return "it holds no groups"
    try:
        h5.dataset(h5.child(root, groups[0]), KEYS[0])
    except Unfit as error:
        return f"{groups[0]!r}: {error}"
    return "its groups hold no conformations"


def _size(root: h5.Group, name: str) -> int:
    """The most conformations that any key of a group has: those that lack another key count too."""
    try:
        group = h5.child(root, name)
    except Unfit:
        return 0
    return max(h5.size(group, key) for key in KEYS)


def read(part: Part) -> Iterator[Frames | Fault]:
    """Conformations group by group; those without a wB97X/6-31G(d) label are one fault per group."""
    yield from blocked(_pieces(part))


def _pieces(part: Part) -> Iterator[Frames | Fault]:
    label, first, stop = bounds(part)
    with h5.opened(part.path) as root:
        for name in h5.names(root, str(part.path))[first:stop]:
            yielded = 0
            try:
                for piece in _group(h5.child(root, name), label, name):
                    yielded += piece.count if isinstance(piece, Fault) else len(piece)
                    yield piece
            except Unfit as error:
                rest = _size(root, name) - yielded
                yield Fault(f"{label}/{name}", error.kind, str(error), max(1, rest))


def _group(group: h5.Group, label: str, name: str) -> Iterator[Frames | Fault]:
    numbers = h5.atomic_numbers(group, "atomic_numbers")
    unlabelled = total = 0
    for first, positions, energy, forces in h5.conformations(group, numbers, KEYS):
        total += len(energy)
        absent = np.isnan(energy) | np.isnan(forces).all(axis=(1, 2))
        unlabelled += int(np.count_nonzero(absent))
        ids = [f"{label}/{name}/{k}" for k in range(first, first + len(energy))]
        found = h5.same_molecule(ids, name, numbers, positions, energy * HARTREE_EV, forces * HARTREE_EV)
        yield found[~absent] if absent.any() else found
    if unlabelled:
        reason = f"{unlabelled} of {total} conformations lack {KEYS[1]} or its forces"
        yield Fault(f"{label}/{name}", "unlabelled", reason, unlabelled)


FORMAT = Format("ani1x", "ani1x-release.h5", parts, read)
