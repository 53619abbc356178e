"""Residuals of a fit of energies on composition, which take the place of formation energies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array, Structure


def compute_fractions(structures: Sequence[Structure]) -> Array:
    """Return the fraction of each element in each structure, [structures, elements that occur]."""
    counts = np.array([np.bincount(s.numbers, minlength=119) for s in structures], dtype=float)
    fractions: Array = counts / counts.sum(axis=1, keepdims=True)
    return fractions[:, fractions.any(axis=0)]


def subtract_composition(structures: Sequence[Structure]) -> Array:
    """Return energies per atom minus their least-squares fit on element fractions, [structures], eV/atom."""
    per_atom = np.array([s.energy for s in structures], dtype=float) / [len(s) for s in structures]
    fractions = compute_fractions(structures)
    fitted, *_ = np.linalg.lstsq(fractions, per_atom, rcond=1e-10)
    return np.asarray(per_atom - fractions @ fitted)


def find_well_covered(structures: Sequence[Structure], min_count: int) -> NDArray[np.bool_]:
    """Return a mask [structures] of structures whose elements all occur in at least `min_count` of them."""
    present = compute_fractions(structures) > 0
    is_covered = np.ones(len(structures), dtype=bool)
    while True:
        rare = present[is_covered].sum(axis=0) < min_count
        is_still_covered = is_covered & ~present[:, rare].any(axis=1)
        if is_still_covered.sum() == is_covered.sum():
            return is_covered
        is_covered = is_still_covered
