"""Where exactly a step stands, once it is known that there is one."""

from __future__ import annotations

import numpy as np

from harness.stats.ranks import Floats

GOES = 3
EQUAL = 1e-9


def on_a_scale(values: Floats) -> Floats:
    """Logarithms, where all values are positive: noise and steps are in proportion to what is measured."""
    return np.log(values) if np.all(np.isnan(values) | (values > 0)) else values


def placed(y: Floats, start: int) -> int:
    """The first place of the second of two levels in y (rounds, n), from a guess by ranks.

    Ranks know the order of values and not the gap between two levels, and so may give the lowest of the upper level to
    the lower. The place is where absolute deviations from the medians of the two levels add up to the least, a round at
    a time (Bai, Econometric Theory 11, 403, 1995), and medians are taken again until it stays. Of equals, the one next
    to the guess: beyond both medians all values deviate equally.
    """
    y = y[~(np.isnan(y[:, :start]).all(axis=1) | np.isnan(y[:, start:]).all(axis=1))]
    for _ in range(GOES):
        first, second = (np.nanmedian(side, axis=1, keepdims=True) for side in (y[:, :start], y[:, start:]))
        gain = np.cumsum(np.nansum(np.abs(y - second) - np.abs(y - first), axis=0))[:-1]
        likeliest = np.flatnonzero(gain >= gain.max() - EQUAL * np.abs(gain).max()) + 1
        best = int(likeliest[np.abs(likeliest - start).argmin()])
        if best == start:
            break
        start = best
    return start
