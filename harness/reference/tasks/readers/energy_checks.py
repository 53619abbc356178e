"""Checks of whether the energies of a task are plausible for its atoms, by which mixed units are detected."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.catalog import find_source
from harness.reference.datasets.parsing.constants import ATOM_ENERGIES_EV, HARTREE_EV, KCAL_PER_MOL_EV
from harness.reference.datasets.parsing.plausibility import (
    ATOM_ENERGY_TOLERANCE,
    ATOM_TOLERANCE_EV,
    describe_implausible_lengths,
    find_implausible_energies,
)
from harness.reference.errors import InputError
from harness.reference.tasks.dataset import TaskDataset

IMPLAUSIBLE = "energy that cannot be of these atoms"
PSEUDO_RANGE = (-60.0, 60.0)  # eV/atom; the range of total energies with pseudopotentials
MAX_FORMATION_ENERGY = 20.0  # eV/atom; the largest absolute formation energy
# The ratio of the actual to the expected energy if units are mixed, for files that are in kcal/mol by default.
MIXED = (
    (KCAL_PER_MOL_EV / HARTREE_EV, "hartree taken for kcal/mol"),
    (4.184, "kJ/mol taken for kcal/mol"),
    (1 / 4.184, "kcal/mol taken for kJ/mol"),
)
ALL_ELECTRON = replace(find_source("ani1x"), head="molecules")
MAX_IMPLAUSIBLE_SHARE = 0.5  # if more structures are implausible, the whole file is rejected


def check_molecules(labelled: TaskDataset, path: object) -> TaskDataset:
    """Return the structures whose all-electron total energies are plausible for their atoms, and count the others.

    Raises:
        InputError: Most energies, or the bond lengths, of a subset are implausible; the message gives the likely unit.
    """
    table = labelled.table
    wrong, reason = find_implausible_energies(table, ALL_ELECTRON)
    far = _is_far_from_atoms(table)

    def describe(k: int) -> str:
        atoms = float(_sum_atom_energies(table)[k])
        if wrong[k]:
            return reason(k)
        units = next(
            (name for factor, name in MIXED if abs(table.energy[k] / atoms / factor - 1) < ATOM_ENERGY_TOLERANCE), ""
        )
        return f"{table.energy[k]:.6g} eV where free atoms have {atoms:.6g}" + (f": {units}" if units else "")

    for name in np.unique(labelled.subset):
        part = labelled.subset == name
        if (wrong | far)[part].mean() > MAX_IMPLAUSIBLE_SHARE:
            first = int(np.flatnonzero(part & (wrong | far))[0])
            raise InputError(f"{path}: {table.ids[first]}: {describe(first)}; expected total energies of all electrons")
        if lengths := describe_implausible_lengths(table[part], ALL_ELECTRON):
            raise InputError(f"{path}: {name or table.ids[0]}: {lengths}")
    return remove_structures(labelled, wrong | far, IMPLAUSIBLE)


def check_materials(labelled: TaskDataset, path: object) -> TaskDataset:
    """Return the structures whose total energies are plausible for atoms or pseudo-atoms, and count the others.

    Raises InputError if most energies of a subset are implausible.
    """
    table = labelled.table
    per_atom = table.energy / table.sizes
    wrong = ((per_atom < PSEUDO_RANGE[0]) | (per_atom > PSEUDO_RANGE[1])) & _is_far_from_atoms(table)
    for name in np.unique(labelled.subset):
        part = labelled.subset == name
        if wrong[part].mean() > MAX_IMPLAUSIBLE_SHARE:
            first = int(np.flatnonzero(part & wrong)[0])
            raise InputError(
                f"{path}: {table.ids[first]}: {per_atom[first]:.6g} eV per atom is neither near that of free atoms nor"
                f" within {PSEUDO_RANGE[0]:g} .. {PSEUDO_RANGE[1]:g}: are the energies in eV?"
            )
    return remove_structures(labelled, wrong, IMPLAUSIBLE)


def check_formation_energies(labelled: TaskDataset, path: object) -> TaskDataset:
    """Return the structures whose formation energies, eV/atom, are plausible, and count the others.

    Raises InputError if most are implausible.
    """
    wrong = np.abs(labelled.target) > MAX_FORMATION_ENERGY
    if wrong.mean() > MAX_IMPLAUSIBLE_SHARE:
        first = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{path}: {labelled.official_ids[first]}: a formation energy of {labelled.target[first]:.6g} eV/atom,"
            f" expected at most {MAX_FORMATION_ENERGY:g}: are they in eV/atom?"
        )
    return remove_structures(labelled, wrong, IMPLAUSIBLE)


def _sum_atom_energies(table: StructureTable) -> Array:
    return np.asarray(np.add.reduceat(ATOM_ENERGIES_EV[table.numbers], table.ends - table.sizes))


def _is_far_from_atoms(table: StructureTable) -> NDArray[np.bool_]:
    atoms = _sum_atom_energies(table)
    return np.asarray(np.abs(table.energy - atoms) > ATOM_ENERGY_TOLERANCE * -atoms + ATOM_TOLERANCE_EV * table.sizes)


def remove_structures(labelled: TaskDataset, wrong: NDArray[np.bool_], reason: str) -> TaskDataset:
    """Return the dataset without the structures in the mask, which are counted under the reason."""
    if not wrong.any():
        return labelled
    retained = ~wrong
    return replace(
        labelled,
        table=labelled.table[retained],
        target=labelled.target[retained],
        official_ids=labelled.official_ids[retained],
        subset=labelled.subset[retained],
        left_out=labelled.left_out + type(labelled.left_out)({reason: int(wrong.sum())}),
    )
