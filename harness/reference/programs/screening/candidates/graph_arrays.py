"""Many structures with their neighbour lists, side by side as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array


@dataclass(frozen=True)
class GraphArrays:
    """g structures, n atoms, e edges: what a batch of their neighbour graphs is made of, in its order.

    numbers: [n]. positions: [n, 3] angstrom. receiver, sender: [e] atoms of the batch, by receiver, then by distance.
    shift: [e, 3] angstrom, the periodic image of the sender. graph: [n], edge_graph: [e] which structure.
    cell: [g, 3, 3]. atoms, edges: [g] how many of each.
    """

    numbers: NDArray[np.int64]
    positions: Array
    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    shift: Array
    graph: NDArray[np.int64]
    edge_graph: NDArray[np.int64]
    cell: Array
    atoms: NDArray[np.int64]
    edges: NDArray[np.int64]

    @property
    def composition(self) -> Array:
        """Atoms of each element, [g, 119], by atomic number."""
        width = MAX_ATOMIC_NUMBER + 1
        counts = np.bincount(self.graph * width + self.numbers, minlength=len(self.atoms) * width)
        return counts.reshape(-1, width).astype(np.float64)
