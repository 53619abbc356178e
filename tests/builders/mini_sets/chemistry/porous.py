"""Porous frameworks with and without guests (ODAC23): sodalites and metal cyanides of the Prussian-blue type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.data import atomic_numbers, covalent_radii

from harness.reference.data.structure import Structure
from tests.builders.mini_sets.geometry import (
    build_structure,
    compute_closest_ratio,
    compute_closest_ratio_between,
    make_rng,
    rattle,
    rotate,
)

# Tetrahedral atom T and, optionally, the atom that replaces one of six T and the ion that balances the charge.
SODALITES = (
    *(("Si", ()), ("Ge", ()), ("Sn", ()), ("Ti", ()), ("Zr", ()), ("Hf", ())),
    *(("Si", ("Al", "Na")), ("Si", ("Al", "K")), ("Si", ("Al", "Li")), ("Si", ("B", "Na")), ("Si", ("Ga", "K"))),
    *(("Ge", ("Al", "Rb")), ("Ge", ("Ga", "Na")), ("Si", ("Al", "Cs")), ("Si", ("Zn", "Mg")), ("Si", ("Be", "Ca"))),
)
# Further ones, so that every element is in at least three frameworks.
MORE_SODALITES = (
    *(("Sn", ("Al", "Na")), ("Sn", ("Ga", "Li")), ("Sn", ("Zn", "Ca")), ("Ti", ("Al", "K")), ("Ti", ("Ga", "Rb"))),
    *(("Ti", ("Zn", "Mg")), ("Zr", ("Al", "Rb")), ("Zr", ("B", "Cs")), ("Zr", ("Be", "Ca")), ("Hf", ("Al", "Li"))),
    *(("Hf", ("Ga", "K")), ("Hf", ("Zn", "Mg")), ("Ge", ("B", "Li")), ("Ge", ("Be", "Mg")), ("Ge", ("Zn", "Ca"))),
    *(("Si", ("Al", "Rb")), ("Si", ("Ga", "Cs")), ("Si", ("B", "K")), ("Ge", ("Al", "K")), ("Si", ("Ga", "Na"))),
)
# Octahedral metals M and M' of the bridges M-NC-M', and the ions in the cages that balance the charge.
CYANIDES = (
    *(("Zn", "Pt", ()), ("Cd", "Pt", ()), ("Mg", "Pt", ()), ("Cd", "Pd", ()), ("Zn", "Pd", ()), ("Ca", "Pt", ())),
    *(("Zn", "Fe", ("K", "K")), ("Mg", "Ru", ("Na", "Na")), ("Cd", "Os", ("K", "K")), ("Ca", "Fe", ("Na", "Na"))),
    *(("Ga", "Co", ()), ("In", "Rh", ()), ("Y", "Co", ()), ("La", "Ir", ()), ("Sc", "Co", ()), ("Al", "Co", ())),
    *(("Zn", "Ru", ("Rb", "Rb")), ("Ga", "Fe", ("K",)), ("In", "Os", ("Cs",)), ("Lu", "Rh", ()), ("Bi", "Co", ())),
)
MORE_CYANIDES = (
    *(
        ("Mg", "Pd", ()),
        ("Ca", "Pd", ()),
        ("Zn", "Os", ("Na", "Na")),
        ("Mg", "Fe", ("Rb", "Rb")),
        ("Ca", "Ru", ("K", "K")),
    ),
    *(("Cd", "Fe", ("Cs", "Cs")), ("Mg", "Os", ("K", "K")), ("Cd", "Ru", ("Na", "Na")), ("Ca", "Os", ("Rb", "Rb"))),
    *(("Ga", "Rh", ()), ("Ga", "Ir", ()), ("In", "Co", ()), ("In", "Ir", ()), ("Y", "Rh", ()), ("Y", "Ir", ())),
    *(("La", "Co", ()), ("La", "Rh", ()), ("Sc", "Rh", ()), ("Sc", "Ir", ()), ("Al", "Rh", ()), ("Al", "Ir", ())),
    *(
        ("Lu", "Co", ()),
        ("Lu", "Ir", ()),
        ("Bi", "Rh", ()),
        ("Bi", "Ir", ()),
        ("In", "Fe", ("K",)),
        ("Y", "Ru", ("Na",)),
    ),
    *(("La", "Os", ("Rb",)), ("Sc", "Fe", ("Na",)), ("Al", "Ru", ("K",)), ("Lu", "Os", ("Cs",)), ("Bi", "Fe", ("Rb",))),
)
GUESTS = (("CO2",), ("H2O",), ("CO2",), ("H2O", "H2O"), ("CO2", "H2O"), ("N2",), ("CH4",), ("NH3",), ("CO",), ())
BRIDGE_DEGREES = 150.0
CLEARANCE = 1.15


def _radius(symbol: str) -> float:
    return float(covalent_radii[atomic_numbers[symbol]])


def build_sodalite(centre: str, substitution: tuple[str, ...]) -> Atoms:
    """Return the primitive cell of TO2 sodalite, with 6 T and 12 O; one T may be replaced, with a counterion."""
    length = 0.92 * (_radius(centre) + _radius("O"))
    half = np.radians(BRIDGE_DEGREES / 2)
    side = 8 / np.sqrt(2) * length * np.sin(half)
    t_sites = np.array([(1, 2, 0), (3, 2, 0), (0, 1, 2), (0, 3, 2), (2, 0, 1), (2, 0, 3)]) / 4
    t_sites = np.concatenate([t_sites, (t_sites + 0.5) % 1])
    ring_centres = np.array([(2, 2, 0), (2, 0, 2), (0, 2, 2), (0, 0, 2), (2, 0, 0), (0, 2, 0)]) / 4
    oxygens = []
    for i, first in enumerate(t_sites):
        for second in t_sites[i + 1 :]:
            step = (second - first + 0.5) % 1 - 0.5
            if np.isclose(np.linalg.norm(step), np.sqrt(2) / 4):
                middle = first + step / 2
                # the bridge bends away from the centre of its ring of four T
                outward = min(((middle - r + 0.5) % 1 - 0.5 for r in ring_centres), key=np.linalg.norm)
                oxygens.append(middle + outward / np.linalg.norm(outward) * length * np.cos(half) / side)
    conventional = Atoms(
        [centre] * 12 + ["O"] * len(oxygens),
        scaled_positions=np.concatenate([t_sites, oxygens]) % 1,
        cell=[side] * 3,
        pbc=True,
    )
    cell = side / 2 * np.array([(-1, 1, 1), (1, -1, 1), (1, 1, -1)])
    result = Atoms(cell=cell, pbc=True)
    for atom in conventional:
        trial = result + Atoms([atom.symbol], [atom.position], cell=cell, pbc=True)
        if len(result) == 0 or trial.get_distances(-1, range(len(result)), mic=True).min() > 0.1:
            result = trial
    if substitution:
        result.symbols[0] = substitution[0]
        result = add_guest(result, Atoms(substitution[1]), make_rng(centre, *substitution), clearance=0.9) or result
    return result


def build_cyanide(outer: str, inner: str, ions: tuple[str, ...]) -> Atoms:
    """Return the primitive cell of cubic M(NC)6M' with ions in the centres of its cages."""
    to_carbon, to_nitrogen, triple = 0.93 * (_radius(inner) + _radius("C")), 0.93 * (_radius(outer) + 0.71), 1.16
    half = to_carbon + triple + to_nitrogen
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    cell = half * np.array([(0, 1, 1), (1, 0, 1), (1, 1, 0)])
    positions = [np.zeros((1, 3)), half * np.eye(3)[:1], to_carbon * axes, (to_carbon + triple) * axes]
    cages = half * np.array([(0.5, 0.5, 0.5), (1.5, 0.5, 0.5)])[: len(ions)]
    symbols = [inner, outer, *["C"] * 6, *["N"] * 6, *ions]
    return Atoms(symbols, np.concatenate([*positions, cages]), cell=cell, pbc=True)


def add_guest(framework: Atoms, guest: Atoms, rng: np.random.Generator, clearance: float = CLEARANCE) -> Atoms | None:
    """Place the guest with the most room of 150 random positions and orientations; return None if none has enough."""
    best, best_ratio = None, clearance
    for _ in range(150):
        rotated = rotate(guest, rng)
        rotated.positions += rng.random(3) @ framework.cell.array
        ratio = compute_closest_ratio_between(framework, rotated)
        if ratio > best_ratio:
            best, best_ratio = framework + rotated, ratio
    return best


def build_frameworks(
    sodalites: Sequence[tuple[str, tuple[str, ...]]], cyanides: Sequence[tuple[str, str, tuple[str, ...]]]
) -> dict[str, Atoms]:
    """Return frameworks by name."""
    result = {
        " ".join((centre, *substitution, "sodalite")): build_sodalite(centre, substitution)
        for centre, substitution in sodalites
    }
    return result | {" ".join((a, b, *ions, "cyanide")): build_cyanide(a, b, ions) for a, b, ions in cyanides}


def fill_frameworks(frameworks: dict[str, Atoms], fillings: Iterable[int]) -> list[Structure]:
    """Return each framework with sets of guests, rattled; sets without enough room are left out.

    Args:
        frameworks: Frameworks by name.
        fillings: Positions in the guests, which are repeated with larger displacements.
    """
    result: list[Structure] = []
    for (name, empty), k in product(frameworks.items(), fillings):
        rng = make_rng("odac23", name, k)
        guests = GUESTS[k % len(GUESTS)]
        framework: Atoms | None = empty
        for guest in guests:
            framework = None if framework is None else add_guest(framework, molecule(guest), rng)
        if framework is None:
            continue
        moved = rattle(framework, rng, (0.03, 0.08)[k // len(GUESTS)])
        if compute_closest_ratio(moved) > 0.65:
            result.append(build_structure(moved, f"{name} + {' '.join(guests) or 'empty'}/{k}", name))
    return result


def make_odac23(count: int = 480) -> list[Structure]:
    """Return `count` structures of the first frameworks, and a few of each further framework."""
    result = fill_frameworks(build_frameworks(SODALITES, CYANIDES), range(2 * len(GUESTS)))
    selected = np.linspace(0, len(result) - 1, min(count, len(result))).round().astype(int)
    more = fill_frameworks(build_frameworks(MORE_SODALITES, MORE_CYANIDES), range(0, 2 * len(GUESTS), 4))
    return [*(result[k] for k in selected), *more]
