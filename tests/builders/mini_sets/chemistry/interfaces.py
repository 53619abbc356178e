"""Metal slabs under a film of water, some with an ion (OC25)."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import fcc111, hcp0001, molecule

from harness.reference.data.structure import Structure
from tests.builders.mini_sets.geometry import (
    build_structure,
    compute_closest_ratio,
    compute_closest_ratio_between,
    make_rng,
    rattle,
    rotate,
)

METALS = ("Cu", "Ag", "Au", "Pt", "Pd", "Rh", "Ir", "Al", "Ru", "Ti", "Zr", "Zn")
SOLUTES = (None, None, "Li", "Na", "K", "F", "Cl", "OH")
WATER_VOLUME = 30.0  # angstrom^3 per molecule
GAP = 2.2  # angstrom between slab and film


def pack_film(slab: Atoms, species: list[Atoms], height: float, rng: np.random.Generator) -> Atoms | None:
    """Place the species at random above the slab, one after another; return None if there is no room for one."""
    top = slab.positions[:, 2].max()
    filled = slab.copy()
    for molecule_or_ion in species:
        for _ in range(400):
            rotated = rotate(molecule_or_ion, rng)
            point = rng.random(2) @ slab.cell.array[:2, :2]
            rotated.positions += (*point, top + GAP + rng.random() * (height - 2 * GAP))
            # hydrogen bonds of 1.8 angstrom are twice the sum of the radii, so only overlaps are refused
            if compute_closest_ratio_between(filled, rotated) > 1.25:
                filled += rotated
                break
        else:
            return None
    return filled


def build_interface(k: int) -> tuple[Atoms, str] | None:
    """Return two layers of 2 x 1 metal atoms under three or four molecules at the density of water, without vacuum."""
    rng = make_rng("oc25", k)
    metal, solute = METALS[rng.integers(len(METALS))], SOLUTES[rng.integers(len(SOLUTES))]
    face = hcp0001 if metal in ("Ru", "Ti", "Zr", "Zn") else fcc111
    slab = face(metal, (2, 1, 2), vacuum=0.0, periodic=True)
    waters = int(rng.integers(2, 5))
    species = [molecule("H2O")] * waters
    if solute:
        species = [molecule("OH") if solute == "OH" else Atoms(solute), *species[1:]]
    area = abs(np.linalg.det(slab.cell.array[:2, :2]))
    height = len(species) * WATER_VOLUME / area + 2 * GAP
    slab.cell[2] = (0.0, 0.0, np.ptp(slab.positions[:, 2]) + height)
    slab.pbc = True
    filled = pack_film(slab, species, height, rng)
    description = f"{metal} {face.__name__} + {waters - bool(solute)} H2O" + (f" + {solute}" if solute else "")
    return None if filled is None else (filled, description)


def make_oc25(count: int = 600) -> list[Structure]:
    """Return two rattled frames of each interface."""
    result: list[Structure] = []
    for k in range(10 * count):
        interface = build_interface(k)
        if interface is None:
            continue
        atoms, description = interface
        group = f"{description} #{k}"
        for frame, displacement in enumerate((0.02, 0.08)):
            moved = rattle(atoms, make_rng(group, frame), displacement)
            if compute_closest_ratio(moved) > 0.65:
                result.append(build_structure(moved, f"{group}/{frame}", group))
        if len(result) >= count:
            break
    return result[:count]
