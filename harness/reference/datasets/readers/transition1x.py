"""Transition1x: one HDF5 file, /data/<formula>/<reaction> with the points of its nudged elastic band runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.reference.data.structure_table import Fault, Frames
from harness.reference.datasets.containers import h5
from harness.reference.datasets.parsing.base import Format, Part
from harness.reference.datasets.parsing.paths import bounds, files, ranges
from harness.reference.datasets.parsing.structure_builder import Unfit, blocked
from harness.reference.errors import InputError

KEYS = ("positions", "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces")
SPLITS = ("test", "train", "val")


def parts(paths: Sequence[Path]) -> list[Part]:
    """Ranges of each file's reactions, in the order of formula and name."""
    found = []
    for path, label in files(paths, (".h5", ".hdf5"), "HDF5 files"):
        with h5.opened(path) as root:
            sizes = [_size(root, reaction) for reaction in _reactions(root, path)]
            if not any(sizes):
                raise InputError(f"{path}: not Transition1x, no reaction in it has {KEYS[1]!r}")
        found += ranges(path, label, sizes)
    return found


def _reactions(root: h5.Group, path: Path) -> list[tuple[str, str, str]]:
    """(split, formula, reaction): of `data`, which holds all of them, or else of the splits."""
    there = h5.names(root, str(path))
    splits = ["data"] if "data" in there else [name for name in SPLITS if name in there]
    if not splits:
        named = ", ".join(there[:6]) or "none"
        raise InputError(f"{path}: not Transition1x, its groups are {named}; expected data, or train, val and test")
    found = []
    for split in splits:
        try:
            group = h5.child(root, split)
            for formula in h5.names(group, f"{path}:{split}"):
                reactions = h5.names(h5.child(group, formula), f"{path}:{split}/{formula}")
                found += [(split, formula, reaction) for reaction in reactions]
        except Unfit as error:
            raise InputError(f"{path}:{split}: not Transition1x, {error}") from None
    return found


def _size(root: h5.Group, reaction: tuple[str, str, str]) -> int:
    """The most points that any key of a reaction has: those that lack another key count too."""
    try:
        group = h5.child(root, "/".join(reaction))
    except Unfit:
        return 0
    return max(h5.size(group, key) for key in KEYS)


def read(part: Part) -> Iterator[Frames | Fault]:
    """Points of reactions; the reactant, product and transition state of each are among them, so kept apart copies
    of those three are not read.
    """
    yield from blocked(_pieces(part))


def _pieces(part: Part) -> Iterator[Frames | Fault]:
    label, first, stop = bounds(part)
    with h5.opened(part.path) as root:
        for reaction in _reactions(root, part.path)[first:stop]:
            where = "/".join((label, *reaction[1:]))
            start = count = 0
            try:
                group = h5.child(root, "/".join(reaction))
                numbers = h5.atomic_numbers(group, "atomic_numbers")
                for start, positions, energy, forces in h5.conformations(group, numbers, KEYS):
                    count = start + len(energy)
                    ids = [f"{where}/{k}" for k in range(start, count)]
                    yield h5.same_molecule(ids, reaction[1], numbers, positions, energy, forces)
            except Unfit as error:
                yield Fault(where, error.kind, str(error), max(1, _size(root, reaction) - count))


FORMAT = Format("transition1x", "Transition1x.h5", parts, read)
