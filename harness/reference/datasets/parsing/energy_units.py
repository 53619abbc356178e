"""Which unit energies are in where a file does not say: the one in which they are those of molecules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.reference.datasets.parsing.composition import formula
from harness.reference.datasets.parsing.free_atoms import ENERGIES_EV
from harness.reference.datasets.units import HARTREE_EV

CANDIDATES = {"hartree": HARTREE_EV, "eV": 1.0}
# Formation energies from free atoms, eV per atom: H2 has -2.3, CH4 -3.5, benzene -4.9, CO2 -5.6, diamond -7.4.
FORMATION_EV = (-9.0, -1.0)
TOTAL_SHARE = 0.1  # that a total energy may differ from those of its atoms
MOST_UNLIKE = 0.2  # share of structures that may fit no unit
Sample = tuple[NDArray[np.int64], float]


def fitting_units(samples: Sequence[Sample]) -> list[str]:
    """Return the units in which energies are the totals or the formation energies of their structures.

    Args:
        samples: Atomic numbers and energy of some structures.
    """
    return [name for name, unit in CANDIDATES.items() if _share(samples, unit) >= 1 - MOST_UNLIKE]


def _share(samples: Sequence[Sample], unit: float) -> float:
    return float(np.mean([_fits(numbers, energy * unit) for numbers, energy in samples])) if samples else 0.0


def _fits(numbers: NDArray[np.int64], energy_ev: float) -> bool:
    low, high = FORMATION_EV
    atoms = float(ENERGIES_EV[numbers].sum())
    return low <= energy_ev / len(numbers) <= high or abs(energy_ev - atoms) <= TOTAL_SHARE * abs(atoms)


def describe(samples: Sequence[Sample]) -> str:
    """Return one of the energies with its structure, as an example for a message."""
    numbers, energy = samples[0]
    return f"{energy:.6g} of {formula(numbers)}"
