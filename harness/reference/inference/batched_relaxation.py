"""Relaxation of many structures in one batch by FIRE.

Coordinates, forces and the criterion of convergence are those of ASE's FrechetCellFilter with FIRE: the positions in
the initial cell, and the matrix logarithm of the deformation gradient times the number of atoms. Structures that are
not periodic along all lattice vectors keep their cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array, Structure
from harness.reference.inference import fire
from harness.reference.inference.batch_members import JoinedMembers
from harness.reference.inference.batch_run import DEFAULT_MAX_EDGES, BatchRun
from harness.reference.inference.batch_state import BatchState, extend_positions
from harness.reference.inference.structure_batch import BatchEvaluation, StructureBatch
from harness.reference.models.foundation import FoundationModel


@dataclass(frozen=True)
class RelaxedStructure:
    """The end of a relaxation.

    Attributes:
        structure: The structure with its last positions and cell.
        converged: Whether all forces and all rows of the scaled stress are smaller than the limit.
        steps: Number of steps.
        initial_energy_ev: Energy at the start.
        energy_ev: Energy at the end.
        forces: [n, 3] eV/angstrom at the end.
    """

    structure: Structure
    converged: bool
    steps: int
    initial_energy_ev: float
    energy_ev: float
    forces: Array


def relax_structures(
    model: FoundationModel,
    structures: Sequence[Structure],
    *,
    head: int | None = None,
    fmax: float = 0.05,
    max_steps: int = 200,
    max_edges: int = DEFAULT_MAX_EDGES,
) -> Iterator[tuple[int, RelaxedStructure | str]]:
    """Yield the index of each structure and its relaxation, or the reason of its failure, in the order of completion.

    Args:
        model: The model, whose data type and device are used.
        structures: The structures.
        head: Index of the head; None for the gate's weighted sum.
        fmax: Limit of forces in eV/angstrom.
        max_steps: Maximum number of steps.
        max_edges: Number of pairs in the Verlet lists of the batch, from which on no structure enters.
    """
    batch = StructureBatch(model, head, deforms_cells=True)
    return BatchRun(batch, Relaxation(fmax, max_steps), structures, max_edges=max_edges).run()


@dataclass(frozen=True)
class Relaxation:
    """Relaxation by FIRE.

    Attributes:
        fmax: Limit of forces in eV/angstrom.
        max_steps: Maximum number of steps.
    """

    fmax: float
    max_steps: int

    def start(self, index: int, structure: Structure) -> BatchState:
        """Return the state of a structure at rest."""
        return BatchState.start(extend_positions(structure.positions), time_step=fire.TIME_STEP, mixing=fire.MIXING)

    def begin_step(self, state: BatchState, forces: Array, joined: JoinedMembers) -> BatchState:
        """Return the state after a step of FIRE."""
        return fire.step_fire(state, forces, joined.owner)

    def complete_step(self, state: BatchState, evaluation: BatchEvaluation, joined: JoinedMembers) -> BatchState:
        """Return the state with the initial energies."""
        return replace(state, initial_energy=np.where(state.steps == 0, evaluation.energy, state.initial_energy))

    def find_finished(self, state: BatchState, evaluation: BatchEvaluation, joined: JoinedMembers) -> NDArray[np.bool_]:
        """Return which structures have converged or made all steps, [g]."""
        return self._find_converged(evaluation, joined) | (state.steps >= self.max_steps)

    def _find_converged(self, evaluation: BatchEvaluation, joined: JoinedMembers) -> NDArray[np.bool_]:
        squares = np.einsum("mk,mk->m", evaluation.forces, evaluation.forces)
        return np.asarray(np.maximum.reduceat(squares, joined.first_row) < self.fmax**2)

    def build_result(
        self, k: int, state: BatchState, evaluation: BatchEvaluation, joined: JoinedMembers
    ) -> RelaxedStructure:
        """Return the end of the relaxation of structure k."""
        return RelaxedStructure(
            structure=joined.build_structure(k, evaluation.placement),
            converged=bool(self._find_converged(evaluation, joined)[k]),
            steps=int(state.steps[k]),
            initial_energy_ev=float(state.initial_energy[k]),
            energy_ev=float(evaluation.energy[k]),
            forces=evaluation.atom_forces[joined.graph == k],
        )

    def forget(self, index: int) -> None:
        """Drop nothing, as nothing is remembered."""

    def save(self) -> dict[str, Any]:
        """Return nothing, as the state of the batch is all that a relaxation needs."""
        return {}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore nothing, as nothing is saved."""
