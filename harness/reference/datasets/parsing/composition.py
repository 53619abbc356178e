"""Formulas, for groups of structures that a split must not part."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.data import chemical_symbols


def formula(numbers: Any) -> str:
    """Elements with their counts by atomic number, as in H2O; conformations of a molecule share it."""
    present, counts = np.unique(np.asarray(numbers, dtype=np.int64), return_counts=True)
    pairs = zip(present.tolist(), counts.tolist(), strict=True)
    return "".join(f"{_symbol(z)}{count if count > 1 else ''}" for z, count in pairs)


def _symbol(z: int) -> str:
    return str(chemical_symbols[z]) if 0 <= z < len(chemical_symbols) else f"[{z}]"
