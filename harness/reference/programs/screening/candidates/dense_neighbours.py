"""Neighbour lists of many small structures in vacuum, where comparing all pairs is faster than any grid or tree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist  # type: ignore[import-untyped]

from harness.reference.data.neighbours import COINCIDENT_ANGSTROM, SAME_SHELL_ANGSTROM
from harness.reference.data.structure import Array, Structure
from harness.reference.errors import InputError
from harness.reference.programs.screening.candidates.graph_arrays import GraphArrays

DISTANCES_AT_ONCE = 1 << 15  # that the processor's cache holds
NO_NEIGHBOUR = np.array(np.inf).view(np.int64)
WORTH_PARTING = 64  # columns; fewer are sorted faster whole


def isolated_arrays(
    structures: Sequence[Structure], *, cutoff: float, max_neighbours: int | None = None
) -> GraphArrays:
    """Structures with the edges that `neighbour_graph` gives each; of equal distances in any order.

    Raises InputError for none, for a periodic or unusable one, and for coincident atoms.
    """
    if not structures:
        raise InputError("a batch needs at least one structure")
    for structure in structures:
        structure.check()
        if any(structure.periodic):
            raise InputError(f"structure {structure.name!r} is periodic: expected structures in vacuum")
    atoms = np.array([len(s) for s in structures])
    graph = np.repeat(np.arange(len(atoms)), atoms)
    before = np.cumsum(atoms) - atoms
    most = int(atoms.max())
    limit = most if max_neighbours is None else max_neighbours
    sender, distance = _nearest([s.positions for s in structures], min(limit + 1, most), most)
    keep = _kept(distance, cutoff, limit)
    receiver = np.repeat(np.arange(len(graph)), keep.sum(axis=1))
    closest = distance[:, 0]
    if closest.min() < COINCIDENT_ANGSTROM:
        atom = int(closest.argmin())
        structure = structures[graph[atom]]
        first = before[graph[atom]]
        raise InputError(
            f"structure {structure.name!r}: atoms {atom - first} and {sender[atom, 0]} coincide"
            f" ({closest[atom]:.1e} angstrom apart)"
        )
    edge_graph = graph[receiver]
    return GraphArrays(
        numbers=np.concatenate([s.numbers for s in structures]),
        positions=np.concatenate([s.positions for s in structures]),
        receiver=receiver,
        sender=sender[keep] + before[edge_graph],
        shift=np.zeros((len(receiver), 3)),
        graph=graph,
        edge_graph=edge_graph,
        cell=np.stack([s.cell for s in structures]),
        atoms=atoms,
        edges=np.bincount(edge_graph, minlength=len(atoms)),
    )


def _nearest(positions: Sequence[Array], width: int, most: int) -> tuple[NDArray[np.int64], Array]:
    """Of each atom the nearest others of its structure, and how far they are (inf where there are no more), [n, width].

    Squared distances, being positive, sort by their bits. The last bits make room for the number of the other atom,
    so that both are sorted as one integer; what the distance loses is less than 1e-12 of it up to 4096 atoms.
    """
    room = np.int64((1 << most.bit_length()) - 1)
    found = np.full((sum(map(len, positions)), width), NO_NEIGHBOUR)
    done = 0
    for x in positions:
        numbers = np.arange(len(x))
        at_once = max(1, DISTANCES_AT_ONCE // len(x))
        for first in range(0, len(x), at_once):
            rows = numbers[first : first + at_once]
            squares = cdist(x[rows], x, "sqeuclidean")
            squares[rows - first, rows] = np.inf
            keys = squares.view(np.int64)
            keys &= ~room
            keys |= numbers
            if len(x) > max(width, WORTH_PARTING):
                keys.partition(width - 1, axis=1)
                keys = keys[:, :width]
            keys.sort(axis=1)
            found[done : done + len(rows), : len(x)] = keys[:, :width]
            done += len(rows)
    return found & room, np.sqrt((found & ~room).view(np.float64))


def _kept(distance: Array, cutoff: float, limit: int) -> NDArray[np.bool_]:
    """Which are edges, [n, width], distances ascending: at most limit, whole shells, as in `graphs.nearest`."""
    keep = distance < cutoff
    if distance.shape[1] <= limit:
        return keep
    too_many = keep[:, limit]
    bound = np.where(too_many, distance[:, limit] - SAME_SHELL_ANGSTROM, np.inf)
    whole = keep & (distance < bound[:, None])
    first_shell = keep & ~whole.any(axis=1, keepdims=True)
    keep = whole | first_shell
    keep[:, limit:] = False
    return keep
