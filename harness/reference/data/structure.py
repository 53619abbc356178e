"""An atomistic structure with its labels, and the check of its values."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from harness.reference.errors import InputError

MAX_ATOMIC_NUMBER = 118
# The thickness of a cell along its periodic directions: in a thinner cell, the images of an atom nearly coincide.
MIN_THICKNESS_ANGSTROM = 0.1
# Larger values lose precision, or make neighbour lists overflow.
MAX_POSITION_ANGSTROM, MAX_CELL_ANGSTROM = 1e6, 1e5
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Structure:
    """Atoms in a box (or in vacuum) and their labels.

    Attributes:
        name: The name that messages to users show.
        numbers: [n] atomic numbers.
        positions: [n, 3] angstrom.
        cell: [3, 3] angstrom; rows are lattice vectors.
        periodic: Whether the structure is periodic along each lattice vector.
        head: Index in HEADS of the dataset that the structure belongs to, -1 if there is none.
        energy: eV; None if the structure has no such label.
        forces: [n, 3] eV/angstrom, or None.
        stress: [3, 3] eV/angstrom^3, or None; tension is positive.
        charge: Elementary charges.
        multiplicity: 2S + 1, 0 if it is unknown.
        group: Name of the group; all structures of a group are in the same split.
    """

    name: str
    numbers: NDArray[np.int64]
    positions: Array
    cell: Array = field(default_factory=lambda: np.zeros((3, 3)))
    periodic: tuple[bool, bool, bool] = (False, False, False)
    head: int = -1
    energy: float | None = None
    forces: Array | None = None
    stress: Array | None = None
    charge: int = 0
    multiplicity: int = 0
    group: str = ""

    def __len__(self) -> int:
        return len(self.numbers)

    def check(self) -> Structure:
        """Check shapes and values, and return self.

        Raises:
            InputError: The structure is unusable; the message gives its name and the first problem.
        """
        n = len(self.numbers)
        if n == 0:
            raise InputError(f"structure {self.name!r} has no atoms")
        if self.positions.shape != (n, 3):
            raise InputError(f"structure {self.name!r}: positions have shape {self.positions.shape}, expected ({n}, 3)")
        if not np.isfinite(self.positions).all():
            atom = int(np.flatnonzero(~np.isfinite(self.positions).all(axis=1))[0])
            raise InputError(f"structure {self.name!r}: position of atom {atom} is not finite")
        if np.abs(self.positions).max() > MAX_POSITION_ANGSTROM:
            atom = int(np.abs(self.positions).max(axis=1).argmax())
            raise InputError(
                f"structure {self.name!r}: atom {atom} is further than {MAX_POSITION_ANGSTROM:g} angstrom from the"
                " origin"
            )
        outside = (self.numbers < 1) | (self.numbers > MAX_ATOMIC_NUMBER)
        if outside.any():
            raise InputError(
                f"structure {self.name!r}: {self.numbers[outside][0]} is not an atomic number (1..{MAX_ATOMIC_NUMBER})"
            )
        if self.cell.shape != (3, 3) or not np.isfinite(self.cell).all():
            raise InputError(f"structure {self.name!r}: the cell is not a finite 3x3 matrix")
        if np.abs(self.cell).max() > MAX_CELL_ANGSTROM:
            raise InputError(f"structure {self.name!r}: its cell is longer than {MAX_CELL_ANGSTROM:g} angstrom")
        vectors = self.cell[list(self.periodic)]
        if len(vectors) and np.linalg.svd(vectors, compute_uv=False)[-1] < MIN_THICKNESS_ANGSTROM:
            raise InputError(f"structure {self.name!r}: its lattice vectors are too short or nearly parallel")
        if self.forces is not None and self.forces.shape != (n, 3):
            raise InputError(f"structure {self.name!r}: forces have shape {self.forces.shape}, expected ({n}, 3)")
        return self
