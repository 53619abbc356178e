"""The convex hull of phases in the space of compositions, and energies above it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog  # type: ignore[import-untyped]

from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array

Composition = tuple[tuple[int, float], ...]


def find_composition(numbers: Iterable[int]) -> Composition:
    """Return (atomic number, atomic fraction) of each element, ascending."""
    counts = np.bincount(np.asarray(list(numbers), dtype=np.int64), minlength=MAX_ATOMIC_NUMBER + 1)
    return tuple((int(z), float(counts[z] / counts.sum())) for z in np.flatnonzero(counts))


@dataclass
class ConvexHull:
    """The convex hull: at each composition, the lowest energy of a mixture of reference phases.

    Attributes:
        energies: eV/atom of the most stable phase of each composition.
    """

    energies: dict[Composition, float] = field(default_factory=dict)
    _hull: dict[Composition, float | None] = field(default_factory=dict)

    def add(self, composition: Composition, energy_ev_per_atom: float) -> None:
        """Add a phase, unless a phase of the same composition has a lower energy."""
        self.energies[composition] = min(energy_ev_per_atom, self.energies.get(composition, np.inf))
        self._hull.clear()

    def compute_energy(self, composition: Composition) -> float | None:
        """Return the energy of the hull at a composition, eV/atom; None if no mixture of phases has the composition.

        Raises:
            RuntimeError: The solver has failed numerically.
        """
        if composition not in self._hull:
            self._hull[composition] = self._find_lowest_mixture(composition)
        return self._hull[composition]

    def _find_lowest_mixture(self, composition: Composition) -> float | None:
        elements = [z for z, _ in composition]
        phases = [(p, energy) for p, energy in self.energies.items() if {z for z, _ in p} <= set(elements)]
        if not phases:
            return None
        fractions: Array = np.array([[dict(p).get(z, 0.0) for p, _ in phases] for z in elements])
        target: NDArray[np.float64] = np.array([fraction for _, fraction in composition])
        result = linprog([energy for _, energy in phases], A_eq=fractions, b_eq=target, method="highs")
        if result.status not in (0, 2):  # neither solved nor infeasible
            raise RuntimeError(f"the convex hull cannot be computed: {result.message}")
        return float(result.fun) if result.success else None
