"""Cubic halide perovskites ABX3 at volumes around their equilibrium."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from harness.reference.data.structure import Structure
from tests.builders.mini_sets.geometry import build_structure
from tests.builders.task_sets.composition import subtract_composition
from tests.builders.task_sets.samples import Sample

A_SITE = ("K", "Rb", "Cs")
B_SITE = ("Mg", "Ca", "Zn", "Cd", "Ge", "Pb")
X_SITE = ("F", "Cl", "Br", "I")
SITES = ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, 0.5, 0.0), (0.5, 0.0, 0.5), (0.0, 0.5, 0.5))
SCALES = (0.88, 0.92, 0.96, 1.0, 1.04, 1.09, 1.14)  # relative to the edge at which B and X touch
REPEATS = 2  # the Gamma point of the repeated cell is equivalent to a grid of as many points along each axis
HIGHEST_EV_ATOM = 0.25  # above the lowest energy of the same composition


def build_supercells() -> list[Structure]:
    """Return each ABX3 at seven volumes, repeated to cells for which the Gamma point suffices."""
    result = []
    for a, b, x in product(A_SITE, B_SITE, X_SITE):
        edge = 2 * float(covalent_radii[atomic_numbers[b]] + covalent_radii[atomic_numbers[x]])
        for k, scale in enumerate(SCALES):
            cell = Atoms([a, b, x, x, x], scaled_positions=SITES, cell=[edge * scale] * 3, pbc=True)
            result.append(build_structure(cell.repeat(REPEATS), f"{a}{b}{x}3/{k}", f"{a}{b}{x}3"))
    return result


def select_cells(labelled: Sequence[Structure]) -> list[Sample]:
    """Return formula units with their formation energies, the residuals of a linear fit on composition, in eV/atom.

    Compositions whose lowest energy is at the smallest or largest volume are left out, as are much higher energies.
    """
    by_group: dict[str, list[Structure]] = {}
    for s in labelled:
        by_group.setdefault(s.group, []).append(s)
    cells = [unit for group in by_group.values() for unit in _select_near_best(group)]
    targets = subtract_composition(cells)
    return [Sample(replace(s, energy=None, forces=None), t) for s, t in zip(cells, targets.tolist(), strict=True)]


def _select_near_best(group: Sequence[Structure]) -> list[Structure]:
    if len(group) < len(SCALES):
        return []
    unit_cells = [_extract_unit(s) for s in group]
    per_atom = np.array([s.energy for s in unit_cells], dtype=float) / len(unit_cells[0])
    if per_atom.argmin() in (0, len(SCALES) - 1):
        return []
    return [s for s, e in zip(unit_cells, per_atom, strict=True) if e - per_atom.min() < HIGHEST_EV_ATOM]


def _extract_unit(repeated: Structure) -> Structure:
    """Return the unit cell of a repeated cell."""
    count = len(SITES)
    energy = repeated.energy
    assert energy is not None
    return replace(
        repeated,
        numbers=repeated.numbers[:count],
        positions=repeated.positions[:count],
        cell=repeated.cell / REPEATS,
        energy=energy / REPEATS**3,
        forces=None,
    )
