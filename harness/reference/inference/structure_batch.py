"""A batch of structures that move: their Verlet lists, and their energies and forces by one call of the model."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.reference.data.batch import Batch
from harness.reference.data.neighbours import NeighbourList, find_triplets
from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array, Structure
from harness.reference.errors import InputError
from harness.reference.inference.batch_members import JoinedMembers, Member
from harness.reference.inference.batch_state import BatchState
from harness.reference.inference.deformed_cells import Placement, pull_back_virial
from harness.reference.inference.prediction import Predict, batched_heads, predict_with_stress
from harness.reference.inference.verlet_lists import JoinedLists, VerletList, build_verlet_list
from harness.reference.models.coverage import TOLERANCE
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import find_unavailable_reason

OUTSIDE = "outside the training sets of the model, at the start or during the run"
NO_LIST = "no neighbour list: the cell is too short or too long, or atoms coincide, are too far away or not finite"
NOT_FINITE = "energy or forces not finite"


@dataclass(frozen=True)
class BatchEvaluation:
    """Energies and forces of a batch.

    Attributes:
        energy: [g] eV.
        atom_forces: [n, 3] eV/angstrom.
        forces: [m, 3] on all coordinates of the state: eV/angstrom on atoms, in the frame without deformation, and eV
            on cells, whose coordinates are the number of atoms times the logarithm of the deformation; 0 on cells that
            are not deformed.
        shortest: [g] shortest contact, relative to the sum of covalent radii; inf without neighbours.
        placement: The positions and cells.
    """

    energy: Array
    atom_forces: Array
    forces: Array
    shortest: Array
    placement: Placement


@dataclass
class BatchTimes:
    """Wall time and counts of a batch since its start.

    Attributes:
        lists_s: Seconds for Verlet lists and for the neighbours that they contain.
        model_s: Seconds for energies and forces, including transfers to and from the device.
        built: Number of lists that were built, including the first one of each structure.
        structure_steps: Number of evaluated structures.
        atom_steps: Number of evaluated atoms.
    """

    lists_s: float = 0.0
    model_s: float = 0.0
    built: int = 0
    structure_steps: int = 0
    atom_steps: int = 0


class StructureBatch:
    """The structures that move at present, and their state.

    Args:
        model: The model, whose data type and device are used.
        head: Index of the head; None for the gate's weighted sum.
        deforms_cells: Whether cells that are periodic along all lattice vectors are deformed.
        predict: The function for energies and forces without stress; None: batched heads with fused messages if the
            backbone has them.
    """

    def __init__(
        self, model: FoundationModel, head: int | None, *, deforms_cells: bool, predict: Predict | None = None
    ) -> None:
        weight = next(model.parameters())
        self.model, self.head, self.device, self.dtype = model, head, weight.device, weight.dtype
        self.spec = model.config.neighbour_spec
        self.fused = find_unavailable_reason(model.config.network, self.device) is None
        self.deforms_cells, self.predict = deforms_cells, predict
        self.members: list[Member] = []
        self.lists: list[VerletList] = []
        self.state = BatchState.empty()
        self.times = BatchTimes()
        self._joined_members: JoinedMembers | None = None
        self._joined_lists: JoinedLists | None = None

    @property
    def n_listed_pairs(self) -> int:
        """The number of pairs in the Verlet lists, of which those within the cutoff are edges of the model."""
        return sum(len(v.receiver) for v in self.lists)

    @property
    def joined_members(self) -> JoinedMembers:
        """The constant data of the structures."""
        if self._joined_members is None:
            self._joined_members = JoinedMembers(self.members, self.device, self.dtype)
        return self._joined_members

    @property
    def joined_lists(self) -> JoinedLists:
        """The Verlet lists of all structures."""
        if self._joined_lists is None:
            self._joined_lists = JoinedLists.join(self.lists)
        return self._joined_lists

    def add(self, index: int, structure: Structure, *, listed_at: tuple[Array, Array] | None = None) -> str | None:
        """Add a structure and return None, or return the reason why it cannot be added.

        The caller appends its state to `state` before the next step: once for all structures that enter, as that copies
        the state of the batch.

        Args:
            index: Its index in the input.
            structure: The structure.
            listed_at: Positions [n, 3] and deformation [3, 3] at which its Verlet list is built; None: at the start.
        """
        composition = torch.zeros(1, MAX_ATOMIC_NUMBER + 1, dtype=self.dtype, device=self.device)
        numbers = torch.from_numpy(structure.numbers).to(self.device)
        composition[0] = torch.bincount(numbers, minlength=MAX_ATOMIC_NUMBER + 1).to(self.dtype)
        weights = self._weigh_heads(composition)
        if not bool(torch.isfinite(weights).all()):
            return OUTSIDE
        try:
            verlet = self._build_list(structure, *(listed_at or (structure.positions, np.eye(3))))
        except InputError:
            return NO_LIST
        closest = float(weights @ self.model.closest.to(weights)) * (1.0 - TOLERANCE)
        self.members.append(Member(index, structure, weights, closest))
        self.lists.append(verlet)
        self._joined_members = self._joined_lists = None
        return None

    @torch.no_grad()
    def _weigh_heads(self, composition: Tensor) -> Tensor:
        """Return the weights [heads] of the heads, NaN if the elements are outside the training sets."""
        if self.head is None:
            return self.model.gate_weights(composition)[0]
        weights = torch.zeros(self.model.config.heads, dtype=self.dtype, device=self.device)
        knows_all = bool(self.model.heads_knowing_all_elements(composition)[0, self.head])
        weights[self.head] = 1.0 if knows_all else torch.nan
        return weights

    def _build_list(self, structure: Structure, positions: Array, deformation: Array) -> VerletList:
        started = time.perf_counter()
        verlet = build_verlet_list(structure, positions, deformation, self.spec.cutoff)
        self.times.lists_s += time.perf_counter() - started
        self.times.built += 1
        return verlet

    def keep(self, remaining: NDArray[np.bool_]) -> None:
        """Keep the structures of a mask [g], and remove the others."""
        self.state = self.state.select(remaining, self.joined_members.owner)
        self.members = [m for m, is_kept in zip(self.members, remaining, strict=True) if is_kept]
        self.lists = [v for v, is_kept in zip(self.lists, remaining, strict=True) if is_kept]
        self._joined_members = self._joined_lists = None

    def update_lists(self) -> list[tuple[int, str]]:
        """Rebuild lists that are no longer valid; remove the structures for which that fails.

        Returns:
            The index of each removed structure, and the reason.
        """
        started, lists_before_s = time.perf_counter(), self.times.lists_s
        removed: list[tuple[int, str]] = []
        joined = self.joined_members
        placement = joined.place_atoms(self.state.coordinates)
        is_usable = np.ones(len(self.members), dtype=bool)
        atom_rows = self.state.coordinates[~joined.is_cell]
        lists = self.joined_lists
        for k in lists.find_invalid(atom_rows, placement.deformation, joined.graph, self.spec.cutoff).tolist():
            member, positions = self.members[k], atom_rows[joined.graph == k]
            try:
                self.lists[k] = self._build_list(member.structure, positions, placement.deformation[k])
                self._joined_lists = None
            except InputError:
                is_usable[k] = False
                removed.append((member.index, NO_LIST))
        if not is_usable.all():
            self.keep(is_usable)
        self.times.lists_s = lists_before_s + time.perf_counter() - started
        return removed

    def evaluate(self) -> BatchEvaluation:
        """Return the energies and forces of all structures, whose lists must be valid."""
        started = time.perf_counter()
        joined, lists = self.joined_members, self.joined_lists
        placement = joined.place_atoms(self.state.coordinates)
        is_near, shift, distance = lists.find_neighbours(placement.positions, placement.cell, self.spec)
        receiver, sender, edge_graph = lists.receiver[is_near], lists.sender[is_near], lists.edge_graph[is_near]
        shortest = joined.find_shortest_contacts(receiver, sender, edge_graph, distance)
        incoming = outgoing = np.zeros(0, dtype=np.int64)
        if self.model.config.needs_triplets:
            whole = Structure("batch", joined.numbers, placement.positions)
            incoming, outgoing = find_triplets(NeighbourList(whole, receiver, sender, shift))
        listed = time.perf_counter()
        integers = (receiver, sender, edge_graph, incoming, outgoing)
        indices = [torch.from_numpy(a).to(self.device) for a in integers]
        values = [torch.from_numpy(a).to(self.device, self.dtype) for a in (placement.positions, shift, placement.cell)]
        batch = joined.batch._replace(
            receiver=indices[0], sender=indices[1], edge_graph=indices[2], incoming=indices[3], outgoing=indices[4],
            positions=values[0], shift=values[1], cell=values[2],
        )  # fmt: skip
        energy, atom_forces, stress = self._predict(batch, joined.weights)
        self.times.lists_s += listed - started
        self.times.model_s += time.perf_counter() - listed
        self.times.structure_steps += len(joined.sizes)
        self.times.atom_steps += len(joined.numbers)
        forces = np.zeros_like(self.state.coordinates)
        forces[~joined.is_cell] = atom_forces
        if stress is not None:
            forces[~joined.is_cell] = np.einsum("nk,nkj->nj", atom_forces, placement.deformation[joined.graph])
            virial = -np.abs(np.linalg.det(placement.cell))[:, None, None] * stress
            virial[~joined.is_crystal] = 0.0
            pulled = pull_back_virial(virial, placement) / joined.sizes[:, None, None]
            forces[joined.is_cell] = pulled.reshape(-1, 3)
        return BatchEvaluation(energy, atom_forces, forces, shortest, placement)

    def _predict(self, batch: Batch, weights: Tensor) -> tuple[Array, Array, Array | None]:
        """Return energies [g], forces [n, 3], and stresses [g, 3, 3] if cells are deformed, in double precision."""
        stress = None
        if self.deforms_cells:
            prediction, stress = predict_with_stress(self.model, batch, weights, fused=self.fused)
        elif self.predict is not None:
            prediction = self.predict(self.model, batch, weights)
        else:
            prediction = batched_heads(self.model, batch, weights, fused=self.fused)
        energy, forces = (value.double().cpu().numpy() for value in prediction)
        return energy, forces, None if stress is None else stress.double().cpu().numpy()
