"""Residuals of a fit of energies on composition, in place of formation energies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array, Structure


def compute_fractions(structures: Sequence[Structure]) -> Array:
    """Return the share of each element in each structure, [s, elements that occur]."""
    counts = np.array([np.bincount(s.numbers, minlength=119) for s in structures], dtype=float)
    shares: Array = counts / counts.sum(axis=1, keepdims=True)
    return shares[:, shares.any(axis=0)]


def subtract_composition(structures: Sequence[Structure]) -> Array:
    """Return energies per atom minus their least-squares fit by element shares, [s], eV/atom."""
    per_atom = np.array([s.energy for s in structures], dtype=float) / [len(s) for s in structures]
    shares = compute_fractions(structures)
    fitted, *_ = np.linalg.lstsq(shares, per_atom, rcond=1e-10)
    return np.asarray(per_atom - shares @ fitted)


def find_well_covered(structures: Sequence[Structure], least: int) -> NDArray[np.bool_]:
    """Return a mask of the structures, [s], whose elements all occur in at least `least` of those selected."""
    present = compute_fractions(structures) > 0
    is_covered = np.ones(len(structures), dtype=bool)
    while True:
        rare = present[is_covered].sum(axis=0) < least
        is_still_covered = is_covered & ~present[:, rare].any(axis=1)
        if is_still_covered.sum() == is_covered.sum():
            return is_covered
        is_covered = is_still_covered
