"""Two sides, metric by metric: how far one lies from the other, with interval, and whether noise could do that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from harness.experiments.metrics import Metric
from harness.protocol.errors import UsageError
from harness.stats.intervals import median_interval
from harness.stats.multiple_testing import benjamini_hochberg
from harness.stats.two_sample import Shift, ratios
from harness.tracking.selectors import ELSEWHERE, Observation, Side

Verdict = Literal["better", "worse", "no difference seen", "too noisy", "too few samples"]
# Of those called different at most this share is wrongly called so.
FALSE_SHARE = 0.05
# An interval that reaches farther than this on either side could hide a difference that matters.
NOISY = 0.05
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Row:
    """One metric of one case on both sides.

    shift: B over A, of pairs of one round where both took turns. p: adjusted for the number of rows, NaN where there
    are too few samples to ask.
    """

    name: str
    metric: Metric
    a: tuple[float, ...]
    b: tuple[float, ...]
    paired: bool
    shift: Shift
    p: float

    @property
    def medians(self) -> tuple[float, float]:
        """Of A and of B."""
        return float(np.median(self.a)), float(np.median(self.b))

    @property
    def spread(self) -> tuple[float, float]:
        """Half the middle half of the samples over their median, of A and of B."""
        return spread(self.a), spread(self.b)

    @property
    def resolution(self) -> float:
        """Smaller differences than this would not have shown."""
        return max(self.shift.high / self.shift.estimate, self.shift.estimate / self.shift.low) - 1.0

    @property
    def suffices(self) -> bool:
        """Whether there are samples enough for an interval with the confidence asked for."""
        return self.shift.coverage >= CONFIDENCE - 0.02

    @property
    def verdict(self) -> Verdict:
        """Better, worse, or why it is neither."""
        if not self.suffices:
            return "too few samples"
        apart = self.shift.low > 1.0 or self.shift.high < 1.0
        if self.p < FALSE_SHARE and apart:
            higher = self.shift.estimate > 1.0
            return "better" if higher == (self.metric.better == "higher") else "worse"
        return "too noisy" if self.resolution > NOISY else "no difference seen"


@dataclass(frozen=True)
class Comparison:
    """All rows, and how many metrics one side has alone."""

    rows: list[Row]
    only_a: int
    only_b: int


Key = tuple[str, ...]


def compare(a: Sequence[Observation], b: Sequence[Observation], sides: tuple[Side, Side]) -> Comparison:
    """Every metric that both sides have; raises UsageError if there is none.

    Cases are the same by suite and name where only the place, system or commit differs, or a part of a run such as its
    stage; where a condition names an axis, by all their other axes.
    """
    keys = {k for one in sides for k in one.conditions}
    there = [{o.record.case.get("system") for o in side} for side in (a, b)]
    of_one_system = "system" not in keys and bool(there[0] & there[1])
    left, right = (_by_key(side, keys, of_one_system) for side in (a, b))
    both = [key for key in left if key in right]
    if not both:
        raise UsageError(f"{sides[0].text} and {sides[1].text}: no metric of one case that both have")
    pairs = {key: _paired(left[key], right[key]) for key in both}
    names = dict(zip(both, _names(both), strict=True))
    rows = _unpaired([(names[k], left[k], right[k]) for k in both if pairs[k] is None])
    rows += [_turns(names[k], left[k][0].measured.metric, pair) for k, pair in pairs.items() if pair is not None]
    adjusted = benjamini_hochberg([row.p if row.suffices else math.nan for row in rows])
    done = [replace(row, p=float(p)) for row, p in zip(rows, adjusted, strict=True)]
    return Comparison(done, len(left) - len(both), len(right) - len(both))


def _by_key(side: Iterable[Observation], keys: set[str], of_one_system: bool) -> dict[Key, list[Observation]]:
    """Samples that belong together, by what must be the same on both sides."""
    found: dict[Key, list[Observation]] = {}
    for one in side:
        case, own = one.record.case, one.measured
        what = [str(case.get("suite"))]
        if all(k in ELSEWHERE or k in own.part for k in keys):
            what.append(str(case.get("name")))
        else:
            point = {"precision": case.get("parameters", {}).get("precision"), **case.get("point", {})}
            what += [f"{k} {v}" for k, v in sorted(point.items()) if k not in keys and v is not None]
        if of_one_system:
            what.append(f"on {case.get('system')}")
        part = [f"{k} {v}" for k, v in own.part.items() if k not in keys]
        found.setdefault((*what, *part, own.metric.name), []).append(one)
    return found


def _names(keys: Sequence[Key]) -> list[str]:
    """The words that tell the rows apart; the metric has a column of its own, and words that all share say nothing."""
    if len(keys) == 1:
        return [keys[0][1]]
    places = range(min(len(words) for words in keys) - 1)
    shared = {k for k in places if len({words[k] for words in keys}) == 1}
    return [", ".join(w for k, w in enumerate(words[:-1]) if k not in shared) or "all" for words in keys]


Pairs = tuple[tuple[float, ...], tuple[float, ...]]


def _paired(a: Sequence[Observation], b: Sequence[Observation]) -> Pairs | None:
    """Samples of the rounds that both have, where both are parts of the same runs that took turns."""
    there = {str(o.record.folder): dict(zip(o.measured.rounds, o.measured.values, strict=False)) for o in b}
    pairs = [
        (value, other[number])
        for o in a
        if o.measured.rounds and (other := there.get(str(o.record.folder)))
        for number, value in zip(o.measured.rounds, o.measured.values, strict=True)
        if number in other
    ]
    if not pairs:
        return None
    left, right = zip(*pairs, strict=True)
    return left, right


def _turns(name: str, metric: Metric, pairs: Pairs) -> Row:
    """The median ratio of pairs, its order-statistic interval, and the p of the sign test (Arbuthnot, 1710)."""
    a, b = pairs
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.array(b) / np.array(a)
    found = median_interval(ratio.tolist(), CONFIDENCE)
    above, below = int((ratio > 1).sum()), int((ratio < 1).sum())
    n = above + below
    p = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(above, below) + 1)) / 2**n) if n else 1.0
    shift = Shift(found.median, found.low, found.high, p, found.coverage, len(a), len(b))
    return Row(name, metric, a, b, True, shift, p)


def _unpaired(rows: Sequence[tuple[str, list[Observation], list[Observation]]]) -> list[Row]:
    """Hodges and Lehmann's ratio and Mann and Whitney's p, all rows of like sizes at once."""
    groups: dict[tuple[int, int], list[tuple[str, Metric, tuple[float, ...], tuple[float, ...]]]] = {}
    for name, left, right in rows:
        a, b = (tuple(v for o in side for v in o.measured.values) for side in (left, right))
        groups.setdefault((len(a), len(b)), []).append((name, left[0].measured.metric, a, b))
    found = []
    for own in groups.values():
        s = ratios([a for *_, a, _ in own], [b for *_, b in own], CONFIDENCE)
        columns = zip(own, s.estimate.tolist(), s.low.tolist(), s.high.tolist(), s.p.tolist(), strict=True)
        found += [
            Row(name, metric, a, b, False, Shift(e, low, high, p, s.coverage, s.n_a, s.n_b), p)
            for (name, metric, a, b), e, low, high, p in columns
        ]
    return found


def spread(values: Sequence[float]) -> float:
    """Half of the middle half over the median; NaN of fewer than four."""
    if len(values) < 4:
        return math.nan
    ordered = sorted(values)
    quarter = len(ordered) // 4
    middle = ordered[len(ordered) // 2]
    return (ordered[-1 - quarter] - ordered[quarter]) / 2 / abs(middle) if middle else math.nan
