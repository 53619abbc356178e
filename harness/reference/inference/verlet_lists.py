"""Neighbour lists with a skin, which stay valid while atoms and cell change by less than the skin allows.

Source: Verlet, Phys. Rev. 159, 98 (1967), with a bound that accounts for the deformation of the cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.neighbours import NeighbourSpec, build_neighbour_list, select_adaptive, select_nearest
from harness.reference.data.structure import Array, Structure

SKIN_ANGSTROM = 0.6


@dataclass(frozen=True)
class VerletList:
    """All pairs of atoms of a structure closer than the cutoff plus the skin, ordered by receiver.

    Attributes:
        receiver: [e] indices of atoms.
        sender: [e] indices of atoms.
        image: [e, 3] translation from the sender to its periodic image, in lattice vectors.
        positions: [n, 3] angstrom, at which the list was built, without the deformation.
        deformation: [3, 3] deformation gradient at which the list was built.
    """

    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    image: Array
    positions: Array
    deformation: Array


def build_verlet_list(structure: Structure, positions: Array, deformation: Array, cutoff: float) -> VerletList:
    """Build the list of a structure with new positions [n, 3], after a deformation [3, 3] of positions and cell.

    Raises:
        InputError: The cell has collapsed, or atoms coincide.
    """
    cell = structure.cell @ deformation.T
    deformed = replace(structure, positions=positions @ deformation.T, cell=cell, forces=None, stress=None)
    pairs = build_neighbour_list(deformed, cutoff=cutoff + SKIN_ANGSTROM)
    image = np.rint(pairs.shift @ np.linalg.pinv(cell))
    return VerletList(pairs.receiver, pairs.sender, image, positions, deformation)


@dataclass(frozen=True)
class JoinedLists:
    """The Verlet lists of several structures, in which atoms are numbered through the batch.

    Attributes:
        receiver: [e] indices of atoms of the batch.
        sender: [e] indices of atoms of the batch.
        image: [e, 3] as in `VerletList`.
        edge_graph: [e] index of the structure of each pair.
        positions: [n, 3] as in `VerletList`.
        deformation: [g, 3, 3] as in `VerletList`.
    """

    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    image: Array
    edge_graph: NDArray[np.int64]
    positions: Array
    deformation: Array

    @classmethod
    def join(cls, lists: Sequence[VerletList]) -> JoinedLists:
        """Join the lists of the structures of a batch."""
        edges = [len(v.receiver) for v in lists]
        first = np.cumsum([0, *(len(v.positions) for v in lists)])[:-1]
        offset = np.repeat(first, edges)
        return cls(
            np.concatenate([v.receiver for v in lists]) + offset,
            np.concatenate([v.sender for v in lists]) + offset,
            np.concatenate([v.image for v in lists]),
            np.repeat(np.arange(len(lists)), edges),
            np.concatenate([v.positions for v in lists]),
            np.stack([v.deformation for v in lists]),
        )

    def find_invalid(
        self, positions: Array, deformation: Array, graph: NDArray[np.int64], cutoff: float
    ) -> NDArray[np.int64]:
        """Return the structures whose list may lack pairs closer than the cutoff.

        With the map M from the present deformation to that of the list, and the largest displacement u of an atom in
        between, a pair at distance r was at most |M| r + 2 u apart when the list was built.

        Args:
            positions: [n, 3] angstrom, without the deformation.
            deformation: [g, 3, 3] deformation gradients.
            graph: [n] index of the structure of each atom, ascending.
            cutoff: Angstrom.
        """
        to_list = self.deformation @ np.linalg.inv(deformation)
        moved = np.einsum("nk,njk->nj", positions - self.positions, self.deformation[graph])
        first = np.searchsorted(graph, np.arange(len(deformation)))
        furthest = np.sqrt(np.maximum.reduceat(np.einsum("nk,nk->n", moved, moved), first))
        norm = np.linalg.norm(to_list, ord=2, axis=(1, 2))
        return np.flatnonzero(norm * cutoff + 2.0 * furthest > cutoff + SKIN_ANGSTROM)

    def find_neighbours(
        self, positions: Array, cell: Array, spec: NeighbourSpec
    ) -> tuple[NDArray[np.bool_], Array, Array]:
        """Return which pairs are neighbours, [e], and the translations [k, 3] and distances [k] of these.

        Args:
            positions: [n, 3] angstrom.
            cell: [g, 3, 3] angstrom.
            spec: The definition of neighbours.
        """
        shift = np.einsum("ek,ekj->ej", self.image, cell[self.edge_graph])
        vector = positions[self.sender] + shift - positions[self.receiver]
        distance = np.sqrt(np.einsum("ek,ek->e", vector, vector))
        near = np.flatnonzero(distance < spec.cutoff)
        n_atoms = len(positions)
        if spec.adaptive is not None:
            ratio = distance[near] / spec.cutoff
            near = near[select_adaptive(self.receiver[near], ratio, spec.adaptive, n_atoms)]
        if spec.max_neighbours is not None:
            near = near[np.lexsort((distance[near], self.receiver[near]))]
            near = near[select_nearest(self.receiver[near], distance[near], spec.max_neighbours, n_atoms)]
        is_near = np.zeros(len(distance), dtype=bool)
        is_near[near] = True
        return is_near, shift[is_near], distance[is_near]
