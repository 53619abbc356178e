"""Space groups and conventional cells of crystals by spglib (Togo et al., Sci. Technol. Adv. Mater. Meth. 4, 2024)."""

from __future__ import annotations

from typing import Any

import numpy as np
import spglib
from numpy.typing import NDArray

from harness.reference.data.structure import Array, Structure

TOLERANCE_ANGSTROM = 0.1


def find_spacegroup(structure: Structure) -> str | None:
    """Return the international symbol of the space group; None if the structure is no crystal, or spglib finds none."""
    if not all(structure.periodic):
        return None
    try:
        dataset = spglib.get_symmetry_dataset(_to_cell(structure), symprec=TOLERANCE_ANGSTROM)
    except spglib.SpglibError:
        return None
    return None if dataset is None else str(dataset.international)


def standardize(structure: Structure) -> tuple[Array, Array, NDArray[np.int64]]:
    """Return the vectors, fractional coordinates and atomic numbers of the conventional cell of a crystal.

    If spglib finds no symmetry, they are those of the cell of the structure.
    """
    cell = _to_cell(structure)
    try:
        standard = spglib.standardize_cell(cell, symprec=TOLERANCE_ANGSTROM)
    except spglib.SpglibError:
        standard = None
    vectors, fractions, numbers = standard or cell
    return np.asarray(vectors), np.asarray(fractions) % 1.0, np.asarray(numbers, dtype=np.int64)


def _to_cell(structure: Structure) -> tuple[Any, Any, Any]:
    fractions = structure.positions @ np.linalg.inv(structure.cell)
    return structure.cell.tolist(), fractions.tolist(), structure.numbers.tolist()
