"""Molecules of one central atom and equal ligands: hydrides, halides, oxides, complexes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from harness.reference.data.structure import Array

# Unit vectors of 1 to 8 ligands; with lone pairs, two ligands are bent and three form a pyramid.
_CUBE = np.array([(x, y, z) for x in (1, -1) for y in (1, -1) for z in (1, -1)]) / np.sqrt(3)
_RING = np.array([(np.cos(a), np.sin(a), 0.0) for a in 2 * np.pi * np.arange(3) / 3])
_AXES = np.array([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)], dtype=float)
SHAPES: dict[int, Array] = {
    1: np.array([(0.0, 0.0, 1.0)]),
    2: np.array([(0.0, 0.0, 1.0), (0.0, 0.0, -1.0)]),
    3: _RING,
    4: _CUBE[[0, 3, 5, 6]],
    5: np.concatenate([_RING, [(0, 0, 1), (0, 0, -1)]]),
    6: _AXES,
    8: _CUBE,
}
BENT = np.array([(0.79, 0.0, 0.61), (-0.79, 0.0, 0.61)])
PYRAMID = _RING * 0.94 + np.array([0.0, 0.0, 0.34])
LONE_PAIRS = frozenset(("O", "S", "Se", "Te", "N", "P", "As", "Sb", "Bi", "Ge", "Sn", "Pb"))


@dataclass(frozen=True)
class CentralMolecule:
    """A central atom with `ligands` equal ligands; `spin` 0 is the lowest multiplicity that the electrons allow."""

    centre: str
    ligand: str
    ligands: int
    charge: int = 0
    spin: int = 0

    @property
    def multiplicity(self) -> int:
        """Return 2S + 1."""
        electrons = atomic_numbers[self.centre] + self.ligands * atomic_numbers[self.ligand] - self.charge
        return self.spin or 1 + electrons % 2

    @property
    def label(self) -> str:
        """Return formula, charge and multiplicity, which name the group of the frames."""
        return f"{self.centre}{self.ligand}{self.ligands} {self.charge:+d} {self.multiplicity}"


def choose_directions(centre: str, ligands: int) -> Array:
    """Return the directions of the ligands of an atom, unit vectors [ligands, 3]."""
    if centre in LONE_PAIRS and ligands in (2, 3):
        return BENT if ligands == 2 else PYRAMID
    return SHAPES[ligands]


def place_ligands(species: CentralMolecule) -> Atoms:
    """Return the molecule; bonds are sums of covalent radii (ASE: Cordero et al., Dalton Trans. 2832 (2008))."""
    radius = covalent_radii[atomic_numbers[species.centre]] + covalent_radii[atomic_numbers[species.ligand]]
    # ionic and hypervalent bonds are shorter than the sum
    length = radius * (0.93 if species.ligand in ("F", "O", "Cl") else 1.0)
    positions = choose_directions(species.centre, species.ligands) * length
    return Atoms([species.centre] + [species.ligand] * species.ligands, np.concatenate([np.zeros((1, 3)), positions]))
