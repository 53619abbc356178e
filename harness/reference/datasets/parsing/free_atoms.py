"""Energies and sizes of free atoms, good enough to tell one unit from another."""

from __future__ import annotations

import numpy as np
from ase.data import covalent_radii

from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array
from harness.reference.datasets.units import HARTREE_EV


def atom_energies() -> Array:
    """All-electron total energies by atomic number, [256], eV; 0 where there is no such element.

    Semiclassical neutral atom, E = -0.768745 Z^(7/3) + Z^2/2 - 0.269900 Z^(5/3) hartree (J. Schwinger, Phys. Rev. A 24,
    2353 (1981)): within 1% of Hartree-Fock from carbon to krypton and within 7% of relativistic energies up to mercury.
    The first four elements are the exact non-relativistic values (S. J. Chakravorty et al., Phys. Rev. A 47, 3649).
    """
    z = np.arange(MAX_ATOMIC_NUMBER + 1, dtype=np.float64)
    energies = np.zeros(256)
    energies[: len(z)] = -0.768745 * z ** (7 / 3) + z**2 / 2 - 0.269900 * z ** (5 / 3)
    energies[1:5] = -0.5, -2.903724, -7.478060, -14.667360
    return energies * HARTREE_EV


def atom_radii() -> Array:
    """Covalent radii by atomic number, [256], angstrom (Cordero et al., Dalton Trans. 2832 (2008)); 1 if unknown."""
    radii = np.ones(256)
    radii[: len(covalent_radii)] = covalent_radii
    return radii


ENERGIES_EV = atom_energies()
RADII = atom_radii()
