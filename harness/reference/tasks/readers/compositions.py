"""Reduced formulas: crystals of one composition, in whatever cell, are one group."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from harness.reference.datasets.parsing.composition import formula


def reduced(numbers: Any) -> str:
    """The formula in lowest terms, by atomic number."""
    counts = np.bincount(np.asarray(numbers, dtype=np.int64))
    common = math.gcd(*counts.tolist())
    return formula(np.repeat(np.arange(len(counts)), counts // max(common, 1)))
