"""Units, elements and formulas: constants, properties of free atoms, and names of units in files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from harness.protocol.errors import did_you_mean
from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array
from harness.reference.errors import InputError

HARTREE_EV = 27.211386245988
BOHR_ANGSTROM = 0.529177210903
KCAL_PER_MOL_EV = 4184.0 / (1.602176634e-19 * 6.02214076e23)
KJ_PER_MOL_EV = KCAL_PER_MOL_EV / 4.184
# 1 kbar = 1e8 Pa; 1 eV/angstrom^3 = 1.602176634e11 Pa
KBAR_EV_PER_A3 = 1e8 / 1.602176634e11
# messages use the first name of each row
_ENERGIES = (
    (KCAL_PER_MOL_EV, ("kcal/mol", "kcalmol-1", "kcalpermol", "kcal_mol", "kcal")),
    (KJ_PER_MOL_EV, ("kJ/mol", "kjmol-1", "kjpermol", "kj_mol")),
    (1.0, ("eV", "electronvolt", "electronvolts")),
    (1e-3, ("meV",)),
    (HARTREE_EV, ("hartree", "hartrees", "ha", "eh", "au", "a.u.", "a.u")),
    (HARTREE_EV / 2, ("rydberg", "ry", "rydbergs")),
)
_LENGTHS = (
    (1.0, ("angstrom", "ang", "a", "\N{LATIN SMALL LETTER A WITH RING ABOVE}", "angstroms", "\N{ANGSTROM SIGN}")),
    (BOHR_ANGSTROM, ("bohr", "bohrs", "a0", "au", "a.u.", "a.u")),
    (10.0, ("nm", "nanometer", "nanometre")),
    (0.01, ("pm", "picometer", "picometre")),
)


def compute_atom_energies() -> Array:
    """Return all-electron total energies of free atoms by atomic number, [256] eV; 0 if there is no such element.

    Semiclassical neutral atom, E = -0.768745 Z^(7/3) + Z^2/2 - 0.269900 Z^(5/3) hartree (J. Schwinger, Phys. Rev. A 24,
    2353 (1981)): within 1% of Hartree-Fock from carbon to krypton and within 7% of relativistic energies up to mercury.
    The first four elements are the exact non-relativistic values (S. J. Chakravorty et al., Phys. Rev. A 47, 3649).
    """
    z = np.arange(MAX_ATOMIC_NUMBER + 1, dtype=np.float64)
    energies = np.zeros(256)
    energies[: len(z)] = -0.768745 * z ** (7 / 3) + z**2 / 2 - 0.269900 * z ** (5 / 3)
    energies[1:5] = -0.5, -2.903724, -7.478060, -14.667360
    return energies * HARTREE_EV


def load_atom_radii() -> Array:
    """Return covalent radii by atomic number, [256], angstrom, 1 if unknown (Cordero, Dalton Trans. 2832 (2008))."""
    radii = np.ones(256)
    radii[: len(covalent_radii)] = covalent_radii
    return radii


ATOM_ENERGIES_EV = compute_atom_energies()
COVALENT_RADII = load_atom_radii()


def format_formula(numbers: Any) -> str:
    """Return the formula, with elements in the order of atomic numbers, such as H2O; it serves as a group's name."""
    present, counts = np.unique(np.asarray(numbers, dtype=np.int64), return_counts=True)
    pairs = zip(present.tolist(), counts.tolist(), strict=True)
    return "".join(f"{_format_symbol(z)}{count if count > 1 else ''}" for z, count in pairs)


def _format_symbol(z: int) -> str:
    return str(chemical_symbols[z]) if 0 <= z < len(chemical_symbols) else f"[{z}]"


def find_energy_unit(where: str, text: Any) -> float:
    """Return the value of an energy unit in eV.

    Args:
        where: The location of the name, for messages.
        text: The name of the unit, as a string, bytes or an array of one string.

    Raises:
        InputError: The unit is unknown; the message has the known names.
    """
    return _find_unit(where, text, _ENERGIES)


def find_length_unit(where: str, text: Any) -> float:
    """Return the value of a length unit in angstrom; arguments and errors are those of `find_energy_unit`."""
    return _find_unit(where, text, _LENGTHS)


def _find_unit(where: str, text: Any, rows: tuple[tuple[float, tuple[str, ...]], ...]) -> float:
    value = np.asarray(text)
    word = value.reshape(-1)[0] if value.size == 1 else value.tolist()
    name = word.decode(errors="replace") if isinstance(word, bytes) else str(word)
    known: Mapping[str, float] = {_normalize(alias): factor for factor, aliases in rows for alias in aliases}
    if _normalize(name) in known:
        return known[_normalize(name)]
    hint = did_you_mean(name, {aliases[0] for _, aliases in rows})
    raise InputError(f"{where}: unknown unit {name[:40]!r}{hint}")


def _normalize(name: str) -> str:
    return re.sub(r"[\s^()*]", "", name).lower()
