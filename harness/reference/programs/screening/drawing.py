"""Projections of crystals onto a plane, from which the report draws them."""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from ase.utils import rotate
from numpy.typing import NDArray

from harness.protocol.programs.assessment import StructureDrawing
from harness.reference.data.structure import Array, Structure
from harness.reference.programs.screening.symmetry import standardize

VIEW = "-20z,-78x"  # from slightly above, with the third lattice vector upwards
RADIUS = 0.55  # radius of a drawn atom divided by its covalent radius
BOUNDARY = 0.02  # atoms closer to the boundary of the cell are repeated on the other side, as a fraction of the cell
CORNERS = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1)])


def draw_structure(candidate: int, structure: Structure) -> StructureDrawing:
    """Return the projection of the conventional cell of a crystal, or of its own cell if spglib finds no symmetry."""
    cell, fractions, numbers = standardize(structure)
    fractions, numbers = repeat_boundary(fractions, numbers)
    rotation = rotate(VIEW)
    points, corners = fractions @ cell @ rotation, CORNERS @ cell @ rotation
    order = np.argsort(points[:, 2])
    points, numbers = points[order].round(3), numbers[order]
    return StructureDrawing(
        candidate=candidate,
        x=points[:, 0].tolist(),
        y=points[:, 1].tolist(),
        radius=(RADIUS * covalent_radii[numbers]).round(3).tolist(),
        colour=["#" + "".join(f"{round(255 * c):02x}" for c in jmol_colors[z]) for z in numbers],
        element=[chemical_symbols[z] for z in numbers],
        cell_x=corners[:, 0].round(3).tolist(),
        cell_y=corners[:, 1].round(3).tolist(),
    )


def repeat_boundary(fractions: Array, numbers: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
    """Repeat atoms at a boundary of the cell on the opposite boundary."""
    fractions = np.where(fractions > 1.0 - BOUNDARY, fractions - 1.0, fractions)
    for axis in range(3):
        at_boundary = fractions[:, axis] < BOUNDARY
        images = fractions[at_boundary] + np.eye(3)[axis]
        fractions, numbers = np.concatenate([fractions, images]), np.concatenate([numbers, numbers[at_boundary]])
    return fractions, numbers
