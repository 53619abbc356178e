"""Metal and alloy slabs with an adsorbate (OC2020)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bcc110, fcc100, fcc111, hcp0001, molecule
from ase.data import atomic_numbers, covalent_radii, reference_states

from harness.reference.data.structure import Structure
from tests.builders.mini_sets.geometry import build_structure, compute_closest_ratio, make_rng, rattle, rotate

METALS = (
    *("Al", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Y", "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd"),
    *("Ag", "Cd", "Hf", "Ta", "W", "Re", "Os", "Ir", "Pt", "Au", "Pb", "Ca", "Sr"),
)
PARTNERS = (*METALS, "Ga", "In", "Sn", "Tl", "Bi", "Sb", "Ge", "Si", "As", "Se", "Te", "Hg", "Na", "K")
ADSORBATES = {
    **{symbol: Atoms(symbol) for symbol in ("H", "O", "C", "N", "S")},
    **{name: molecule(name) for name in ("OH", "CO", "NO", "CH", "CH3", "NH", "NH2", "NH3", "H2O", "N2")},
    **{name: molecule(name) for name in ("HCO", "H2CO")},
    "CH2": molecule("CH2_s1A1d"),
    **{name: molecule(name) for name in ("C2H4", "CH3OH", "HCOOH")},
}
FACETS: dict[str, tuple[Callable[..., Atoms], ...]] = {"fcc": (fcc111, fcc100), "bcc": (bcc110,), "hcp": (hcp0001,)}
# Lattice constant divided by the distance of nearest neighbours.
LATTICE_RATIOS = {"fcc": math.sqrt(2), "bcc": 2 / math.sqrt(3), "hcp": 1.0}
VACUUM = 6.0


def get_reference_state(symbol: str) -> dict[str, Any]:
    """Return ASE's entry of the element's crystal, with symmetry and lattice constant; empty if there is none."""
    return reference_states[atomic_numbers[symbol]] or {}


def get_nearest_distance(symbol: str) -> float:
    """Return the nearest distance in the element's crystal from ASE's table, or twice the radius for other lattices."""
    z = atomic_numbers[symbol]
    state = get_reference_state(symbol)
    if state.get("symmetry") == "fcc":
        return float(state["a"]) / np.sqrt(2)
    if state.get("symmetry") == "bcc":
        return float(state["a"]) * np.sqrt(3) / 2
    return float(state["a"]) if state.get("symmetry") == "hcp" else 2 * float(covalent_radii[z])


def build_substrate(metal: str, partner: str, n_partners: int, rng: np.random.Generator) -> tuple[Atoms, str]:
    """Return a slab of two layers of 2 x 2 atoms, `n_partners` of them of the partner metal, and its name."""
    kind = str(get_reference_state(metal).get("symmetry", "fcc"))
    facets = FACETS.get(kind, (fcc111,))
    facet = facets[int(rng.integers(len(facets)))]
    distance = get_nearest_distance(metal) * (1 - n_partners / 8) + get_nearest_distance(partner) * n_partners / 8
    lattice = distance * LATTICE_RATIOS.get(kind, LATTICE_RATIOS["fcc"])
    axis_lengths = {"c": lattice * 1.6} if facet is hcp0001 else {}
    slab = facet(metal, (2, 2, 2), a=lattice, vacuum=VACUUM, **axis_lengths)
    for site in rng.choice(len(slab), n_partners, replace=False):
        slab.symbols[site] = partner
    slab.pbc = True
    return slab, f"{slab.symbols.get_chemical_formula(mode='metal')} {facet.__name__}"


def attach_adsorbate(slab: Atoms, adsorbate: Atoms, rng: np.random.Generator) -> Atoms:
    """Place the adsorbate in a random orientation above a random point, as low as the atoms allow."""
    rotated = rotate(adsorbate, rng)
    point = rng.random(2) @ slab.cell.array[:2, :2]
    for height in np.arange(0.8, 4.0, 0.1):
        placed = slab.copy()
        add_adsorbate(placed, rotated, height, position=tuple(point))
        if compute_closest_ratio(placed) > 0.85:
            break
    return placed


def make_oc2020(count: int = 3000, frames: int = 3) -> list[Structure]:
    """Return systems of a random slab and adsorbate, several rattled frames of each."""
    result: list[Structure] = []
    names = list(ADSORBATES)
    groups = set()
    for k in range(count):
        rng = make_rng("oc2020", k)
        metal, partner = METALS[rng.integers(len(METALS))], PARTNERS[rng.integers(len(PARTNERS))]
        slab, name = build_substrate(metal, partner, int(rng.choice([0, 0, 1, 2, 4])), rng)
        adsorbate = names[rng.integers(len(names))]
        group = f"{name} + {adsorbate}"
        if group in groups:
            continue
        groups.add(group)
        system = attach_adsorbate(slab, ADSORBATES[adsorbate], rng)
        for frame, displacement in enumerate(np.linspace(0.03, 0.18, frames)):
            moved = rattle(system, rng, float(displacement))
            if compute_closest_ratio(moved) > 0.65:
                result.append(build_structure(moved, f"{group}/{frame}", group))
        if len(result) >= count:
            break
    return result[:count]
