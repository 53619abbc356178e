"""Detection of structures with the same geometry, whose groups must therefore be in one split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.splits import (
    N_LENGTHS,
    SEED,
    SHARES,
    SPLITS,
    assign_by_hash,
    hash_groups,
    measure_shapes,
)
from harness.reference.storage.sampling.permutations import splitmix64

# A structure has N_LENGTHS lengths (see `splits.measure_shapes`). N_GRIDS grids, shifted against each other, divide the
# lengths into bins; structures count as equal if, in at least one grid, all their lengths are in the same bins. Lengths
# of two structures that differ by less than GRID_SPACING / N_GRIDS are in different bins of at most one grid each. As
# there is one grid more than lengths, structures that are equal to within this tolerance are always recognized.
N_GRIDS = N_LENGTHS + 1
GRID_SPACING = 5e-4  # angstrom
MAX_STRUCTURES = 500_000  # number of structures that are compared at a time, which limits the memory
# The fingerprint of a structure. `group_hash` decides its split (`splits.hash_groups`); `forces` is whether the
# structure has forces.
FINGERPRINT = np.dtype([("composition", "<u8"), ("lengths", "<f4", N_LENGTHS), ("group_hash", "<u8"), ("forces", "?")])
Fingerprints = NDArray[np.void]
GroupHashes = NDArray[np.uint64]


@dataclass
class Repeats:
    """The equal structures of a dataset.

    Attributes:
        count: Number of structures whose geometry is that of an earlier structure.
        links: [l, 2] hashes of pairs of groups that contain equal structures.
    """

    count: int
    links: GroupHashes


def compute_fingerprints(table: StructureTable, *, seed: int) -> Fingerprints:
    """Return the fingerprint of every structure, [g].

    Args:
        table: The structures.
        seed: Seed of the split.
    """
    shapes = measure_shapes(table)
    fingerprints = np.empty(len(table), dtype=FINGERPRINT)
    fingerprints["composition"], fingerprints["lengths"] = shapes.composition, shapes.lengths
    fingerprints["group_hash"], fingerprints["forces"] = hash_groups(table.groups, seed=seed), table.forces is not None
    return fingerprints


def sort_fingerprints(fingerprints: Fingerprints) -> Fingerprints:
    """Return fingerprints in order of composition."""
    return fingerprints[np.argsort(fingerprints["composition"], kind="stable")]


def find_repeats(parts: Sequence[Fingerprints]) -> Repeats:
    """Find equal structures, one range of compositions at a time to bound the memory.

    Args:
        parts: Fingerprints, each part sorted by `sort_fingerprints`.
    """
    ranges = 1 + sum(map(len, parts)) // MAX_STRUCTURES
    borders = np.array([2**64 * k // ranges for k in range(ranges)], dtype=np.uint64)
    starts = [[*np.searchsorted(part["composition"], borders).tolist(), len(part)] for part in parts]
    count, links = 0, [np.zeros((0, 2), dtype=np.uint64)]
    for k in range(ranges):
        fingerprints = np.concatenate(
            [part[first[k] : first[k + 1]] for part, first in zip(parts, starts, strict=True)]
        )
        fingerprints = fingerprints[
            _select_shared(fingerprints["composition"]) & np.isfinite(fingerprints["lengths"]).all(axis=1)
        ]
        if len(fingerprints):
            label = label_equal(fingerprints["composition"], fingerprints["lengths"])
            count += len(label) - int(label.max()) - 1
            links.append(_link_groups(label, fingerprints["group_hash"]))
    return Repeats(count, np.unique(np.concatenate(links), axis=0))


def label_equal(composition: NDArray[np.uint64], lengths: NDArray[np.float32]) -> NDArray[np.int64]:
    """Label each structure with an integer from 0 on, so that equal structures have equal labels, [g]."""
    label = np.arange(len(composition))
    for grid in range(N_GRIDS):
        key = composition
        for length in lengths.T:
            cell = np.floor(length / np.float64(GRID_SPACING) + grid / N_GRIDS).astype(np.int64)
            key = splitmix64(key ^ cell.view(np.uint64))
        order = np.argsort(key)
        same = np.flatnonzero(key[order[1:]] == key[order[:-1]])
        label = _connect(label[order[same]], label[order[same + 1]], int(label.max()) + 1)[label]
    return label


def unite_groups(links: GroupHashes) -> tuple[GroupHashes, GroupHashes]:
    """Return the hashes of all linked groups, sorted, and for each the hash that decides the common split, [k] each.

    Linked groups share a split. The choice of the hash that decides it depends on the linked groups alone, and favours
    no split.

    Args:
        links: [l, 2] hashes of pairs of groups.
    """
    hashes, position = np.unique(links, return_inverse=True)
    first, second = position.reshape(-1, 2).T
    number = _connect(first, second, len(hashes))
    order = np.lexsort((splitmix64(hashes), number))
    leaders = order[np.unique(number[order], return_index=True)[1]]
    return hashes, hashes[leaders[number]]


def _connect(first: NDArray[np.int64], second: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the index of the connected component of each item, [count], in the graph of pairs (first, second)."""
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _select_shared(composition: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return for each structure whether another one has the same composition, [g]."""
    _, position, count = np.unique(composition, return_inverse=True, return_counts=True)
    return np.asarray(count[position] > 1)


def _link_groups(label: NDArray[np.int64], hashes: GroupHashes) -> GroupHashes:
    """Return pairs of groups that connect all groups with a structure of the same label."""
    order = np.lexsort((hashes, label))
    label, hashes = label[order], hashes[order]
    linked = (label[1:] == label[:-1]) & (hashes[1:] != hashes[:-1])
    return np.unique(np.column_stack([hashes[:-1][linked], hashes[1:][linked]]), axis=0)


@dataclass(frozen=True)
class SplitAssignment:
    """The assignment of groups to splits.

    Attributes:
        exceptions: [k] sorted hashes of the groups whose split `assign_by_hash` does not decide.
        splits: [k] the splits of these groups, as positions in SPLITS.
        shares: The shares of the splits, for all other groups.
    """

    exceptions: GroupHashes
    splits: NDArray[np.int64]
    shares: tuple[float, ...] = SHARES

    def find_splits(self, hashes: GroupHashes) -> NDArray[np.int64]:
        """Return the split of each group, as a position in SPLITS, [g], by the hashes of the groups, [g]."""
        result = assign_by_hash(hashes, self.shares)
        if len(self.exceptions):
            k = np.minimum(np.searchsorted(self.exceptions, hashes), len(self.exceptions) - 1)
            is_exception = self.exceptions[k] == hashes
            result[is_exception] = self.splits[k[is_exception]]
        return result


def assign_splits(
    parts: Sequence[Fingerprints], links: GroupHashes, *, fill: bool = True, shares: tuple[float, ...] = SHARES
) -> SplitAssignment:
    """Assign groups to splits so that linked groups share a split and, if there are enough groups, no split is empty.

    Args:
        parts: Fingerprints of all structures.
        links: [l, 2] hashes of pairs of groups that contain equal structures.
        fill: Whether groups may be moved into a split that would be empty.
        shares: The approximate share of the groups in each split.
    """
    groups, leaders = unite_groups(links)
    united = SplitAssignment(groups, assign_by_hash(leaders, shares), shares)
    count = np.zeros(len(SPLITS), dtype=np.int64)
    for fingerprints in parts:
        count += np.bincount(united.find_splits(fingerprints["group_hash"]), minlength=len(SPLITS))
    if count.all() or not fill:
        return united
    all_groups = np.unique(np.concatenate([np.unique(fingerprints["group_hash"]) for fingerprints in parts]))
    all_leaders = all_groups.copy()
    all_leaders[np.isin(all_groups, groups)] = leaders[np.isin(groups, all_groups)]
    order, position = np.unique(all_leaders, return_inverse=True)
    counts = np.bincount(assign_by_hash(order, shares), minlength=len(SPLITS))
    return SplitAssignment(all_groups, np.repeat(np.arange(len(SPLITS)), _fill_splits(counts))[position], shares)


def assign_structures(
    table: StructureTable, *, shares: tuple[float, ...] = SHARES, seed: int = SEED
) -> NDArray[np.int64]:
    """Return the split of every structure, as a position in SPLITS, [g]; equal structures share a split."""
    fingerprints = compute_fingerprints(table, seed=seed)
    links = find_repeats([sort_fingerprints(fingerprints)]).links
    return assign_splits([fingerprints], links, fill=False, shares=shares).find_splits(fingerprints["group_hash"])


def _fill_splits(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Change the numbers of groups in training, validation and test as little as possible, so that none is zero.

    If there is only one group, it goes to training; if there are two, one goes to validation.
    """
    total = int(counts.sum())
    validation = min(max(int(counts[1]), 1), total - 1)
    test = min(max(int(counts[2]), 1), total - 1 - validation)
    if total >= len(SPLITS) and not test:
        validation, test = validation - 1, 1
    return np.array([total - validation - test, validation, test])
