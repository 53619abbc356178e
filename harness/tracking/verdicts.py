"""Series -> verdicts: since which commit a benchmark is worse, by how much, and what could not have been seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.stats.changepoints.detect import Change, change_points
from harness.stats.two_sample import Shift, ratio
from harness.tracking.git_commits import Commit
from harness.tracking.series import Series

# One false alarm in a hundred benchmarks that have not changed, and one in twenty of all that are judged together.
ALPHA, FAMILY_ALPHA, LEAST_ALPHA = 0.01, 0.05, 0.001
State = Literal["regression", "broken", "improvement", "undone", "no change", "too noisy", "too few", "never ran"]


@dataclass(frozen=True)
class Verdict:
    """What became of one benchmark.

    change: that which the state rests on. since: the commit that made it. changes: all that were found, in order.
    overall: the last commit over the first. unseen: a relative change up to which nothing can be said.
    """

    series: Series
    state: State
    changes: tuple[Change, ...]
    change: Change | None
    since: Commit | None
    overall: Shift
    unseen: float

    @property
    def is_bad(self) -> bool:
        """Whether it must be looked at before the commits are used."""
        return self.state in ("regression", "broken")

    @property
    def is_gone(self) -> bool:
        """Whether it was measured before, and is not there on the last commit."""
        return not self.series.failed[-1] and not np.isfinite(self.series.values[..., -1]).any()

    def __str__(self) -> str:
        return self.in_words() + (f"; not there on {self.series.commits[-1].short}" if self.is_gone else "")

    def in_words(self) -> str:
        """The state with its numbers: what changed, the interval, how many values on either side, and since when."""
        s = self.series
        by = f" since {self.since.short} ({self.since.subject})" if self.since else ""
        if self.state == "broken":
            return f"broken{by}"
        n = sizes(self.overall)
        if self.state == "never ran":
            return "never ran"
        if self.state == "too few":
            return f"too few rounds to tell (n = {n})"
        if self.state == "too noisy":
            return f"too noisy to tell: only a change above {100 * self.unseen:.2g}% could be seen (n = {n})"
        if self.change is None:
            return f"no change (one above {100 * self.unseen:.2g}% would be seen; n = {n})"
        more = {"no change": f", below the {100 * s.threshold:.2g}% that counts", "undone": ", and undone"}
        return f"{change_in_words(s, self.change.shift)}{by}{more.get(self.state, '')}"


def change_in_words(s: Series, shift: Shift) -> str:
    """`slower 6.1% [4.9, 7.2] (n = 8 and 16)`: of the values themselves, so a rate that falls is `less`."""
    up = shift.estimate > 1
    word = {True: "slower", False: "faster"}[up] if s.unit == "seconds" else {True: "more", False: "less"}[up]
    ends = sorted(100 * abs(v - 1) * (1 if (v > 1) == up else -1) for v in (shift.low, shift.high))
    return f"{word} {100 * abs(shift.estimate - 1):.1f}% [{ends[0]:.1f}, {ends[1]:.1f}] (n = {sizes(shift)})"


def sizes(shift: Shift) -> str:
    """How many values stand on either side."""
    return f"{shift.n_a} and {shift.n_b}"


def verdicts(found: Sequence[Series]) -> list[Verdict]:
    """Each series judged, as strictly as their number asks for (Bonferroni), in their order."""
    told = [s for s in found if len(s.commits) > 1]
    alpha = max(LEAST_ALPHA, min(ALPHA, FAMILY_ALPHA / max(1, len(told))))
    return [verdict(s, alpha) for s in told]


def verdict(s: Series, alpha: float = ALPHA) -> Verdict:
    """What became of one benchmark over at least two commits; alpha: the chance of a false alarm."""
    values, there = _complete(s.values)
    found = change_points(values, alpha=alpha) if len(there) > 1 else []
    changes = tuple(replace(c, index=there[c.index]) for c in found)
    overall, unseen = _resolution(values, alpha)
    if not there:
        return Verdict(s, "never ran", (), None, None, overall, unseen)
    broken = _broken_since(s)
    if broken is not None:
        return Verdict(s, "broken", changes, None, broken, overall, unseen)
    change = _worst_that_stayed(s, changes)
    state: State = "regression"
    if change is None and changes:
        state, change = _harmless(s, changes)
    elif change is None:
        state = "too few" if _floor(values) > alpha else "too noisy" if unseen > s.threshold else "no change"
    since = s.commits[change.index] if change else None
    return Verdict(s, state, changes, change, since, overall, unseen)


def _harmless(s: Series, changes: Sequence[Change]) -> tuple[State, Change]:
    """What changes come to of which none for the worse stayed, and the one to tell of."""
    largest = max(changes, key=lambda c: abs(_worsening(s, c)))
    worse = [c for c in changes if _worsening(s, c) > s.threshold]
    if abs(_worsening(s, largest)) <= s.threshold:
        return "no change", largest
    if _worse(s, math.prod(c.shift.estimate for c in changes)) < -s.threshold:
        return "improvement", min(changes, key=lambda c: _worsening(s, c))
    return "undone", max(worse, key=lambda c: _worsening(s, c), default=largest)


def _worst_that_stayed(s: Series, changes: Sequence[Change]) -> Change | None:
    """The largest change for the worse beyond the threshold that later ones have not undone."""
    bad = []
    for k, change in enumerate(changes):
        later = math.prod(c.shift.estimate for c in changes[k:])
        if _worsening(s, change) > s.threshold and _worse(s, later) > s.threshold:
            bad.append(change)
    return max(bad, key=lambda c: _worsening(s, c), default=None)


def _worsening(s: Series, change: Change) -> float:
    return _worse(s, change.shift.estimate)


def _worse(s: Series, factor: float) -> float:
    """Relative change for the worse; negative: for the better."""
    return factor - 1 if s.better == "lower" else 1 - factor


def _broken_since(s: Series) -> Commit | None:
    """The first of the last commits on which a benchmark fails that ran before."""
    if not s.failed[-1]:
        return None
    first = len(s.failed) - 1
    while s.failed[first - 1]:
        first -= 1
    return s.commits[first]


def _complete(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[int]]:
    """Commits that were measured, in rounds that hold all of them, and which commits these are."""
    there = [int(k) for k in np.flatnonzero(np.isfinite(np.atleast_2d(values)).any(axis=0))]
    own = values[..., there]
    return (own if own.ndim == 1 else own[np.isfinite(own).all(axis=1)]), there


def _resolution(values: NDArray[np.float64], alpha: float) -> tuple[Shift, float]:
    """The last commit over the first, and the end of its interval that is farther from 1.

    With one value a commit: the later half of them over the earlier. Of rounds, what all commits of one have in common
    is the machine's drift, and is taken off.
    """
    if values.ndim == 1:
        half = len(values) // 2
        before, after = values[:half], values[half:]
    else:
        level = values / np.median(values, axis=1, keepdims=True) if values.size else values
        before, after = (level[:, 0], level[:, -1]) if values.size else (level.ravel(), level.ravel())
    overall = ratio(before, after, confidence=1 - alpha)
    unseen = max(abs(overall.high - 1), abs(1 - overall.low))
    return overall, float(unseen) if math.isfinite(unseen) else math.inf


def _floor(values: NDArray[np.float64]) -> float:
    """The least p that a step could have at all: at an end for rounds, in the middle for one value a commit."""
    n = values.shape[-1]
    if n < 2:
        return 1.0
    return 2 / math.comb(n, n // 2) if values.ndim == 1 else 2.0 * n ** -float(len(values))
