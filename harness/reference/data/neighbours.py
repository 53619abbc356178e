"""Who is near whom: neighbour lists, without torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import vesin
from numpy.typing import NDArray

from harness.reference.data.structure import Array, Structure
from harness.reference.errors import InputError

COINCIDENT_ANGSTROM = 1e-3
SAME_SHELL_ANGSTROM = 1e-6


@dataclass(frozen=True)
class Graph:
    """Who is near whom: edges sorted by receiver, then by distance.

    receiver, sender: [e]. shift: [e, 3] angstrom, the periodic image of the sender (0 in its own cell). dropped: how
    many more edges are shorter than the cutoff, but beyond the neighbour limit, where the graph was searched for.
    """

    structure: Structure
    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    shift: Array
    dropped: int = 0


def neighbour_graph(structure: Structure, *, cutoff: float, max_neighbours: int | None = None) -> Graph:
    """All pairs closer than cutoff (angstrom), or the nearest max_neighbours of each atom.

    A shell of equal distances that does not fit under max_neighbours is left out whole, so that the graph does not
    depend on the order or orientation of the atoms; only where the very first shell does not fit is it cut. What a
    model makes of the graph jumps where the order of distances changes at the limit, however smooth its cutoff is.

    Raises InputError for an unusable structure, coincident atoms included.
    """
    structure.check()
    try:
        receiver, sender, images, distance = vesin.NeighborList(cutoff=cutoff, full_list=True, n_threads=1).compute(
            points=structure.positions, box=structure.cell, periodic=structure.periodic, quantities="ijSd"
        )
    except RuntimeError as error:  # a cell that cannot be inverted, or too thin for its cutoff
        raise InputError(f"structure {structure.name!r}: no neighbour list can be made ({error})") from None
    # An empty list comes back as floating point.
    receiver, sender = receiver.astype(np.int64), sender.astype(np.int64)
    if distance.size and distance.min() < COINCIDENT_ANGSTROM:
        edge = int(distance.argmin())
        raise InputError(
            f"structure {structure.name!r}: atoms {receiver[edge]} and {sender[edge]} coincide"
            f" ({distance[edge]:.1e} angstrom apart)"
        )
    order = np.lexsort((distance, receiver))
    if max_neighbours is not None:
        order = order[nearest(receiver[order], distance[order], max_neighbours, len(structure))]
    shift = images[order].reshape(-1, 3).astype(np.float64) @ structure.cell
    return Graph(structure, receiver[order], sender[order], shift, dropped=len(distance) - len(order))


def nearest(receiver: NDArray[np.int64], distance: Array, limit: int, n_atoms: int) -> NDArray[np.bool_]:
    """Mask of the edges to keep of those sorted by (receiver, distance): at most limit each, whole shells."""
    degree = np.bincount(receiver, minlength=n_atoms)
    first = np.concatenate([[0], np.cumsum(degree)[:-1]])
    rank = np.arange(len(receiver)) - first[receiver]
    bound = np.full(n_atoms, np.inf)
    full = degree > limit
    bound[full] = distance[first[full] + limit] - SAME_SHELL_ANGSTROM
    keep = distance < bound[receiver]
    nothing_left = np.bincount(receiver, weights=keep, minlength=n_atoms) == 0
    return (keep | nothing_left[receiver]) & (rank < limit)


def triplets(graph: Graph) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of edges k -> j and j -> i, [t] each, but not an edge with its own way back.

    An image of i is an atom like any other: only the very edge i -> j, by the same image, is left out.
    """
    degree = np.bincount(graph.receiver, minlength=len(graph.structure))
    first = np.cumsum(degree) - degree
    count = degree[graph.sender]
    outgoing = np.repeat(np.arange(len(graph.receiver)), count)
    turn = np.arange(len(outgoing)) - np.repeat(np.cumsum(count) - count, count)
    incoming = first[graph.sender[outgoing]] + turn
    there_and_back = graph.shift[incoming] + graph.shift[outgoing]
    back = (graph.sender[incoming] == graph.receiver[outgoing]) & (np.abs(there_and_back).max(1) < SAME_SHELL_ANGSTROM)
    return incoming[~back], outgoing[~back]
