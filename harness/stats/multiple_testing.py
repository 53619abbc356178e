"""Many tests at once: p values adjusted for their number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from harness.stats.ranks import Floats


def holm(p_values: ArrayLike) -> Floats:
    """Adjusted p of many tests, any of which may be wrong with at most the level chosen; NaN stays and counts for none.

    Source: Holm, Scand. J. Statist. 6, 65 (1979).
    """
    return _adjusted(p_values, lambda ordered: np.maximum.accumulate(ordered * np.arange(len(ordered), 0, -1)))


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """Adjusted p of many tests, so that of those below a level at most that share is wrong; NaN stays, counts for none.

    Source: Benjamini and Hochberg, J. R. Statist. Soc. B 57, 289 (1995).
    """

    def adjust(ordered: Floats) -> Floats:
        scaled = ordered * len(ordered) / np.arange(1, len(ordered) + 1)
        return np.minimum.accumulate(scaled[::-1])[::-1]

    return _adjusted(p_values, adjust)


def _adjusted(p_values: ArrayLike, adjust: Callable[[Floats], Floats]) -> Floats:
    """The values in ascending order through adjust, back in their own order, at most 1."""
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested])]
    adjusted[order] = np.minimum(adjust(p[order]), 1.0)
    return adjusted
