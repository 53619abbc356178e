"""A calculator with planted faults of the kinds that users have met."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT
from numpy.typing import NDArray

Array = NDArray[np.float64]


class FaultyCalculator(EMT):  # type: ignore[misc]
    """EMT (effective medium theory) with the fault of the given name; the fault "none" is plain EMT.

    Args:
        fault: The name of the fault; "none": no fault.
    """

    def __init__(self, fault: str = "none") -> None:
        super().__init__()
        self.fault = fault
        self.calls = 0

    def calculate(
        self, atoms: Atoms | None = None, properties: list[str] | None = None, system_changes: list[str] = all_changes
    ) -> None:
        assert atoms is not None
        self.calls += 1
        if self.calls > {"dies": 6, "dies_later": 40}.get(self.fault, self.calls):
            os._exit(3)
        if self.fault == "dies_if_large" and len(atoms) > 100:
            os._exit(9)
        if self.fault == "raises":
            raise RuntimeError("no such element")
        if self.fault == "no_stress" and "stress" in (properties or ()):
            raise RuntimeError("no stress")
        if self.fault == "missing_image" and has_left_cell(atoms):
            atoms = atoms.copy()
            atoms.pbc = (True, True, False)
        super().calculate(atoms, properties or ["energy", "forces"], system_changes)
        forces = np.array(self.results["forces"])
        if self.fault in FORCE_FAULTS:
            self.results["forces"] = FORCE_FAULTS[self.fault](atoms, forces)
        elif self.fault == "kj_per_mol":
            self.results["energy"] *= 96.485
        elif self.fault == "call_dependent":  # as if the energy depended on the other structures of a batch
            self.results["energy"] += 1e-3 * (self.calls % 3)
        elif self.fault == "energy_jumps" and atoms.get_all_distances(mic=True)[0, 1:].min() > 2.75:
            self.results["energy"] += 0.01


def has_left_cell(atoms: Atoms) -> bool:
    """Return whether an atom lies outside the cell along the third vector."""
    return any(atoms.pbc) and bool((np.floor(atoms.get_scaled_positions(wrap=False)[:, 2] + 1e-9) != 0).any())


def compute_circulating_forces(atoms: Atoms) -> Array:
    """Return forces [n, 3] that circulate around an axis, so that they are the gradient of no energy."""
    return np.asarray(0.05 * np.cross(atoms.positions - atoms.positions.mean(axis=0), [0.0, 0.0, 1.0]))


FORCE_FAULTS: dict[str, Callable[[Atoms, Array], Array]] = {
    "forces_scaled": lambda atoms, forces: 1.01 * forces,
    "biased_forces": lambda atoms, forces: forces + 0.1 * np.abs(forces).max() * np.array([1.0, 0.0, 0.0]),
    "wrong_order": lambda atoms, forces: forces[::-1],
    "wrong_sign": lambda atoms, forces: -forces,
    "wrong_shape": lambda atoms, forces: forces.ravel(),
    "nan": lambda atoms, forces: forces * np.nan,
    "not_conservative": lambda atoms, forces: forces + compute_circulating_forces(atoms),
}
