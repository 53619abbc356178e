"""The order of candidates, best first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array

# A candidate that is lower by more is more likely an error of the model than a discovery.
SUSPICIOUS_EV_PER_ATOM = -0.5


def find_suspicious(energy_above_hull: Array) -> NDArray[np.bool_]:
    """Return which candidates are too far below the hull to be believed, [k]; NaN is not suspicious."""
    return np.asarray(energy_above_hull < SUSPICIOUS_EV_PER_ATOM)


def rank(energy_above_hull: Array) -> NDArray[np.int64]:
    """Return the order of candidates, best first, [k].

    The candidates that are not suspicious come first, by energy above the hull; then the others, and at the end those
    without an energy. Equal candidates keep their order.

    Args:
        energy_above_hull: [k] eV/atom; NaN if it is unknown.
    """
    is_suspicious = find_suspicious(energy_above_hull)
    order: NDArray[np.int64] = np.lexsort((energy_above_hull, is_suspicious, np.isnan(energy_above_hull)))
    return order
