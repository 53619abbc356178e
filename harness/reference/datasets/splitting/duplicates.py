"""Which structures repeat the geometry of another one, and which groups must therefore share a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

from harness.reference.data.structure_table import Frames
from harness.reference.datasets.splitting.fingerprints import LENGTHS, measure_shapes
from harness.reference.datasets.splitting.splits import places
from harness.reference.storage.sampling.permutations import mixed

# Structures are equal if one of LENGTHS + 1 grids, each shifted against the last, has both in one cell. Of every length
# only one grid has a border between two values that are closer than CELL / (LENGTHS + 1), so one grid at least has no
# border between two structures that are equal to within that, wherever the borders of the others are.
GRIDS = LENGTHS + 1
CELL = 5e-4  # angstrom
STRUCTURES_AT_ONCE = 500_000
# What is noted of a structure: place is that of its group (`splits.places`), forces whether it has any.
NOTE = np.dtype([("composition", "<u8"), ("lengths", "<f4", LENGTHS), ("place", "<u8"), ("forces", "?")])
Notes = NDArray[np.void]
Places = NDArray[np.uint64]


@dataclass
class Repeats:
    """Structures that repeat another's geometry, and pairs of groups, by place, that hold the same geometry, [l, 2]."""

    count: int
    links: Places


def note_shapes(frames: Frames, *, seed: int) -> Notes:
    """Note of every structure what it takes to find its repeats, [g]."""
    shapes = measure_shapes(frames)
    notes = np.empty(len(frames), dtype=NOTE)
    notes["composition"], notes["lengths"] = shapes.composition, shapes.lengths
    notes["place"], notes["forces"] = places(frames.groups, seed=seed), frames.forces is not None
    return notes


def sort_notes(notes: Notes) -> Notes:
    """Return notes in order of composition."""
    return notes[np.argsort(notes["composition"], kind="stable")]


def find_repeats(parts: Sequence[Notes]) -> Repeats:
    """Find equal structures, in ranges of compositions so that memory does not grow with the number of structures.

    The notes of each part must be in order of composition.
    """
    ranges = 1 + sum(map(len, parts)) // STRUCTURES_AT_ONCE
    borders = np.array([2**64 * k // ranges for k in range(ranges)], dtype=np.uint64)
    starts = [[*np.searchsorted(part["composition"], borders).tolist(), len(part)] for part in parts]
    count, links = 0, [np.zeros((0, 2), dtype=np.uint64)]
    for k in range(ranges):
        notes = np.concatenate([part[first[k] : first[k + 1]] for part, first in zip(parts, starts, strict=True)])
        notes = notes[_select_shared(notes["composition"]) & np.isfinite(notes["lengths"]).all(axis=1)]
        if len(notes):
            label = label_equal(notes["composition"], notes["lengths"])
            count += len(label) - int(label.max()) - 1
            links.append(_link_groups(label, notes["place"]))
    return Repeats(count, np.unique(np.concatenate(links), axis=0))


def label_equal(composition: NDArray[np.uint64], lengths: NDArray[np.float32]) -> NDArray[np.int64]:
    """Number structures, from 0 on, so that equal ones have the same number, [g]."""
    label = np.arange(len(composition))
    for grid in range(GRIDS):
        key = composition
        for length in lengths.T:
            cell = np.floor(length / np.float64(CELL) + grid / GRIDS).astype(np.int64)
            key = mixed(key ^ cell.view(np.uint64))
        order = np.argsort(key)
        same = np.flatnonzero(key[order[1:]] == key[order[:-1]])
        label = _connect(label[order[same]], label[order[same + 1]], int(label.max()) + 1)[label]
    return label


def unite_groups(links: Places) -> tuple[Places, Places]:
    """Return all linked groups, sorted, and for each the one whose split the groups linked with it take, [k] both.

    Which one that is depends on nothing but the groups' names, and favours no split.
    """
    names, position = np.unique(links, return_inverse=True)
    first, second = position.reshape(-1, 2).T
    number = _connect(first, second, len(names))
    order = np.lexsort((mixed(names), number))
    leaders = order[np.unique(number[order], return_index=True)[1]]
    return names, names[leaders[number]]


def _connect(first: NDArray[np.int64], second: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Number things, from 0 on, so that those connected by pairs have the same number, [count]."""
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _select_shared(composition: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether another structure has the same composition, [g]."""
    _, position, count = np.unique(composition, return_inverse=True, return_counts=True)
    return np.asarray(count[position] > 1)


def _link_groups(label: NDArray[np.int64], place: Places) -> Places:
    """Pairs of different groups that hold a structure of the same label, enough of them to connect all that do."""
    order = np.lexsort((place, label))
    label, place = label[order], place[order]
    linked = (label[1:] == label[:-1]) & (place[1:] != place[:-1])
    return np.unique(np.column_stack([place[:-1][linked], place[1:][linked]]), axis=0)
