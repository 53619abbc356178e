"""Thin oxide slabs, bare or with an adsorbate that leaves every electron paired (OC2022)."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import add_vacuum, surface
from ase.spacegroup import crystal

from harness.reference.data.structure import Structure
from tests.builders.mini_sets.geometry import build_structure, compute_closest_ratio, make_rng, rattle

# Lattice constants in angstrom, rounded from experiment; the cations have no unpaired electrons.
ROCKSALT = {"Mg": 4.21, "Ca": 4.81, "Sr": 5.16, "Ba": 5.54, "Cd": 4.70}
RUTILE = {"Ti": (4.59, 2.96), "Sn": (4.74, 3.19), "Ge": (4.40, 2.86), "Pb": (4.96, 3.39), "Ru": (4.49, 3.11)}
FLUORITE = {"Zr": 5.09, "Hf": 5.08}
PEROVSKITE = {
    **{("Sr", "Ti"): 3.91, ("Ba", "Ti"): 4.01, ("Ba", "Zr"): 4.19, ("K", "Ta"): 3.99, ("K", "Nb"): 4.02},
    **{("Ba", "Sn"): 4.12, ("Sr", "Hf"): 4.07, ("Na", "Nb"): 3.93, ("La", "Al"): 3.79, ("Cs", "Ta"): 4.10},
}
WURTZITE = {"Zn": (3.25, 5.21), "Be": (2.70, 4.38)}
# Symbols, height of the first atom above a cation, and offsets of the atoms from there, in angstrom.
ADSORBATES: dict[str, tuple[str, float, list[tuple[float, float, float]]]] = {
    "O": ("O", 1.8, [(0.0, 0.0, 0.0)]),
    "H2O": ("OH2", 2.2, [(0.0, 0.0, 0.0), (0.76, 0.1, 0.59), (-0.76, 0.1, 0.59)]),
    "OH+H": ("OH", 1.95, [(0.0, 0.0, 0.0), (0.5, 0.1, 0.83)]),
    "CO": ("CO", 2.2, [(0.0, 0.0, 0.0), (0.1, 0.0, 1.14)]),
    "H2": ("H2", 2.1, [(0.0, 0.0, 0.0), (0.74, 0.0, 0.05)]),
}
VACUUM = 7.0


def build_rocksalt_100(metal: str, a: float) -> Atoms:
    """Return two layers of the primitive square cell."""
    side, step = a / np.sqrt(2), a / 2
    corner, centre = (0.0, 0.0), (side / 2, side / 2)
    positions = [(*corner, 0.0), (*centre, 0.0), (*centre, step), (*corner, step)]
    return Atoms([metal, "O", metal, "O"], positions, cell=[side, side, 2 * step], pbc=True)


def cut_slab(bulk: Atoms, plane: tuple[int, int, int], layers: int) -> Atoms:
    """Return a slab of whole bulk layers, without vacuum."""
    return surface(bulk, plane, layers, vacuum=None, periodic=True)


def build_rutile_001(metal: str, a: float, c: float) -> Atoms:
    """Return a slab of one bulk cell: two square layers."""
    bulk = crystal([metal, "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[a, a, c, 90, 90, 90])
    return cut_slab(bulk, (0, 0, 1), 1)


def build_fluorite_111(metal: str, a: float) -> Atoms:
    """Return two O-M-O trilayers of the hexagonal cell."""
    bulk = crystal([metal, "O"], [(0, 0, 0), (0.25, 0.25, 0.25)], spacegroup=225, cellpar=[a] * 3 + [90] * 3)
    primitive = crystal(
        [metal, "O"], [(0, 0, 0), (0.25, 0.25, 0.25)], spacegroup=225, cellpar=[a] * 3 + [90] * 3, primitive_cell=True
    )
    return cut_slab(primitive if len(primitive) < len(bulk) else bulk, (1, 1, 1), 2)


def build_perovskite_100(a_site: str, b_site: str, a: float) -> Atoms:
    """Return a slab of one bulk cell: an AO and a BO2 layer."""
    positions = [(0, 0, 0), (0.5, 0.5, 0), (0.5, 0.5, 0.5), (0, 0.5, 0.5), (0.5, 0, 0.5)]
    return Atoms([a_site, "O", b_site, "O", "O"], np.array(positions) * a, cell=[a] * 3, pbc=True)


def build_wurtzite_100(metal: str, a: float, c: float) -> Atoms:
    """Return the non-polar surface, one bulk cell thick."""
    positions = [(1 / 3, 2 / 3, 0), (1 / 3, 2 / 3, 0.382)]
    bulk = crystal([metal, "O"], positions, spacegroup=186, cellpar=[a, a, c, 90, 90, 120])
    return cut_slab(bulk, (1, 0, 0), 1)


def build_slabs() -> dict[str, Atoms]:
    """Return every oxide surface by name, with vacuum along the third axis."""
    result = {f"{m}O rocksalt100": build_rocksalt_100(m, a) for m, a in ROCKSALT.items()}
    result |= {f"{m}O2 rutile001": build_rutile_001(m, *ac) for m, ac in RUTILE.items()}
    result |= {f"{m}O2 fluorite111": build_fluorite_111(m, a) for m, a in FLUORITE.items()}
    result |= {f"{a}{b}O3 perovskite100": build_perovskite_100(a, b, side) for (a, b), side in PEROVSKITE.items()}
    result |= {f"{m}O wurtzite100": build_wurtzite_100(m, *ac) for m, ac in WURTZITE.items()}
    for slab in result.values():
        slab.set_cell(np.vstack([slab.cell.array[:2], [0, 0, slab.cell.array[2, 2]]]))
        add_vacuum(slab, VACUUM)
        slab.pbc = True
    return result


def add_adsorbate(slab: Atoms, name: str) -> Atoms:
    """Place the adsorbate above the topmost cation, and the H of dissociated water on the topmost oxygen."""
    placed = slab.copy()
    if name == "bare":
        return placed
    heights = slab.positions[:, 2]
    cation = max((k for k, s in enumerate(slab.symbols) if s != "O"), key=lambda k: heights[k])
    oxygen = max((k for k, s in enumerate(slab.symbols) if s == "O"), key=lambda k: heights[k])
    symbols, height, offsets = ADSORBATES[name]
    depth = float(heights.max() - heights[cation])
    site = slab.positions[cation] + np.array([0.1, 0.0, height + depth / 2])
    placed += Atoms(symbols, site + np.array(offsets))
    if name == "OH+H":
        placed += Atoms("H", [slab.positions[oxygen] + np.array([0.0, 0.1, 0.98])])
    return placed


def make_oc2022(count: int = 98) -> list[Structure]:
    """Return each oxide, bare and with each adsorbate, rattled."""
    result: list[Structure] = []
    surfaces = build_slabs()
    for k in range(count):
        for name, slab in surfaces.items():
            for adsorbate in ("bare", *ADSORBATES):
                group = f"{name} + {adsorbate}"
                moved = rattle(add_adsorbate(slab, adsorbate), make_rng(group, k), (0.06, 0.12, 0.18)[k % 3])
                if compute_closest_ratio(moved) > 0.65:
                    result.append(build_structure(moved, f"{group}/{k}", group))
        if len(result) >= count:
            break
    return result[:count]
