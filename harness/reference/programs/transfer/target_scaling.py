"""A task's labels as a model is to see them: less what composition or the mean explains, in units of what is left.

Everything is fitted on training labels alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.statistics import reference_energies
from harness.reference.datasets.statistics.reference_energies import ELEMENT_SLOTS, ElementState, count_elements

LEAST_UNIT = 1e-3
RIDGE = 1e-2


@dataclass(frozen=True)
class TargetScaling:
    """extensive: whether the value grows with the structure, an energy. energies: [119], of each element, zero where
    absent. offset: of an intensive value. unit: of an atom's share of an energy, or of an intensive value; unit_force.
    known: [119], the elements that the training labels hold.
    """

    extensive: bool
    energies: Array
    offset: float
    unit: float
    unit_force: float
    known: NDArray[np.bool_]

    def baseline(self, frames: StructureTable) -> Array:
        """What is predicted without a model, [g], in the task's unit."""
        if not self.extensive:
            return np.full(len(frames), self.offset)
        return np.asarray(count_elements(frames) @ self.energies)

    def knows(self, frames: StructureTable) -> NDArray[np.bool_]:
        """Whether an energy can be told: of elements without a label nothing is known. Always for intensive values."""
        if not self.extensive:
            return np.ones(len(frames), dtype=bool)
        return np.asarray((count_elements(frames)[:, ~self.known] == 0).all(axis=1))


def fit_scaling(frames: StructureTable, target: Array, *, extensive: bool) -> TargetScaling:
    """The scaling of training labels, [g]; forces, where there are some, are counted in their mean size."""
    forces = 1.0 if frames.forces is None else max(float(np.abs(frames.forces).mean()), LEAST_UNIT)
    everything = np.ones(ELEMENT_SLOTS, dtype=bool)
    if not extensive:
        unit = max(float(np.abs(target - target.mean()).mean()), LEAST_UNIT)
        return TargetScaling(False, np.zeros(ELEMENT_SLOTS), float(target.mean()), unit, forces, everything)
    found = reference_energies.fit(lambda: iter([replace(frames, energy=target)]))
    unit = max(found.mae_ev_per_atom, LEAST_UNIT)
    return TargetScaling(True, np.nan_to_num(found.energy_ev), 0.0, unit, forces, found.state > ElementState.ABSENT)


def composition_baseline(frames: StructureTable, target: Array, test: StructureTable, *, extensive: bool) -> Array:
    """What a linear model of composition predicts for the test, [t]: of counts, or of fractions with a ridge."""
    mean = target.mean()
    if extensive:
        return fit_scaling(frames, target, extensive=True).baseline(test)
    x, y = (count_elements(f) / f.sizes[:, None] for f in (frames, test))
    kernel = x @ x.T + RIDGE * np.eye(len(x))
    return np.asarray(mean + (y @ x.T) @ np.linalg.solve(kernel, target - mean))
