"""The structures of a batch, with their data that do not change from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase.data import atomic_masses
from numpy.typing import NDArray
from torch import Tensor

from harness.reference.data.batch import Batch
from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array, Structure
from harness.reference.datasets.parsing.constants import COVALENT_RADII
from harness.reference.inference.batch_state import CELL_ROWS
from harness.reference.inference.deformed_cells import Placement, place


@dataclass(frozen=True, eq=False)
class Member:
    """A structure of the batch.

    Attributes:
        index: Its index in the input.
        structure: The structure at the start.
        weights: [heads] weight of each head.
        closest: Shortest accepted contact, relative to the sum of covalent radii: the weighted mean over heads of the
            shortest contact in training, times 1 - `coverage.TOLERANCE`.
    """

    index: int
    structure: Structure
    weights: Tensor
    closest: float


class JoinedMembers:
    """The data of g structures with n atoms in all that do not change from step to step.

    Coordinates have m = n + 3 g rows, those of `BatchState`.

    Attributes:
        index: [g] index of each structure in the input.
        sizes: [g] number of atoms of each structure.
        graph: [n] structure of each atom.
        owner: [m] structure of each row of coordinates.
        first_row: [g] first row of each structure.
        is_cell: [m] whether a row belongs to a cell.
        cell: [g, 3, 3] cells at the start, angstrom.
        is_crystal: [g] whether a structure is periodic along all three lattice vectors.
        numbers: [n] atomic numbers.
        inverse_mass: [m] of each row of coordinates in 1/u, 0 for cells.
        closest: [g] shortest accepted contact, as in `Member`.
        weights: [g, heads] weight of each head.
        batch: The input of the model without what changes: positions, cells, edges and triplets are empty.
    """

    def __init__(self, members: Sequence[Member], device: torch.device, dtype: torch.dtype) -> None:
        structures = self._structures = [m.structure for m in members]
        self.index = np.array([m.index for m in members])
        self.sizes = np.array([len(s) for s in structures])
        self.graph = np.repeat(np.arange(len(members)), self.sizes)
        self.owner = np.repeat(np.arange(len(members)), self.sizes + CELL_ROWS)
        self.first_row = np.concatenate([[0], np.cumsum(self.sizes + CELL_ROWS)[:-1]])
        is_cell = np.zeros(len(self.owner), dtype=bool)
        is_cell[(self.first_row + self.sizes)[:, None] + np.arange(CELL_ROWS)] = True
        self.is_cell = is_cell
        self.cell = np.stack([s.cell for s in structures])
        self.is_crystal = np.array([all(s.periodic) for s in structures])
        self.numbers = np.concatenate([s.numbers for s in structures])
        self.inverse_mass = np.zeros(len(self.owner))
        self.inverse_mass[~is_cell] = 1.0 / atomic_masses[self.numbers]
        self.closest = np.array([m.closest for m in members])
        self.weights = torch.stack([m.weights for m in members])
        composition = np.zeros((len(members), MAX_ATOMIC_NUMBER + 1))
        np.add.at(composition, (self.graph, self.numbers), 1.0)
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        vectors = torch.zeros(0, 3, dtype=dtype, device=device)
        charge = torch.tensor([s.charge for s in structures], dtype=dtype, device=device)
        multiplicity = torch.tensor([s.multiplicity for s in structures], dtype=dtype, device=device)
        numbers, graph = (torch.from_numpy(a).to(device) for a in (self.numbers, self.graph))
        self.batch = Batch(
            numbers=numbers, positions=vectors, receiver=empty, sender=empty, shift=vectors, graph=graph,
            edge_graph=empty, cell=vectors, composition=torch.from_numpy(composition).to(device, dtype), charge=charge,
            multiplicity=multiplicity, head=torch.full((len(members),), -1, device=device), incoming=empty,
            outgoing=empty,
        )  # fmt: skip

    def place_atoms(self, coordinates: Array) -> Placement:
        """Return the deformed positions and cells.

        Args:
            coordinates: [m, 3]. The rows of a structure are the positions of its atoms in the initial cell, angstrom,
                and then CELL_ROWS rows: the logarithm of the deformation gradient, times the number of atoms.
        """
        logarithm = coordinates[self.is_cell].reshape(-1, 3, 3) / self.sizes[:, None, None]
        positions = coordinates[~self.is_cell]
        if not logarithm.any():
            identity = np.tile(np.eye(3), (len(logarithm), 1, 1))
            return Placement(positions, self.cell, identity, logarithm)
        return place(positions, self.graph, self.cell, logarithm)

    def find_shortest_contacts(
        self,
        receiver: NDArray[np.int64],
        sender: NDArray[np.int64],
        edge_graph: NDArray[np.int64],
        distance: Array,
    ) -> Array:
        """Return the shortest contact of each structure, [g], relative to the sum of covalent radii; inf without edges.

        Args:
            receiver: [e] receiving atom of each edge, counted over all structures.
            sender: [e] sending atom.
            edge_graph: [e] structure of each edge, ascending.
            distance: [e] length of each edge, angstrom.
        """
        radii = COVALENT_RADII[self.numbers]
        shortest = np.full(len(self.sizes), np.inf)
        first = np.searchsorted(edge_graph, np.arange(len(self.sizes) + 1))
        has_edges = first[1:] > first[:-1]
        if has_edges.any():
            ratio = distance / (radii[receiver] + radii[sender])
            shortest[has_edges] = np.minimum.reduceat(ratio, first[:-1][has_edges])
        return shortest

    def build_structure(self, k: int, placement: Placement) -> Structure:
        """Return structure k with the positions and cell of a placement, and without labels."""
        return replace(
            self._structures[k],
            positions=placement.positions[self.graph == k],
            cell=placement.cell[k],
            energy=None,
            forces=None,
            stress=None,
        )
