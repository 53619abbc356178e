"""Neighbour lists of several structures, collated into one batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.reference.data.neighbours import NeighbourList, find_triplets
from harness.reference.data.structure import MAX_ATOMIC_NUMBER
from harness.reference.errors import InputError


class Batch(NamedTuple):
    """Several graphs on one device, in one floating-point type.

    n atoms, e edges, g structures, t pairs of edges. numbers [n], positions [n, 3] angstrom, receiver/sender [e]
    indices of atoms, shift [e, 3] angstrom (added to the sender's position), graph [n] (which structure), edge_graph
    [e], cell [g, 3, 3] angstrom (rows are lattice vectors), composition [g, 119] atoms per element, charge and
    multiplicity [g] (0: unknown), head [g]. incoming/outgoing [t]: pairs of edges k -> j and j -> i; empty unless the
    backbone needs them.
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
    charge: Tensor
    multiplicity: Tensor
    head: Tensor
    incoming: Tensor
    outgoing: Tensor

    @property
    def n_atoms(self) -> Tensor:
        """Atoms per structure, [g], floating point."""
        return self.composition.sum(1)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Batch:
        """Return the batch on a device with another floating-point type; integers stay integers."""
        return Batch(*(t.to(device, dtype if t.is_floating_point() else t.dtype) for t in self))


def build_batch(graphs: Sequence[NeighbourList], *, with_triplets: bool = False) -> Batch:
    """Concatenate graphs into one batch in double precision on the CPU.

    with_triplets: also list the pairs of edges. Raises InputError if there are no graphs.
    """
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
    pairs = [find_triplets(g) for g in graphs] if with_triplets else []
    first_edge = np.repeat(np.concatenate([[0], np.cumsum(edges)[:-1]]), [len(p[0]) for p in pairs] if pairs else 0)
    incoming, outgoing = (np.concatenate([p[k] for p in pairs] or [np.zeros(0, int)]) + first_edge for k in (0, 1))
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
        np.array([s.charge for s in structures], dtype=float),
        np.array([s.multiplicity for s in structures], dtype=float),
        np.array([s.head for s in structures]),
        incoming,
        outgoing,
    )
    return Batch(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))
