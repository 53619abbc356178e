"""Units of the official formats in eV and angstrom (CODATA 2018, https://physics.nist.gov/constants)."""

from __future__ import annotations

HARTREE_EV = 27.211386245988
BOHR_ANGSTROM = 0.529177210903
KCAL_PER_MOL_EV = 4184.0 / (1.602176634e-19 * 6.02214076e23)
# 1 kbar = 1e8 Pa; 1 eV/angstrom^3 = 1.602176634e11 Pa
KBAR_EV_PER_A3 = 1e8 / 1.602176634e11
