"""The baseline of a target, and the units of errors of its residuals and forces, fitted to training labels alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets import reference_energies
from harness.reference.datasets.reference_energies import ELEMENT_SLOTS, ElementState, count_elements

MIN_UNIT = 1e-3  # the smallest unit of a target or of forces, as all labels may be equal
RIDGE = 1e-2  # the ridge penalty of the composition baseline


@dataclass(frozen=True)
class TargetScaling:
    """The scaling of a target, in the unit of the task.

    Attributes:
        extensive: Whether the target is an energy that grows with the structure.
        energies: [119] reference energy of each element, 0 if it is absent.
        offset: Mean of an intensive target.
        unit: Unit of an energy per atom, or of an intensive target.
        unit_force: Unit of force components.
        known: [119] whether an element occurs in the training labels.
    """

    extensive: bool
    energies: Array
    offset: float
    unit: float
    unit_force: float
    known: NDArray[np.bool_]

    def baseline(self, table: StructureTable) -> Array:
        """Return the baseline of each structure, [g], in the unit of the task."""
        if not self.extensive:
            return np.full(len(table), self.offset)
        return np.asarray(count_elements(table) @ self.energies)

    def knows(self, table: StructureTable) -> NDArray[np.bool_]:
        """Return for each structure whether it has a baseline, [g]: energies need all elements in the training set."""
        if not self.extensive:
            return np.ones(len(table), dtype=bool)
        return np.asarray((count_elements(table)[:, ~self.known] == 0).all(axis=1))


def fit_scaling(table: StructureTable, target: Array, *, extensive: bool) -> TargetScaling:
    """Fit the scaling to training structures and their target [g]; the unit of forces is their mean magnitude."""
    unit_force = 1.0 if table.forces is None else max(float(np.abs(table.forces).mean()), MIN_UNIT)
    everything = np.ones(ELEMENT_SLOTS, dtype=bool)
    if not extensive:
        unit = max(float(np.abs(target - target.mean()).mean()), MIN_UNIT)
        return TargetScaling(False, np.zeros(ELEMENT_SLOTS), float(target.mean()), unit, unit_force, everything)
    references = reference_energies.fit(lambda: iter([replace(table, energy=target)]))
    unit = max(references.mae_ev_per_atom, MIN_UNIT)
    known = references.state > ElementState.ABSENT
    return TargetScaling(True, np.nan_to_num(references.energy_ev), 0.0, unit, unit_force, known)


def predict_from_composition(table: StructureTable, target: Array, test: StructureTable, *, extensive: bool) -> Array:
    """Return the predictions of a linear model of composition for t test structures, [t].

    For an extensive target, the features are element counts; otherwise they are element fractions, with ridge
    regression.
    """
    mean = target.mean()
    if extensive:
        return fit_scaling(table, target, extensive=True).baseline(test)
    x, y = (count_elements(f) / f.sizes[:, None] for f in (table, test))
    kernel = x @ x.T + RIDGE * np.eye(len(x))
    return np.asarray(mean + (y @ x.T) @ np.linalg.solve(kernel, target - mean))
