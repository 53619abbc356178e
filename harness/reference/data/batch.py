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

    There are n atoms, e edges, g structures and t pairs of edges.

    Attributes:
        numbers: [n] atomic numbers.
        positions: [n, 3] angstrom.
        receiver: [e] index of the atom that receives the message.
        sender: [e] index of the atom that sends the message.
        shift: [e, 3] angstrom, the translation from the sender to its periodic image.
        graph: [n] index of the structure of each atom.
        edge_graph: [e] index of the structure of each edge.
        cell: [g, 3, 3] angstrom; rows are lattice vectors.
        composition: [g, 119] number of atoms of each element.
        charge: [g] elementary charges.
        multiplicity: [g] 2S + 1, 0 if it is unknown.
        head: [g] index in HEADS.
        incoming: [t] index of the edge k -> j of each pair of edges; empty unless the backbone needs triplets.
        outgoing: [t] index of the edge j -> i of each pair.
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
        """The number of atoms of each structure, [g], in floating point."""
        return self.composition.sum(1)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Batch:
        """Return the batch on a device with another floating-point type; integers stay integers."""
        return Batch(*(t.to(device, dtype if t.is_floating_point() else t.dtype) for t in self))


def build_batch(graphs: Sequence[NeighbourList], *, with_triplets: bool = False) -> Batch:
    """Concatenate graphs into one batch in double precision on the CPU.

    Args:
        graphs: The structures with their neighbours.
        with_triplets: Whether to list the pairs of edges too.

    Raises:
        InputError: There are no graphs.
    """
    if not graphs:
        raise InputError("a batch needs at least one structure")
    structures = [g.structure for g in graphs]
    sizes = np.array([len(s) for s in structures])
    edge_counts = np.array([len(g.receiver) for g in graphs])
    first_atom = np.repeat(np.concatenate([[0], np.cumsum(sizes)[:-1]]), edge_counts)
    graph = np.repeat(np.arange(len(graphs)), sizes)
    numbers = np.concatenate([s.numbers for s in structures])
    composition = np.zeros((len(graphs), MAX_ATOMIC_NUMBER + 1))
    np.add.at(composition, (graph, numbers), 1.0)
    pairs = [find_triplets(g) for g in graphs] if with_triplets else []
    pair_counts = [len(p[0]) for p in pairs] if pairs else 0
    first_edge = np.repeat(np.concatenate([[0], np.cumsum(edge_counts)[:-1]]), pair_counts)
    incoming, outgoing = (np.concatenate([p[k] for p in pairs] or [np.zeros(0, int)]) + first_edge for k in (0, 1))
    arrays = (
        numbers,
        np.concatenate([s.positions for s in structures]),
        np.concatenate([g.receiver for g in graphs]) + first_atom,
        np.concatenate([g.sender for g in graphs]) + first_atom,
        np.concatenate([g.shift for g in graphs]),
        graph,
        np.repeat(np.arange(len(graphs)), edge_counts),
        np.stack([s.cell for s in structures]),
        composition,
        np.array([s.charge for s in structures], dtype=float),
        np.array([s.multiplicity for s in structures], dtype=float),
        np.array([s.head for s in structures]),
        incoming,
        outgoing,
    )
    return Batch(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))
