"""Neighbour lists of one structure or of a table of them, without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import vesin
from numpy.typing import NDArray

from harness.reference.data.structure import Array, Structure
from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.errors import InputError

COINCIDENT_ANGSTROM = 1e-3  # structures with atoms or periodic images closer than this are rejected
SAME_SHELL_ANGSTROM = 1e-6  # distances that differ by less belong to one shell
SAME_IMAGE_ANGSTROM = 1e-6  # translations that differ by less are equal


@dataclass(frozen=True)
class NeighbourList:
    """A structure with the neighbours of its atoms: edges sorted by receiver, then by distance.

    Attributes:
        structure: The structure.
        receiver: [e] index of the atom whose neighbour the edge lists.
        sender: [e] index of the neighbour.
        shift: [e, 3] angstrom, Cartesian translation from the sender to its periodic image (0 in its own cell).
        n_dropped: Number of edges shorter than the cutoff that the limit on neighbours excludes; 0 for a list that is
            read from a store.
    """

    structure: Structure
    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    shift: Array
    n_dropped: int = 0


def build_neighbour_list(structure: Structure, *, cutoff: float, max_neighbours: int | None = None) -> NeighbourList:
    """List all pairs of atoms closer than the cutoff, or only the nearest neighbours of each atom.

    A shell of equal distances that does not fit under max_neighbours is excluded whole, so that the list does not
    depend on the order or orientation of the atoms; a shell is cut only if it is the nearest one and does not fit. A
    model's energy is discontinuous where the order of distances changes at the limit, however smooth its cutoff is.

    Args:
        structure: The structure.
        cutoff: Angstrom.
        max_neighbours: The largest number of neighbours of an atom; None for no limit.

    Raises:
        InputError: The structure is unusable, or two of its atoms coincide.
    """
    structure.check()
    try:
        receiver, sender, images, distance = vesin.NeighborList(cutoff=cutoff, full_list=True, n_threads=1).compute(
            points=structure.positions, box=structure.cell, periodic=structure.periodic, quantities="ijSd"
        )
    except RuntimeError as error:  # a cell that cannot be inverted, or too thin for its cutoff
        raise InputError(f"structure {structure.name!r}: no neighbour list can be built ({error})") from None
    # An empty list comes back as floating point.
    receiver, sender = receiver.astype(np.int64), sender.astype(np.int64)
    if distance.size and distance.min() < COINCIDENT_ANGSTROM:
        edge = int(distance.argmin())
        raise InputError(
            f"structure {structure.name!r}: atoms {receiver[edge]} and {sender[edge]} coincide"
            f" ({distance[edge]:.1e} angstrom apart)"
        )
    order = _sort_edges(receiver, distance, max_neighbours, len(structure))
    shift = images[order].reshape(-1, 3).astype(np.float64) @ structure.cell
    return NeighbourList(structure, receiver[order], sender[order], shift, n_dropped=len(distance) - len(order))


def add_neighbours(
    table: StructureTable, *, cutoff: float, max_neighbours: int | None
) -> tuple[StructureTable, list[RejectedStructure]]:
    """Add the edges of `build_neighbour_list` to a table, without the structures that have coincident atoms.

    Args:
        table: Structures that have been checked.
        cutoff: Angstrom.
        max_neighbours: As in `build_neighbour_list`.

    Returns:
        The table with edges, and a rejection for each structure with coincident atoms.
    """
    search = vesin.NeighborList(cutoff=cutoff, full_list=True, n_threads=1)
    parts: list[tuple[Any, ...]] = []
    stop = 0
    for k, size in enumerate(table.sizes.tolist()):
        first, stop = stop, stop + size
        parts.append(
            search.compute(
                points=table.positions[first:stop], box=table.cell[k], periodic=table.periodic[k], quantities="ijSd"
            )
        )
    columns = zip(*parts, strict=True) if parts else (np.zeros((0, 3)),) * 4
    # An empty list comes back as floating point.
    receivers, senders, images, distance = map(np.concatenate, columns)
    receiver, sender = receivers.astype(np.int64), senders.astype(np.int64)
    owner = np.repeat(np.arange(len(table)), [len(part[3]) for part in parts])
    atom = receiver + (table.ends - table.sizes)[owner]
    order = _sort_edges(atom, distance, max_neighbours, int(table.sizes.sum()))
    owner, distance = owner[order], distance[order]
    table = replace(
        table,
        edge_counts=np.bincount(owner, minlength=len(table)),
        receiver=receiver[order],
        sender=sender[order],
        shift=np.einsum("ek,ekj->ej", images.reshape(-1, 3)[order].astype(np.float64), table.cell[owner]),
        distance=distance,
    )
    is_coincident = np.bincount(owner[distance < COINCIDENT_ANGSTROM], minlength=len(table)) > 0
    if not is_coincident.any():
        return table, []
    reason = f"two atoms within {COINCIDENT_ANGSTROM:g} angstrom of each other"
    rejected = [RejectedStructure(str(i), "coincident", reason) for i in table.ids[is_coincident]]
    return table[~is_coincident], rejected


def count_degrees(table: StructureTable) -> NDArray[np.int64]:
    """Return how many atoms of a table have 0, 1, 2, ... neighbours, [largest number of neighbours + 1]."""
    assert table.edge_counts is not None
    assert table.receiver is not None
    first = np.repeat(table.ends - table.sizes, table.edge_counts)
    return np.bincount(np.bincount(first + table.receiver, minlength=int(table.sizes.sum()))).astype(np.int64)


def _sort_edges(receiver: NDArray[np.int64], distance: Array, limit: int | None, n_atoms: int) -> NDArray[np.int64]:
    """Return the indices that sort edges by receiver and distance, without those of edges beyond the limit."""
    order = np.lexsort((distance, receiver))
    if limit is None:
        return order
    return order[select_nearest(receiver[order], distance[order], limit, n_atoms)]


def select_nearest(receiver: NDArray[np.int64], distance: Array, limit: int, n_atoms: int) -> NDArray[np.bool_]:
    """Return which edges to keep, [e]: whole shells, at most `limit` per receiver.

    The edges must be sorted by receiver and distance.
    """
    degree = np.bincount(receiver, minlength=n_atoms)
    first = np.concatenate([[0], np.cumsum(degree)[:-1]])
    rank = np.arange(len(receiver)) - first[receiver]
    bound = np.full(n_atoms, np.inf)
    is_full = degree > limit
    bound[is_full] = distance[first[is_full] + limit] - SAME_SHELL_ANGSTROM
    keep = distance < bound[receiver]
    has_no_whole_shell = np.bincount(receiver, weights=keep, minlength=n_atoms) == 0
    return (keep | has_no_whole_shell[receiver]) & (rank < limit)


def find_triplets(neighbours: NeighbourList) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of edges k -> j and j -> i, [t] each, without pairs of an edge and its reverse.

    k may be a periodic image of i; only the edge back from the same image counts as the reverse.
    """
    receiver, sender, shift = neighbours.receiver, neighbours.sender, neighbours.shift
    degree = np.bincount(receiver, minlength=len(neighbours.structure))
    first = np.cumsum(degree) - degree
    count = degree[sender]
    outgoing = np.repeat(np.arange(len(receiver)), count)
    rank = np.arange(len(outgoing)) - np.repeat(np.cumsum(count) - count, count)
    incoming = first[sender[outgoing]] + rank
    round_trip = shift[incoming] + shift[outgoing]
    is_reverse = (sender[incoming] == receiver[outgoing]) & (np.abs(round_trip).max(1) < SAME_IMAGE_ANGSTROM)
    return incoming[~is_reverse], outgoing[~is_reverse]
