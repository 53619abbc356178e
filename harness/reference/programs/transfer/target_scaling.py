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
        energies: [119] reference energy of each element, 0 for elements without one.
        offset: Mean of an intensive target.
        unit: Unit of an energy per atom, or of an intensive target.
        unit_force: Unit of force components.
        known: [119] whether an element has a baseline: all elements for an intensive target, and for energies those of
            the training structures.
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
        """Return for each structure whether all of its elements have a baseline, [g]."""
        return np.asarray((count_elements(table)[:, ~self.known] == 0).all(axis=1))


def fit_scaling(table: StructureTable, target: Array, *, extensive: bool) -> TargetScaling:
    """Fit the scaling to training structures, of which all or none have forces, and their target [g].

    The unit of forces is the mean absolute value of their components, and 1 without forces.
    """
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

    For an extensive target, the features are element counts, and the energy of elements without training structures is
    0 (`TargetScaling.knows` excludes them); otherwise they are element fractions, with ridge regression.
    """
    if extensive:
        return fit_scaling(table, target, extensive=True).baseline(test)
    mean = target.mean()
    x, x_test = (count_elements(f) / f.sizes[:, None] for f in (table, test))
    kernel = x @ x.T + RIDGE * np.eye(len(x))
    return np.asarray(mean + (x_test @ x.T) @ np.linalg.solve(kernel, target - mean))
