"""Formulas, for groups of structures that a split must not part."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.data import chemical_symbols


def formula(numbers: Any) -> str:
    """Elements with their counts by atomic number, as in H2O; conformations of a molecule share it."""
    counts = np.bincount(np.asarray(numbers, dtype=np.int64))
    present = np.flatnonzero(counts).tolist()
    return "".join(f"{_symbol(z)}{counts[z] if counts[z] > 1 else ''}" for z in present)


def _symbol(z: int) -> str:
    return str(chemical_symbols[z]) if z < len(chemical_symbols) else f"[{z}]"
