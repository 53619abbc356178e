"""Energy of kinds of work that take turns too quickly to be told apart sample by sample.

Of each interval between samples it is known how many seconds each kind had, and the energy; least squares over all
intervals give the power of each kind and its variance. Kinds that have the same share of every interval cannot be told
apart: then the variance says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.telemetry.cumulative import Curve
from harness.telemetry.timeseries import Floats
from harness.telemetry.windows import Window

# Intervals beyond the number of kinds, without which a residual says nothing.
LEAST_SPARE = 5


@dataclass(frozen=True)
class Turns:
    """Windows that took turns in one case: their numbers among all windows, and when each had its turns."""

    windows: NDArray[np.int64]
    edges: list[tuple[Floats, Floats]]
    seconds: Floats


def turns_of(windows: Sequence[Window]) -> Iterator[Turns]:
    """Those that come in several pieces, by case and kind."""
    groups: dict[tuple[str, str], list[int]] = {}
    for k, window in enumerate(windows):
        if len(window.pieces) > 1:
            groups.setdefault((window.folder, window.what), []).append(k)
    for numbers in groups.values():
        own = [windows[k] for k in numbers]
        yield Turns(np.array(numbers), [_edges(w) for w in own], np.array([w.seconds for w in own]))


def apportioned(turns: Turns, curve: Curve) -> tuple[Floats, Floats]:
    """Energy of each window, and its variance; NaN where the samples do not suffice."""
    begin, end = min(t[0] for t, _ in turns.edges), max(t[-1] for t, _ in turns.edges)
    nothing = np.full(len(turns.seconds), np.nan)
    steps = np.diff(curve.times)
    inside = (curve.times[:-1] >= begin) & (curve.times[1:] <= end) & (np.diff(curve.covered) > 0)
    if inside.sum() < len(turns.seconds) + 1 + LEAST_SPARE:
        return nothing, nothing
    had = np.stack([np.diff(np.interp(curve.times, *edges)) for edges in turns.edges], axis=1)[inside]
    rest = steps[inside] - had.sum(axis=1)
    design = np.column_stack([had, rest]) if (rest > 1e-3 * steps[inside]).any() else had
    energy = np.diff(curve.total)[inside]
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return nothing, nothing
    power, *_ = np.linalg.lstsq(design, energy, rcond=None)
    spare = len(energy) - design.shape[1]
    scatter = float(((energy - design @ power) ** 2).sum()) / spare
    variance = scatter * np.diag(np.linalg.inv(design.T @ design))
    kinds = slice(0, len(turns.seconds))
    return power[kinds] * turns.seconds, variance[kinds] * turns.seconds**2


def _edges(window: Window) -> tuple[Floats, Floats]:
    """Times, and how many seconds the window has had by then."""
    pieces = np.array(sorted(window.pieces))
    lengths = np.maximum(pieces[:, 1] - pieces[:, 0], 0.0)
    had = np.concatenate([[0.0], np.cumsum(lengths)])
    return pieces.reshape(-1), np.column_stack([had[:-1], had[1:]]).reshape(-1)
