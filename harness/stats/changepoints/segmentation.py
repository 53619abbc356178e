"""Binary segmentation: split series where a detector reports steps, repeat for each segment, test all steps again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from harness.stats import Floats

ONE_STEP_SHARE = 0.8  # share of alpha for the scan for one step; the rest is for the scan for two steps
MAX_MOVES = 6  # number of iterations that move steps, those with odd and with even index in turn
MAX_REFINEMENTS = 3
RELATIVE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Detection:
    """The likeliest starts of new levels in a segment, and the p value of the hypothesis that it has no step."""

    p: float = 1.0
    starts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Step:
    """A significant step.

    Attributes:
        start: Index of the first value of the new level.
        p: p value of the step between its neighbours.
        before: The values of the level before the step.
        after: The values of the level after the step.
    """

    start: int
    p: float
    before: slice
    after: slice


# A function that returns one detection for each segment, an array with commits along its last axis; the flag says
# whether to search for two steps at once too.
Detector = Callable[[Sequence[Floats], bool], list[Detection]]


def combine_detections(one_step: Detection, two_steps: Detection) -> Detection:
    """Return the more significant of two detections, with a p value that is Bonferroni-corrected with weights."""
    p_one_step, p_two_steps = one_step.p / ONE_STEP_SHARE, two_steps.p / (1 - ONE_STEP_SHARE)
    return (
        Detection(min(p_one_step, 1.0), one_step.starts)
        if p_one_step <= p_two_steps
        else Detection(min(p_two_steps, 1.0), two_steps.starts)
    )


def segment(series: Sequence[Floats], detect: Detector, alpha: float) -> list[list[Step]]:
    """Return the steps of each series (..., n) in order; series may differ in n.

    Every step is at the likeliest index between its two neighbours and is significant there; other steps are removed
    one by one, the weakest first. The final index depends on the values themselves, not on their ranks.
    """
    starts: list[list[int]] = [[] for _ in series]
    queue = [(i, 0, s.shape[-1]) for i, s in enumerate(series)]
    while queue:
        detections = detect([series[i][..., low:high] for i, low, high in queue], True)
        segments = []
        for (i, low, high), detection in zip(queue, detections, strict=True):
            if detection.p <= alpha:
                new = [low + start for start in detection.starts]
                starts[i] += new
                segments += [(i, a, b) for a, b in pairwise([low, *new, high])]
        queue = segments
    return _prune_and_move(series, [sorted(s) for s in starts], detect, alpha)


def log_if_positive(values: Floats) -> Floats:
    """Return the logarithms if all values are positive, since noise and steps are proportional to positive values."""
    return np.log(values) if np.all(np.isnan(values) | (values > 0)) else values


def refine_start(y: Floats, start: int) -> int:
    """Return the first index of the second of two levels in y (rounds, n), given a guess from ranks.

    Ranks contain the order of values but not the gap between two levels, so they may assign the lowest value of the
    upper level to the lower one. The index minimizes the sum of absolute deviations from the medians of the two levels
    in each round (Bai, Econometric Theory 11, 403, 1995); the medians are computed again until the index is stable. Of
    several minima, the one next to the guess is returned.
    """
    y = y[~(np.isnan(y[:, :start]).all(axis=1) | np.isnan(y[:, start:]).all(axis=1))]
    for _ in range(MAX_REFINEMENTS):
        first, second = (np.nanmedian(side, axis=1, keepdims=True) for side in (y[:, :start], y[:, start:]))
        gain = np.cumsum(np.nansum(np.abs(y - second) - np.abs(y - first), axis=0))[:-1]
        likeliest = np.flatnonzero(gain >= gain.max() - RELATIVE_TOLERANCE * np.abs(gain).max()) + 1
        best = int(likeliest[np.abs(likeliest - start).argmin()])
        if best == start:
            break
        start = best
    return start


def _prune_and_move(
    series: Sequence[Floats], starts: list[list[int]], detect: Detector, alpha: float
) -> list[list[Step]]:
    """Test all steps between their neighbours; remove the weakest until all are significant, and move them in turn."""
    steps: list[list[Step]] = [[] for _ in series]
    unsettled = [i for i, s in enumerate(starts) if s]
    iteration = 0
    while unsettled:
        spans = [
            (i, low, high) for i in unsettled for low, high in _list_neighbour_spans(starts[i], series[i].shape[-1])
        ]
        detections = iter(detect([series[i][..., low:high] for i, low, high in spans], False))
        remaining = []
        for i in unsettled:
            current = starts[i]
            tested = [next(detections) for _ in current]
            weakest = max(range(len(current)), key=lambda k: tested[k].p)
            if tested[weakest].p > alpha:
                starts[i] = current[:weakest] + current[weakest + 1 :]
            else:
                starts[i] = _move(current, tested, iteration) if iteration < MAX_MOVES else current
                if starts[i] == current and iteration > 0:
                    steps[i] = _build_steps(series[i], current, tested)
                    continue
            if starts[i]:
                remaining.append(i)
        unsettled = remaining
        iteration += 1
    return steps


def _list_neighbour_spans(starts: Sequence[int], n: int) -> list[tuple[int, int]]:
    """Return for each step the span from the start of the level before it to the end of the level after it."""
    return list(zip([0, *starts[:-1]], [*starts[1:], n], strict=True))


def _build_steps(values: Floats, starts: Sequence[int], detections: Sequence[Detection]) -> list[Step]:
    """Return the steps, with starts that are refined by the values themselves, in order."""
    y = log_if_positive(np.atleast_2d(values))
    refined: list[int] = []
    for start, (_, high) in zip(starts, _list_neighbour_spans(starts, y.shape[1]), strict=True):
        low = refined[-1] if refined else 0
        refined.append(low + refine_start(y[:, low:high], start - low))
    return [
        Step(start, detection.p, slice(low, start), slice(start, high))
        for start, detection, (low, high) in zip(
            refined, detections, _list_neighbour_spans(refined, y.shape[1]), strict=True
        )
    ]


def _move(starts: Sequence[int], detections: Sequence[Detection], iteration: int) -> list[int]:
    """Move every other step to the likeliest index between its neighbours, which stay, so that the order is kept."""
    return [
        low + detection.starts[0] if k % 2 == iteration % 2 else start
        for k, (start, low, detection) in enumerate(zip(starts, [0, *starts[:-1]], detections, strict=True))
    ]
