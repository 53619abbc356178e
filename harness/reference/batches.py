"""Graphs -> one batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.reference.errors import InputError
from harness.reference.graphs import Graph
from harness.reference.structures import MAX_ATOMIC_NUMBER


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
