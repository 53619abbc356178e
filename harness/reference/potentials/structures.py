"""Crystals and molecules for timing and checks; a potential gets the first of each kind that it can predict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule

from harness.reference.data.structure import Structure
from harness.reference.datasets.user_files import structure_from_ase
from harness.reference.potentials.process import PotentialProcess

DISPLACEMENT_ANGSTROM = 0.08  # standard deviation of the displacements in crystals; half of it in molecules
STRAIN = 0.03  # largest component of the strain


def build_crystal(name: str, atoms: Atoms, cells: int = 1) -> Structure:
    """Return a crystal of cells^3 unit cells with random strain and displacements, so that no symmetry is left."""
    rng = np.random.default_rng(7)
    atoms = atoms.repeat(cells)
    strain = np.eye(3) + STRAIN * rng.uniform(-1, 1, size=(3, 3))
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.positions += rng.normal(scale=DISPLACEMENT_ANGSTROM, size=atoms.positions.shape)
    return structure_from_ase(atoms, name)


def build_molecule(name: str, atoms: Atoms) -> Structure:
    """Return a molecule in vacuum with random displacements of its atoms."""
    rng = np.random.default_rng(7)
    atoms = atoms.copy()
    atoms.positions += rng.normal(scale=DISPLACEMENT_ANGSTROM / 2, size=atoms.positions.shape)
    return structure_from_ase(atoms, name)


def make_alloy(cells: int = 1) -> Structure:
    """Return a Cu3Au crystal of cells^3 unit cells (of two for cells = 1), for potentials that support only metals."""
    atoms = bulk("Cu", "fcc", a=3.8, cubic=True)
    atoms.symbols[0] = "Au"
    return build_crystal("Cu3Au", atoms.repeat((2, 1, 1)) if cells == 1 else atoms, cells)


def make_cluster() -> Structure:
    """Return a cluster of five metal atoms in vacuum."""
    positions = [[0, 0, 0], [2.6, 0, 0], [1.3, 2.2, 0], [1.3, 0.8, 2.1], [1.3, 0.8, -2.1]]
    return build_molecule("Cu4Au cluster", Atoms("AuCu4", positions=positions))


# A builder takes the number of unit cells in each direction.
CRYSTALS: tuple[Callable[[int], Structure], ...] = (
    lambda cells: build_crystal("NaCl", bulk("NaCl", "rocksalt", a=5.64, cubic=True), cells),
    make_alloy,
    lambda cells: build_crystal("Si", bulk("Si", "diamond", a=5.43, cubic=True), cells),
)
MOLECULES: tuple[Callable[[], Structure], ...] = (
    lambda: build_molecule("ethanol", molecule("CH3CH2OH")),
    make_cluster,
)


def select_crystal(process: PotentialProcess) -> Callable[[int], Structure] | None:
    """Return the builder of the first of CRYSTALS that a potential can predict; None if it can predict none."""
    return next((build for build in CRYSTALS if can_predict(process, build(1))), None)


def select_molecule(process: PotentialProcess) -> Structure | None:
    """Return the first of MOLECULES that a potential can predict; None if it can predict none."""
    return next((structure for build in MOLECULES if can_predict(process, structure := build())), None)


def can_predict(process: PotentialProcess, structure: Structure) -> bool:
    """Return whether a potential can predict a structure; raise PotentialError if its process has ended."""
    return not isinstance(process.try_predict([structure])[0], str)


def build_supercells(build: Callable[[int], Structure], sizes: Sequence[int]) -> list[Structure]:
    """Return n x n x n supercells with the numbers of atoms nearest to the sizes, ascending and without duplicates."""
    atoms_per_cell = len(build(2)) // 8
    largest = math.ceil((max(sizes) / atoms_per_cell) ** (1 / 3))
    counts = {n: atoms_per_cell * n**3 for n in range(1, largest + 1)}
    crystals = {n: build(n) for n in sorted({min(counts, key=lambda n: abs(counts[n] - size)) for size in sizes})}
    # an alloy of one cell has two, see make_alloy
    shapes = {n: f"{n}x{n}x{n}" if len(crystal) == counts[n] else "2x1x1" for n, crystal in crystals.items()}
    return [replace(crystal, name=f"{crystal.name} {shapes[n]}") for n, crystal in crystals.items()]
