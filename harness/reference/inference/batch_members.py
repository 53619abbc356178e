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
            shortest contact in training, times 1 - TOLERANCE.
    """

    index: int
    structure: Structure
    weights: Tensor
    closest: float


class JoinedMembers:
    """The data of the structures of a batch that do not change from step to step."""

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
        self.inverse_mass = np.zeros(len(self.owner))  # of rows of coordinates, 0 for cells
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

    def place(self, coordinates: Array) -> Placement:
        """Return the positions and cells for the coordinates [m, 3] of all structures."""
        logarithm = coordinates[self.is_cell].reshape(-1, 3, 3) / self.sizes[:, None, None]
        positions = coordinates[~self.is_cell]
        if not logarithm.any():
            identity = np.tile(np.eye(3), (len(logarithm), 1, 1))
            return Placement(positions, self.cell, identity, logarithm)
        return place(positions, self.graph, self.cell, logarithm)

    def find_shortest(
        self,
        receiver: NDArray[np.int64],
        sender: NDArray[np.int64],
        edge_graph: NDArray[np.int64],
        distance: Array,
    ) -> Array:
        """Return the shortest contact of each structure, [g], relative to the sum of covalent radii.

        It is inf without edges.
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
