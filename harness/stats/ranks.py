"""Midranks of many rows at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def midranks(rows: Floats) -> Floats:
    """Ranks from 1 within each row of (m, n); equal values share the mean of their ranks."""
    order, first, last = runs_of_equals(rows)
    found = np.empty(rows.shape)
    np.put_along_axis(found, order, (first + last) / 2 + 1, axis=1)
    return found


def runs_of_equals(rows: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """The order of each row of (m, n), and for each place in that order the first and last place of equal values."""
    order = np.argsort(rows, axis=1)
    ordered = np.take_along_axis(rows, order, axis=1)
    n = rows.shape[1]
    places = np.broadcast_to(np.arange(n), rows.shape)
    differs = ordered[:, 1:] != ordered[:, :-1]
    edge = np.ones((len(rows), 1), dtype=bool)
    first = np.maximum.accumulate(np.where(np.hstack([edge, differs]), places, 0), axis=1)
    ends = np.where(np.hstack([differs, edge]), places, n)
    last = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    return order, first, last
