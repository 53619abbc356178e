"""What the composition alone does not explain of an energy: a formation energy where elements' own are not at hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array, Structure


def compute_fractions(structures: Sequence[Structure]) -> Array:
    """The share of each element in each structure, [s, elements that occur]."""
    counts = np.array([np.bincount(s.numbers, minlength=119) for s in structures], dtype=float)
    shares: Array = counts / counts.sum(axis=1, keepdims=True)
    return shares[:, shares.any(axis=0)]


def subtract_composition(structures: Sequence[Structure]) -> Array:
    """Energies per atom less their least-squares fit by element shares, [s], eV/atom."""
    per_atom = np.array([s.energy for s in structures], dtype=float) / [len(s) for s in structures]
    shares = compute_fractions(structures)
    fitted, *_ = np.linalg.lstsq(shares, per_atom, rcond=1e-10)
    return np.asarray(per_atom - shares @ fitted)


def find_well_covered(structures: Sequence[Structure], least: int) -> NDArray[np.bool_]:
    """Which structures have only elements that at least so many of those left have, [s]."""
    present = compute_fractions(structures) > 0
    kept = np.ones(len(structures), dtype=bool)
    while True:
        rare = present[kept].sum(axis=0) < least
        still = kept & ~present[:, rare].any(axis=1)
        if still.sum() == kept.sum():
            return kept
        kept = still
