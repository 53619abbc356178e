"""Binary segmentation: split where a scan finds steps, then the parts, and try every step again in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from harness.stats.changepoints.refine import on_a_scale, placed
from harness.stats.ranks import Floats

SHARE_OF_ONE = 0.8  # of alpha that goes to a scan for one step; the rest to that for two
MOVES = 6  # goes in which steps may still move, odd and even ones in turn


@dataclass(frozen=True)
class Finding:
    """The likeliest first places of new levels in a piece, and the p of the piece having no step."""

    p: float = 1.0
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class Step:
    """A step that has stood the test: the levels before and after it, and the start of the latter."""

    start: int
    p: float
    before: slice
    after: slice


# One finding for each piece, an array with commits along its last axis; two: look for two steps at once as well.
Finder = Callable[[Sequence[Floats], bool], list[Finding]]


def better(one: Finding, two: Finding) -> Finding:
    """The stronger of the scans for one step and for two, with a p that holds for both (Bonferroni, with weights)."""
    p_one, p_two = one.p / SHARE_OF_ONE, two.p / (1 - SHARE_OF_ONE)
    return Finding(min(p_one, 1.0), one.places) if p_one <= p_two else Finding(min(p_two, 1.0), two.places)


def segmented(series: Sequence[Floats], find: Finder, alpha: float) -> list[list[Step]]:
    """For each series (..., n), which may differ in n, its steps in order.

    Every step stands at the likeliest place between its two neighbours, and is significant there; those that are not
    are taken away one by one, the weakest first. The last word on the place has what is measured itself, not its ranks.
    """
    starts: list[list[int]] = [[] for _ in series]
    work = [(i, 0, s.shape[-1]) for i, s in enumerate(series)]
    while work:
        found = find([series[i][..., low:high] for i, low, high in work], True)
        parts = []
        for (i, low, high), finding in zip(work, found, strict=True):
            if finding.p <= alpha:
                places = [low + place for place in finding.places]
                starts[i] += places
                edges = [low, *places, high]
                parts += [(i, a, b) for a, b in pairwise(edges)]
        work = parts
    return _tried_again(series, [sorted(s) for s in starts], find, alpha)


def _tried_again(series: Sequence[Floats], starts: list[list[int]], find: Finder, alpha: float) -> list[list[Step]]:
    settled: list[list[Step]] = [[] for _ in series]
    unsettled = [i for i, s in enumerate(starts) if s]
    go = 0
    while unsettled:
        windows = [(i, low, high) for i in unsettled for low, high in _windows(starts[i], series[i].shape[-1])]
        found = iter(find([series[i][..., low:high] for i, low, high in windows], False))
        left = []
        for i in unsettled:
            here = starts[i]
            findings = [next(found) for _ in here]
            weakest = max(range(len(here)), key=lambda k: findings[k].p)
            if findings[weakest].p > alpha:
                starts[i] = here[:weakest] + here[weakest + 1 :]
            else:
                starts[i] = _moved(here, findings, go) if go < MOVES else here
                if starts[i] == here and go > 0:
                    settled[i] = _steps(series[i], here, findings)
                    continue
            if starts[i]:
                left.append(i)
        unsettled = left
        go += 1
    return settled


def _windows(starts: Sequence[int], n: int) -> list[tuple[int, int]]:
    """From the start of the level before each step to the end of the level after it."""
    return list(zip([0, *starts[:-1]], [*starts[1:], n], strict=True))


def _steps(values: Floats, starts: Sequence[int], findings: Sequence[Finding]) -> list[Step]:
    y = on_a_scale(np.atleast_2d(values))
    exact: list[int] = []
    for start, (_, high) in zip(starts, _windows(starts, y.shape[1]), strict=True):
        low = exact[-1] if exact else 0
        exact.append(low + placed(y[:, low:high], start - low))
    return [
        Step(start, finding.p, slice(low, start), slice(start, high))
        for start, finding, (low, high) in zip(exact, findings, _windows(exact, y.shape[1]), strict=True)
    ]


def _moved(starts: Sequence[int], findings: Sequence[Finding], go: int) -> list[int]:
    """Every other step at the likeliest place between its neighbours, which stay, so that none can pass another."""
    before = [0, *starts[:-1]]
    return [
        low + finding.places[0] if k % 2 == go % 2 else start
        for k, (start, low, finding) in enumerate(zip(starts, before, findings, strict=True))
    ]
