"""Checks of whether energies are plausible in eV, and lengths in angstrom, by which mixed units are detected."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.catalog import DatasetSource
from harness.reference.datasets.parsing.constants import (
    ATOM_ENERGIES_EV,
    BOHR_ANGSTROM,
    COVALENT_RADII,
    HARTREE_EV,
    KCAL_PER_MOL_EV,
    KJ_PER_MOL_EV,
    format_formula,
)

# A total energy may differ from that of its free atoms by this fraction (errors of the table, bonds, relativity) plus
# this energy for each atom, and twice this energy for each elementary charge.
ATOM_ENERGY_TOLERANCE = 0.1
ATOM_TOLERANCE_EV = 0.25 * HARTREE_EV
WEAKLY_BOUND_ELEMENTS = (2, 10, 18, 36, 54, 80, 86)  # atomic numbers of noble gases and mercury
MAX_REFERENCED_SHARE = 0.5  # if more energies of a table are adsorption energies or the like, all of them count as such
MAX_UNUSUAL_SHARE = 0.1  # if more energies of a table are implausible, its bond lengths are not judged
MIN_STRUCTURES = 32  # minimum number of structures in a table whose bond lengths are judged

# actual / expected energy if a reader or a file mixes units
MIXED_ENERGIES = (
    (1 / HARTREE_EV, "hartree taken for eV"),
    (HARTREE_EV, "eV taken for hartree"),
    (1 / KCAL_PER_MOL_EV, "kcal/mol taken for eV"),
    (HARTREE_EV / KCAL_PER_MOL_EV, "kcal/mol taken for hartree"),
    (KCAL_PER_MOL_EV, "eV taken for kcal/mol"),
    (1 / KJ_PER_MOL_EV, "kJ/mol taken for eV"),
    (HARTREE_EV / KJ_PER_MOL_EV, "kJ/mol taken for hartree"),
    (KJ_PER_MOL_EV, "eV taken for kJ/mol"),
    (0.5, "rydberg taken for hartree"),
    (2.0, "hartree taken for rydberg"),
)
# ranges of bond length / sum of covalent radii
MIXED_LENGTHS = (
    (1.5, 2.6, "bohr taken for angstrom"),
    (0.35, 0.68, f"angstrom multiplied by {BOHR_ANGSTROM:.4f}, as if they were bohr"),
    (0.05, 0.2, "nanometres taken for angstrom"),
    (50.0, 200.0, "picometres taken for angstrom"),
)

CANDIDATE_UNITS = {"hartree": HARTREE_EV, "eV": 1.0}
# Formation energies from free atoms, eV per atom: H2 has -2.3, CH4 -3.5, benzene -4.9, CO2 -5.6, diamond -7.4.
FORMATION_EV = (-9.0, -1.0)
TOTAL_ENERGY_TOLERANCE = 0.1  # relative difference of a total energy from that of its atoms
MAX_MISFIT_SHARE = 0.2  # maximum share of implausible energies in the right unit
EnergySample = tuple[NDArray[np.int64], float]


def find_implausible_energies(
    table: StructureTable, source: DatasetSource
) -> tuple[NDArray[np.bool_], Callable[[int], str]]:
    """Find structures whose energies are implausible for a dataset.

    Returns:
        The mask [g] of these structures, and a function that returns the reason for the structure of an index.
    """
    per_atom = table.energy / table.sizes
    low, high = source.energy_range_ev_per_atom
    wrong = (per_atom < low) | ((per_atom > high) & ~_is_bound_weakly(table))
    if high < 0 and np.count_nonzero(wrong & (per_atom > high)) > MAX_REFERENCED_SHARE * len(table):
        wrong[:] = True  # the other energies are within the range of total energies by chance

    def describe_range(k: int) -> str:
        if high < 0 and per_atom[k] > low:
            return (
                f"{table.energy[k]:.6g} eV for {table.sizes[k]} atoms is not a {source.energy_kind} energy of"
                f" {source.head} ({low:g} .. {high:g} eV per atom): an adsorption or otherwise referenced energy,"
                " or mixed units?"
            )
        return f"{per_atom[k]:.6g} eV per atom, beyond {low:g} .. {high:g} expected of {source.head}: mixed units?"

    if not source.heaviest_all_electron:
        return wrong, describe_range
    atoms, known, is_far = _compare_with_atoms(table, source)
    ratio = table.energy / atoms
    factors = np.array([factor for factor, _ in MIXED_ENERGIES])
    mixed = known & is_far & (np.abs(ratio[:, None] / factors - 1).min(axis=1) < 1.5 * ATOM_ENERGY_TOLERANCE)

    def describe(k: int) -> str:
        if not mixed[k]:
            return describe_range(k)
        name = MIXED_ENERGIES[int(np.abs(ratio[k] / factors - 1).argmin())][1]
        return f"{table.energy[k]:.6g} eV where free atoms have {atoms[k]:.6g}: {name}"

    return wrong | mixed, describe


def _is_bound_weakly(table: StructureTable) -> NDArray[np.bool_]:
    """Return whether noble gases and mercury dominate a structure, so that its energy may be near zero, [g]."""
    weak = np.isin(table.numbers, WEAKLY_BOUND_ELEMENTS).astype(np.int64)
    starts = table.ends - table.sizes
    return np.asarray(np.add.reduceat(weak, starts) > table.sizes / 2, dtype=np.bool_)


def _compare_with_atoms(
    table: StructureTable, source: DatasetSource
) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """Compare the energy of each structure with that of its free atoms.

    Returns:
        The energy of the free atoms [g] in eV, whether the dataset's energies include all electrons of the structure
        [g], and whether the energy is far from that of the free atoms [g].
    """
    starts = table.ends - table.sizes
    atoms = np.add.reduceat(ATOM_ENERGIES_EV[table.numbers], starts)
    slack = ATOM_ENERGY_TOLERANCE * -atoms + ATOM_TOLERANCE_EV * (table.sizes + 2 * np.abs(table.charge))
    known = np.maximum.reduceat(table.numbers, starts) <= source.heaviest_all_electron
    return atoms, known, np.abs(table.energy - atoms) > slack


def describe_implausible_lengths(table: StructureTable, source: DatasetSource) -> str:
    """Return the reason why the positions of a table are implausible in angstrom, or "".

    The criterion is the distance of the first and of the last atom of each structure to its nearest neighbour, divided
    by the sum of covalent radii. The median over the table is judged, since single structures may be loose clusters: of
    the smaller of the two distances for units that make lengths too large, of the larger one for units that make them
    too small. Only tables whose energies are those of molecules are judged, because artificial test files may have any
    lengths.
    """
    _, known, is_far = _compare_with_atoms(table, source)
    if known.sum() < MIN_STRUCTURES or (known & is_far).sum() > MAX_UNUSUAL_SHARE * known.sum():
        return ""
    several = table.sizes > 1
    if np.count_nonzero(several) < MIN_STRUCTURES:
        return ""
    starts = table.ends - table.sizes
    nearest = np.stack(
        [_measure_nearest_distances(table, starts, probe)[several] for probe in (starts, table.ends - 1)]
    )
    closest, farthest = float(np.median(nearest.min(axis=0))), float(np.median(nearest.max(axis=0)))
    for low, high, name in MIXED_LENGTHS:
        typical = closest if low > 1 else farthest
        if low < typical < high:
            return f"neighbours are {typical:.2f} times a bond apart in its block: {name}"
    return ""


def _measure_nearest_distances(table: StructureTable, starts: NDArray[np.int64], probe: NDArray[np.int64]) -> Array:
    """Return the distance of each probe atom to its nearest neighbour, divided by the sum of covalent radii, [g]."""
    vector = table.positions - np.repeat(table.positions[probe], table.sizes, axis=0)
    radii = COVALENT_RADII[table.numbers]
    scaled = np.einsum("ij,ij->i", vector, vector) / (radii + np.repeat(radii[probe], table.sizes)) ** 2
    scaled[probe] = np.inf
    return np.sqrt(np.minimum.reduceat(scaled, starts))


def find_fitting_units(samples: Sequence[EnergySample]) -> list[str]:
    """Return the names of the units in which the energies are plausible total or formation energies.

    Args:
        samples: Atomic numbers [n] and energy of some structures.
    """
    return [
        name for name, unit in CANDIDATE_UNITS.items() if _compute_fitting_share(samples, unit) >= 1 - MAX_MISFIT_SHARE
    ]


def _compute_fitting_share(samples: Sequence[EnergySample], unit: float) -> float:
    return float(np.mean([_is_plausible(numbers, energy * unit) for numbers, energy in samples])) if samples else 0.0


def _is_plausible(numbers: NDArray[np.int64], energy_ev: float) -> bool:
    low, high = FORMATION_EV
    atoms = float(ATOM_ENERGIES_EV[numbers].sum())
    return low <= energy_ev / len(numbers) <= high or abs(energy_ev - atoms) <= TOTAL_ENERGY_TOLERANCE * abs(atoms)


def describe_sample(samples: Sequence[EnergySample]) -> str:
    """Return the first energy with its formula, as an example for a message."""
    numbers, energy = samples[0]
    return f"{energy:.6g} of {format_formula(numbers)}"
