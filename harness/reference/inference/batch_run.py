"""A run of many structures through one batch, in which the next structure replaces each one that has finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from harness.reference.data.structure import Array, Structure
from harness.reference.errors import InputError
from harness.reference.inference.batch_members import JoinedMembers
from harness.reference.inference.batch_state import BatchState
from harness.reference.inference.structure_batch import (
    NOT_FINITE,
    OUTSIDE,
    BatchEvaluation,
    StructureBatch,
)

DEFAULT_MAX_EDGES = 40_000
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Motion(Protocol[Result_co]):
    """An optimizer or an integrator, by which structures move.

    A step is `begin_step`, which counts it in `state.steps`, an evaluation, and `complete_step`. A structure that has
    entered is evaluated before its first step, so that `complete_step` also receives structures with 0 steps.
    """

    def start(self, index: int, structure: Structure) -> BatchState:
        """Return the state of a structure before its first step; `index` is its index in the input."""

    def begin_step(self, state: BatchState, forces: Array, joined: JoinedMembers) -> BatchState:
        """Return the state at which forces are evaluated next; `forces` [m, 3] act on all coordinates."""

    def complete_step(self, state: BatchState, evaluation: BatchEvaluation, joined: JoinedMembers) -> BatchState:
        """Return the state after the part of a step that follows the evaluation of the forces."""

    def find_finished(self, state: BatchState, evaluation: BatchEvaluation, joined: JoinedMembers) -> NDArray[np.bool_]:
        """Return which structures have finished, [g]."""

    def build_result(self, k: int, state: BatchState, evaluation: BatchEvaluation, joined: JoinedMembers) -> Result_co:
        """Return the result of structure k of the batch, which has finished."""

    def forget(self, index: int) -> None:
        """Drop what the motion remembers of a structure, which leaves the batch."""

    def save(self) -> dict[str, Any]:
        """Return what the motion remembers, as nested data with tensors."""

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore what `save` has returned."""


class BatchRun(Generic[Result]):
    """Structures that pass through a batch until they have finished.

    Args:
        batch: The batch, which is empty.
        motion: The optimizer or integrator.
        structures: The structures.
        max_edges: Number of pairs in the Verlet lists of the batch, from which on no structure enters.
        max_structures: Maximum number of structures in the batch; None: no limit.
    """

    def __init__(
        self,
        batch: StructureBatch,
        motion: Motion[Result],
        structures: Sequence[Structure],
        *,
        max_edges: int = DEFAULT_MAX_EDGES,
        max_structures: int | None = None,
    ) -> None:
        self.batch, self.motion, self.structures = batch, motion, structures
        self.max_edges = max_edges
        self.max_structures = len(structures) if max_structures is None else max_structures
        self.upcoming = 0  # index of the next structure

    @property
    def is_finished(self) -> bool:
        """Whether all structures have left the batch."""
        return not self.batch.members and self.upcoming == len(self.structures)

    def run(self) -> Iterator[tuple[int, Result | str]]:
        """Yield the index and the result of each structure, or the reason of its failure, in order of completion."""
        while not self.is_finished:
            yield from self.step()

    def step(self) -> Iterator[tuple[int, Result | str]]:
        """Let structures enter, evaluate all once, yield and remove those that have finished, and move the others.

        The step is done when all results have been taken.
        """
        batch, motion = self.batch, self.motion
        yield from self._fill()
        if batch.members:
            for index, reason in batch.update_lists():
                motion.forget(index)
                yield index, reason
        if not batch.members:
            return
        evaluation, joined = batch.evaluate(), batch.joined_members
        is_finite = np.isfinite(evaluation.energy) & np.isfinite(
            np.add.reduceat(evaluation.forces, joined.first_row)
        ).all(1)
        is_outside = evaluation.shortest < joined.closest
        state = motion.complete_step(batch.state, evaluation, joined)
        is_finished = motion.find_finished(state, evaluation, joined) | is_outside | ~is_finite
        batch.state = state
        for k in np.flatnonzero(is_finished).tolist():
            index = batch.members[k].index
            if is_outside[k] or not is_finite[k]:
                yield index, OUTSIDE if is_outside[k] else NOT_FINITE
            else:
                yield index, motion.build_result(k, state, evaluation, joined)
            motion.forget(index)
        forces = evaluation.forces[~is_finished[joined.owner]]
        if is_finished.any():
            batch.keep(~is_finished)
        if batch.members:
            batch.state = motion.begin_step(batch.state, forces, batch.joined_members)

    def _fill(self) -> list[tuple[int, str]]:
        """Let structures enter; return the indices of those that cannot, and the reasons."""
        batch, n_pairs = self.batch, self.batch.n_listed_pairs
        entered, refused = [batch.state], list[tuple[int, str]]()
        while (
            self.upcoming < len(self.structures)
            and n_pairs < self.max_edges
            and len(batch.members) < self.max_structures
        ):
            index, structure = self.upcoming, self.structures[self.upcoming]
            self.upcoming += 1
            reason = batch.add(index, structure)
            if reason is None:
                entered.append(self.motion.start(index, structure))
                n_pairs += len(batch.lists[-1].receiver)
            else:
                refused.append((index, reason))
        if len(entered) > 1:
            batch.state = BatchState.join(entered)
        return refused

    def save(self) -> dict[str, Any]:
        """Return the state of the run between two steps, as nested data with tensors.

        Verlet lists are saved as the positions at which they were built, so that the restored ones have the same order.
        """
        lists = [(torch.from_numpy(v.positions), torch.from_numpy(v.deformation)) for v in self.batch.lists]
        return {
            "upcoming": self.upcoming,
            "members": [member.index for member in self.batch.members],
            "lists": lists,
            "state": self.batch.state.to_tensors(),
            "motion": self.motion.save(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore what `save` has returned into a run of the same structures that has made no step.

        Raises:
            InputError: The neighbour list of a structure cannot be built.
        """
        for index, (positions, deformation) in zip(saved["members"], saved["lists"], strict=True):
            listed_at = (positions.numpy(), deformation.numpy())
            reason = self.batch.add(index, self.structures[index], listed_at=listed_at)
            if reason is not None:
                raise InputError(f"the saved state of structure {index} cannot be restored ({reason})")
        self.batch.state = BatchState.from_tensors(saved["state"])
        self.upcoming = saved["upcoming"]
        self.motion.restore(saved["motion"])
