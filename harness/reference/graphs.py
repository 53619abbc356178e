"""Structures -> neighbour lists -> one batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import vesin
from numpy.typing import NDArray
from torch import Tensor

from harness.reference.errors import InputError
from harness.reference.structures import MAX_ATOMIC_NUMBER, Array, Structure

COINCIDENT_ANGSTROM = 1e-3
SAME_SHELL_ANGSTROM = 1e-6


@dataclass(frozen=True)
class Graph:
    """Who is near whom: edges sorted by receiver, then by distance.

    receiver, sender: [e]. shift: [e, 3] angstrom, the periodic image of the sender (0 in its own cell).
    """

    structure: Structure
    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    shift: Array


def neighbour_graph(structure: Structure, *, cutoff: float, max_neighbours: int | None = None) -> Graph:
    """All pairs closer than cutoff (angstrom), or the nearest max_neighbours of each atom.

    A shell of equal distances that does not fit under max_neighbours is left out whole, so that the graph does not
    depend on the order or orientation of the atoms; only where the very first shell does not fit is it cut.

    Raises InputError for an unusable structure, coincident atoms included.
    """
    structure.check()
    receiver, sender, images, distance = vesin.NeighborList(cutoff=cutoff, full_list=True, n_threads=1).compute(
        points=structure.positions, box=structure.cell, periodic=structure.periodic, quantities="ijSd"
    )
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
        order = order[_nearest(receiver[order], distance[order], max_neighbours, len(structure))]
    shift = images[order].reshape(-1, 3).astype(np.float64) @ structure.cell
    return Graph(structure, receiver[order], sender[order], shift)


def _nearest(receiver: NDArray[np.int64], distance: Array, limit: int, n_atoms: int) -> NDArray[np.bool_]:
    """Mask of the edges to keep; edges come sorted by (receiver, distance)."""
    degree = np.bincount(receiver, minlength=n_atoms)
    first = np.concatenate([[0], np.cumsum(degree)[:-1]])
    rank = np.arange(len(receiver)) - first[receiver]
    bound = np.full(n_atoms, np.inf)
    full = degree > limit
    bound[full] = distance[first[full] + limit] - SAME_SHELL_ANGSTROM
    keep = distance < bound[receiver]
    nothing_left = np.bincount(receiver, weights=keep, minlength=n_atoms) == 0
    return (keep | nothing_left[receiver]) & (rank < limit)


class Batch(NamedTuple):
    """Graphs side by side, on one device in one floating-point type.

    numbers [n], positions [n, 3] angstrom, receiver/sender [e], shift [e, 3] angstrom, graph [n] (which structure),
    edge_graph [e], cell [g, 3, 3], composition [g, 119] atoms per element, head [g].
    """

    numbers: Tensor
    positions: Tensor
    receiver: Tensor
    sender: Tensor
    shift: Tensor
    graph: Tensor
    edge_graph: Tensor
    cell: Tensor
    composition: Tensor
    head: Tensor

    @property
    def atoms(self) -> Tensor:
        """Atoms per structure, [g], floating point."""
        return self.composition.sum(1)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Batch:
        """The same batch elsewhere; integers stay integers."""
        return Batch(*(t.to(device, dtype if t.is_floating_point() else t.dtype) for t in self))


def collate(graphs: Sequence[Graph]) -> Batch:
    """Concatenate graphs into one batch in double precision on the CPU."""
    if not graphs:
        raise InputError("a batch needs at least one structure")
    structures = [g.structure for g in graphs]
    sizes = np.array([len(s) for s in structures])
    edges = np.array([len(g.receiver) for g in graphs])
    offset = np.repeat(np.concatenate([[0], np.cumsum(sizes)[:-1]]), edges)
    graph = np.repeat(np.arange(len(graphs)), sizes)
    numbers = np.concatenate([s.numbers for s in structures])
    composition = np.zeros((len(graphs), MAX_ATOMIC_NUMBER + 1))
    np.add.at(composition, (graph, numbers), 1.0)
    arrays = (
        numbers,
        np.concatenate([s.positions for s in structures]),
        np.concatenate([g.receiver for g in graphs]) + offset,
        np.concatenate([g.sender for g in graphs]) + offset,
        np.concatenate([g.shift for g in graphs]),
        graph,
        np.repeat(np.arange(len(graphs)), edges),
        np.stack([s.cell for s in structures]),
        composition,
        np.array([s.head for s in structures]),
    )
    return Batch(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))
