"""Molecules in many states of charge and spin, over most of the periodic table (OMol25).

The set has molecules of QM9 (neutral, ionised, as triplets, without a hydrogen, or with an added proton), clusters of
ions with water and other solvents, complexes of metals, and hydrides, halides, oxides and sulfides up to radon.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.data import atomic_numbers, chemical_symbols, covalent_radii

from harness.reference.data.structure import Array, Structure
from tests.builders.mini_sets.chemistry.central import SHAPES, CentralMolecule, place_ligands
from tests.builders.mini_sets.geometry import build_structure, compute_closest_ratio, make_rng, rattle, rotate
from tests.builders.mini_sets.packages import sample_molecules

# State of a molecule of QM9: change in the number of hydrogens, charge, multiplicity, fraction of the molecules.
STATES = {
    "neutral": (0, 0, 1, 0.52),
    "cation": (0, 1, 2, 0.08),
    "anion": (0, -1, 2, 0.07),
    "triplet": (0, 0, 3, 0.08),
    "radical": (-1, 0, 2, 0.10),
    "deprotonated": (-1, -1, 1, 0.06),
    "protonated": (1, 1, 1, 0.06),
    "dication": (0, 2, 1, 0.03),
}
# Symbol or name, and charge.
IONS = (
    *(("Li", 1), ("Na", 1), ("K", 1), ("Rb", 1), ("Cs", 1), ("Be", 2), ("Mg", 2), ("Ca", 2), ("Sr", 2), ("Ba", 2)),
    *(("Al", 3), ("Zn", 2), ("Cd", 2), ("Ag", 1), ("Cu", 1), ("Tl", 1), ("Pb", 2), ("Y", 3), ("La", 3), ("Lu", 3)),
    *(("F", -1), ("Cl", -1), ("Br", -1), ("I", -1), ("S", -2), ("OH", -1), ("CN", -1), ("He", 0), ("Ne", 0), ("Ar", 0)),
    *(("Kr", 0), ("Xe", 0), ("Rn", 0), ("CH4", 0), ("CO2", 0), ("C6H6", 0), ("HCOOH", 0), ("CH3Cl", 0), ("SH2", 0)),
)
SOLVENTS = ("H2O", "H2O", "H2O", "NH3", "CH3OH", "HF", "CH3CN")
COMPLEX_METALS = (
    *("Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Y", "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag"),
    *("Cd", "La", "Ce", "Pr", "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu"),
    *("Hf", "Ta", "W", "Re", "Os", "Ir", "Pt", "Au", "Hg", "Al", "Ga", "In", "Tl", "Sn", "Pb", "Bi"),
)
# The charge of each ligand, and the atom that binds to the metal.
LIGANDS = {"H2O": 0, "NH3": 0, "CO": 0, "Cl": -1, "F": -1, "CN": -1, "OH": -1, "PH3": 0}
DONORS = {"H2O": "O", "NH3": "N", "CO": "C", "Cl": "Cl", "F": "F", "CN": "C", "OH": "O", "PH3": "P"}
MIN_DISTANCE_RATIO = 0.62


def _remove_hydrogen(atoms: Atoms, rng: np.random.Generator) -> Atoms | None:
    """Return a copy without a random hydrogen, or None if there is no hydrogen."""
    hydrogens = np.flatnonzero(atoms.numbers == 1)
    if not len(hydrogens):
        return None
    copy = atoms.copy()
    del copy[int(rng.choice(hydrogens))]
    return copy


def _add_proton(atoms: Atoms, rng: np.random.Generator) -> Atoms | None:
    """Return a copy with a hydrogen added to a nitrogen or oxygen, or None if there is neither."""
    sites = np.flatnonzero((atoms.numbers == 7) | (atoms.numbers == 8))
    if not len(sites):
        return None
    site = int(rng.choice(sites))
    trials = rng.normal(size=(60, 3))
    positions = atoms.positions[site] + trials / np.linalg.norm(trials, axis=1, keepdims=True)
    others = np.delete(atoms.positions, site, axis=0)
    clearances = np.linalg.norm(positions[:, None] - others[None], axis=2).min(1)
    return atoms + Atoms("H", [positions[int(clearances.argmax())]])


def build_organic(archives: Path, count: int) -> Iterator[Structure]:
    """Yield molecules of QM9, each in one state, if the number of electrons allows its multiplicity."""
    names, fractions = list(STATES), np.array([fraction for *_, fraction in STATES.values()])
    for atoms in sample_molecules(archives, count):
        group = str(atoms.info["group"])
        rng = make_rng("omol25", group)
        state = names[int(rng.choice(len(names), p=fractions / fractions.sum()))]
        hydrogens, charge, multiplicity, _ = STATES[state]
        changed = {-1: _remove_hydrogen, 0: lambda a, _: a, 1: _add_proton}[hydrogens](atoms, rng)
        if changed is None:
            continue
        moved = rattle(changed, rng, float(rng.choice([0.0, 0.04, 0.08, 0.12])))
        if compute_closest_ratio(moved) > MIN_DISTANCE_RATIO:
            yield build_structure(moved, f"{group}/{state}", group, charge, multiplicity)


def pack_cluster(species_list: list[Atoms], rng: np.random.Generator) -> Atoms:
    """Place species around the first, each as close as 1.35 times the sum of covalent radii."""
    cluster = species_list[0].copy()
    for species in species_list[1:]:
        rotated = rotate(species, rng)
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        for distance in np.arange(1.5, 12.0, 0.1):
            positions = rotated.positions + direction * distance
            gaps = np.linalg.norm(positions[:, None] - cluster.positions[None], axis=2)
            if (gaps / (covalent_radii[rotated.numbers][:, None] + covalent_radii[cluster.numbers][None])).min() > 1.35:
                break
        cluster += Atoms(rotated.numbers, positions)
    return cluster


def build_clusters(count: int) -> Iterator[Structure]:
    """Yield an ion, atom or molecule with one to six solvent molecules; about a third contain only solvent."""
    for k in range(count):
        rng = make_rng("cluster", k)
        solvent = SOLVENTS[rng.integers(len(SOLVENTS))]
        size = int(rng.integers(1, 7))
        centre, charge = IONS[rng.integers(len(IONS))] if rng.random() < 0.7 else (solvent, 0)
        first = Atoms(centre) if centre in atomic_numbers else molecule(centre)
        moved = rattle(pack_cluster([first] + [molecule(solvent)] * size, rng), rng, 0.04)
        if compute_closest_ratio(moved) > MIN_DISTANCE_RATIO:
            group = f"{centre} {charge:+d} + {size} {solvent}"
            yield build_structure(moved, f"{group}/{k}", group, charge, 1)


def _orient_ligand(metal: str, ligand: str, direction: Array, rng: np.random.Generator) -> Atoms:
    """Return a ligand whose donor points at the metal in the origin."""
    species = Atoms(ligand) if ligand in atomic_numbers else molecule(ligand)
    donor = next(k for k, s in enumerate(species.symbols) if s == DONORS[ligand])
    species.positions -= species.positions[donor]
    centre_of_ligand = species.positions.mean(0)
    if np.linalg.norm(centre_of_ligand) > 1e-6:
        species.rotate(centre_of_ligand, direction)
    species.rotate(float(rng.uniform(0, 360)), direction)
    length = covalent_radii[atomic_numbers[metal]] + covalent_radii[species.numbers[donor]]
    species.positions += direction * length
    return species


def build_complexes(count: int) -> Iterator[Structure]:
    """Yield metals of oxidation state 1 to 4 with two to six ligands of one or two kinds, low and higher spin."""
    names = list(LIGANDS)
    for k in range(count):
        rng = make_rng("complex", k)
        metal = COMPLEX_METALS[rng.integers(len(COMPLEX_METALS))]
        number = int(rng.choice([2, 3, 4, 4, 6, 6]))
        two_ligands = [names[i] for i in rng.integers(len(names), size=2)]
        ligands = sorted(two_ligands[i] for i in rng.integers(2, size=number))
        charge = int(rng.integers(1, 5)) + sum(LIGANDS[name] for name in ligands)
        if abs(charge) > 3:
            continue
        atoms = Atoms(metal, [(0, 0, 0)])
        for name, direction in zip(ligands, SHAPES[number], strict=True):
            atoms += _orient_ligand(metal, name, direction, rng)
        multiplicity = 1 + (int(atoms.numbers.sum()) - charge) % 2 + 2 * int(rng.random() < 0.3)
        moved = rattle(atoms, rng, float(rng.choice([0.03, 0.06, 0.1])))
        if compute_closest_ratio(moved) > MIN_DISTANCE_RATIO:
            group = f"{metal} {charge:+d} " + " ".join(ligands)
            yield build_structure(moved, f"{group} {multiplicity}/{k}", group, charge, multiplicity)


def build_small_compounds(count: int) -> Iterator[Structure]:
    """Yield hydrides, halides, oxides and sulfides of every element up to radon, with one to six ligands."""
    for k in range(count):
        rng = make_rng("simple", k)
        ligand = ("H", "F", "Cl", "Br", "I", "O", "S", "H")[rng.integers(8)]
        number = int(rng.choice([1, 1, 2, 2, 3, 3, 4, 6]))
        species = CentralMolecule(chemical_symbols[1 + k % 86], ligand, number, int(rng.choice([0, 0, 0, 0, 1, -1])))
        moved = rattle(place_ligands(species), rng, float(rng.choice([0.0, 0.05, 0.1])))
        if compute_closest_ratio(moved) > MIN_DISTANCE_RATIO:
            group = f"{species.centre}{ligand}{number}"
            yield build_structure(moved, f"{species.label}/{k}", group, species.charge, species.multiplicity)


def make_omol25(archives: Path) -> list[Structure]:
    """Return structures of all kinds; about three in four are molecules of QM9."""
    result = [
        *build_organic(archives, 9400),
        *build_clusters(1400),
        *build_complexes(1500),
        *build_small_compounds(1032),
    ]
    return [s for s in result if is_valid_state(s)]


def is_valid_state(s: Structure) -> bool:
    """Check that there are several atoms and that the number of electrons allows the charge and multiplicity."""
    electrons = int(s.numbers.sum()) - s.charge
    unpaired = s.multiplicity - 1
    return len(s) > 1 and electrons > 0 and electrons >= unpaired and (electrons - unpaired) % 2 == 0
