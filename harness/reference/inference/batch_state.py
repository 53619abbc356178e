"""The coordinates and velocities of the structures of a batch, for relaxation and molecular dynamics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.reference.data.structure import Array

CELL_ROWS = 3  # rows of coordinates of a cell, after those of the atoms


@dataclass(frozen=True)
class BatchState:
    """The state of g structures with m rows of three coordinates.

    The rows of a structure with n atoms are consecutive: the n positions in the initial cell, and the matrix logarithm
    of the deformation gradient times n. The last two columns are the optimizer's; dynamics do not use them.

    Attributes:
        coordinates: [m, 3] angstrom.
        velocity: [m, 3] of the coordinates, in ASE's units in dynamics and for unit masses in relaxations.
        steps: [g] number of steps.
        time_step: [g] in ASE's units.
        initial_energy: [g] eV, the potential energy before the first step; NaN until it is known.
        mixing: [g] the share of the force's direction that is mixed into the velocity.
        downhill: [g] number of steps since the force last opposed the velocity.
    """

    coordinates: Array
    velocity: Array
    steps: NDArray[np.int64]
    time_step: Array
    initial_energy: Array
    mixing: Array
    downhill: NDArray[np.int64]

    @classmethod
    def start(
        cls,
        coordinates: Array,
        *,
        time_step: float,
        velocity: Array | None = None,
        mixing: float = 0.0,
        systems: int = 1,
    ) -> BatchState:
        """Return the state of systems before their first step; by default, they are at rest."""
        return cls(
            coordinates=coordinates,
            velocity=np.zeros_like(coordinates) if velocity is None else velocity,
            steps=np.zeros(systems, dtype=np.int64),
            time_step=np.full(systems, time_step),
            initial_energy=np.full(systems, np.nan),
            mixing=np.full(systems, mixing),
            downhill=np.zeros(systems, dtype=np.int64),
        )

    @classmethod
    def empty(cls) -> BatchState:
        """Return the state of no structure."""
        return cls.start(np.zeros((0, 3)), time_step=0.0, systems=0)

    @classmethod
    def join(cls, states: Sequence[BatchState]) -> BatchState:
        """Return the state of the structures of all states."""
        return cls(**{field.name: np.concatenate([getattr(s, field.name) for s in states]) for field in fields(cls)})

    def select(self, structures: NDArray[np.bool_], owner: NDArray[np.int64]) -> BatchState:
        """Return the state of the selected structures, a mask [g]; `owner` [m] is the structure of each row."""
        rows = structures[owner]
        return BatchState(**{n: a[rows if n in ("coordinates", "velocity") else structures] for n, a in self._list()})

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the columns by name, as in a sealed file."""
        return {name: torch.from_numpy(values) for name, values in self._list()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> BatchState:
        """Return the state with the columns of `to_tensors`."""
        return cls(**{name: values.numpy() for name, values in tensors.items()})

    def _list(self) -> list[tuple[str, NDArray[Any]]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


def extend_positions(positions: Array) -> Array:
    """Return the coordinates [n + 3, 3] of a structure whose cell is not deformed."""
    return np.concatenate([positions, np.zeros((CELL_ROWS, 3))])
