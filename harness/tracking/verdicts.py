"""Verdicts on the history: the commit since which a benchmark is worse, the change, and the detection limit."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

import numpy as np

from harness.experiments.experiment import Direction
from harness.stats import Floats
from harness.stats.changepoints.detect import ChangePoint, detect_change_points
from harness.stats.two_sample import TwoSampleEstimate, estimate_ratio
from harness.tracking.git_commits import Commit
from harness.tracking.history import Measurement, Source

# The probability of a false alarm in one unchanged benchmark, and in all benchmarks that are judged together.
ALPHA, FAMILY_ALPHA, MIN_ALPHA = 0.01, 0.05, 0.001
BenchmarkState = Literal[
    "regression", "broken", "improvement", "reverted", "no change", "too noisy", "too few", "not run"
]


@dataclass(frozen=True, kw_only=True)
class Series:
    """Measurements of one benchmark on one machine.

    Attributes:
        threshold: Smallest relative change that counts.
        values: (rounds, commits) for asv, with one value per round; (commits,) for campaigns, which have no common
            rounds. Missing values are NaN.
        failed: For each commit, whether the benchmark was run and never succeeded.
    """

    machine: str
    source: Source
    session: str
    name: str
    unit: str
    better: Direction
    threshold: float
    commits: tuple[Commit, ...]
    values: Floats
    failed: tuple[bool, ...]

    @property
    def rounds(self) -> int:
        """The number of rounds."""
        return len(np.atleast_2d(self.values))

    def compute_worsening(self, ratio: float) -> float:
        """Return by which share a level becomes worse if it is multiplied by a ratio; negative: it becomes better."""
        return ratio - 1 if self.better == "lower" else 1 - ratio


@dataclass(frozen=True, kw_only=True)
class BenchmarkVerdict:
    """The result of one benchmark.

    Attributes:
        changes: All detected changes, in order.
        change: The change that determines the state; None if there is none.
        since: The first commit of the state; None if no commit changed the level.
        overall: The ratio of the last commit to the first.
        min_detectable_change: Smallest relative change that would be detected.
    """

    series: Series
    state: BenchmarkState
    changes: tuple[ChangePoint, ...] = ()
    change: ChangePoint | None = None
    since: Commit | None = None
    overall: TwoSampleEstimate[float]
    min_detectable_change: float

    @property
    def is_bad(self) -> bool:
        """Whether the benchmark became worse or fails."""
        return self.state in ("regression", "broken")

    @property
    def is_missing(self) -> bool:
        """Whether the benchmark was not run on the last commit."""
        return not self.series.failed[-1] and not np.isfinite(self.series.values[..., -1]).any()

    def __str__(self) -> str:
        suffix = f"; not measured on {self.series.commits[-1].short}" if self.is_missing else ""
        return self._describe() + suffix

    def _describe(self) -> str:
        """Return the state as text, with the change, its interval, the numbers of values, and the first commit."""
        since = f" since {self.since.short} ({self.since.subject})" if self.since else ""
        n, percent = format_sizes(self.overall), f"{100 * self.min_detectable_change:.2g}%"
        match self.state:
            case "broken":
                return f"broken{since}"
            case "not run":
                return "not run"
            case "too few":
                return f"too few rounds to tell (n = {n})"
            case "too noisy":
                return f"too noisy to tell: only a change above {percent} could be detected (n = {n})"
        if self.change is None:
            return f"no change (a change above {percent} would be detected; n = {n})"
        suffix = {"no change": f", below the {100 * self.series.threshold:.2g}% that counts", "reverted": ", reverted"}
        return f"{format_change(self.series, self.change.shift)}{since}{suffix.get(self.state, '')}"


def format_change(series: Series, shift: TwoSampleEstimate[float]) -> str:
    """Return a change as text: `slower 6.1% [4.9, 7.2] (n = 8 and 16)`; `more` or `less` if the unit is not seconds."""
    is_up = shift.estimate > 1
    up, down = ("slower", "faster") if series.unit == "seconds" else ("more", "less")
    ends = sorted(100 * abs(v - 1) * (1 if (v > 1) == is_up else -1) for v in (shift.low, shift.high))
    percent = f"{100 * abs(shift.estimate - 1):.1f}% [{ends[0]:.1f}, {ends[1]:.1f}]"
    return f"{up if is_up else down} {percent} (n = {format_sizes(shift)})"


def format_sizes(shift: TwoSampleEstimate[float]) -> str:
    """Return the numbers of values before and after a change, such as `8 and 16`."""
    return f"{shift.n_a} and {shift.n_b}"


def build_series(measurements: Sequence[Measurement]) -> list[Series]:
    """Build a series for each machine, source, session and benchmark, with only the last asv session of each machine.

    Different machines or sessions of asv are never combined, since measurements that do not share interleaved rounds
    also differ by the drift of the machine.
    """
    by_benchmark: dict[tuple[str, Source, str, str], list[Measurement]] = defaultdict(list)
    by_session: dict[tuple[str, str], list[Measurement]] = defaultdict(list)
    last_session = {m.machine: m.session for m in measurements if m.source == "asv"}
    for m in measurements:
        if m.source == "campaign":
            by_benchmark[m.machine, m.source, "", m.name].append(m)
        elif m.session == last_session[m.machine]:
            by_benchmark[m.machine, m.source, m.session, m.name].append(m)
            by_session[m.machine, m.session].append(m)
    return [
        _build_series(group, by_session.get((machine, session), group), session)
        for (machine, _, session, _), group in sorted(by_benchmark.items(), key=lambda item: item[0])
    ]


def judge_all(series: Sequence[Series]) -> list[BenchmarkVerdict]:
    """Judge each series of at least two commits, with a Bonferroni correction for the number of series."""
    judgeable = [s for s in series if len(s.commits) > 1]
    alpha = max(MIN_ALPHA, min(ALPHA, FAMILY_ALPHA / max(1, len(judgeable))))
    return [judge(s, alpha) for s in judgeable]


def judge(series: Series, alpha: float = ALPHA) -> BenchmarkVerdict:
    """Judge one benchmark over at least two commits; alpha is the probability of a false alarm."""
    values, measured = _drop_incomplete(series.values)
    detected = detect_change_points(values, alpha=alpha) if len(measured) > 1 else []
    changes = tuple(replace(c, index=measured[c.index]) for c in detected)
    overall, min_detectable_change = _compare_ends(values, alpha)
    state: BenchmarkState
    change, since = None, None
    if not measured:
        state, changes = "not run", ()
    elif (since := _find_break(series)) is not None:
        state = "broken"
    elif (change := _find_worst_lasting_change(series, changes)) is not None:
        state = "regression"
    elif changes:
        state, change = _classify_harmless(series, changes)
    elif _compute_min_p(values) > alpha:
        state = "too few"
    else:
        state = "too noisy" if min_detectable_change > series.threshold else "no change"
    if change is not None:
        since = series.commits[change.index]
    return BenchmarkVerdict(
        series=series, state=state, changes=changes, change=change, since=since, overall=overall,
        min_detectable_change=min_detectable_change,
    )  # fmt: skip


def _build_series(group: Sequence[Measurement], session_measurements: Sequence[Measurement], session: str) -> Series:
    """Build the series of one benchmark, with a column for each commit of the session."""
    newest = group[-1]
    order = {m.commit: (m.commit_index, m.committed_s, m.commit) for m in session_measurements}
    column = {commit: k for k, commit in enumerate(sorted(order, key=order.__getitem__))}
    commits = {m.commit: Commit(m.commit, m.committed_s, m.subject) for m in session_measurements}
    rounds = sorted({m.round or 0 for m in group})  # campaigns have no rounds: one row
    cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    # Of times measured in succession the minimum counts, since other processes can only increase a time.
    # Source: Chen and Revels, Robust benchmarking in noisy environments (2016), arXiv:1608.04295.
    reduce: Callable[[Sequence[float]], float] = min if newest.source == "asv" else median
    for m in group:
        if m.values:
            cells[rounds.index(m.round or 0), column[m.commit]].append(reduce(m.values))
    values = np.full((len(rounds), len(column)), np.nan)
    for cell, reduced in cells.items():
        values[cell] = median(reduced)
    succeeded = {commit for commit, k in column.items() if np.isfinite(values[:, k]).any()}
    attempted = {m.commit for m in group}
    return Series(
        machine=newest.machine,
        source=newest.source,
        session=session,
        name=newest.name,
        unit=newest.unit,
        better=newest.better,
        threshold=newest.threshold,
        commits=tuple(commits[commit] for commit in column),
        values=values if newest.source == "asv" else values[0],
        failed=tuple(commit in attempted - succeeded for commit in column),
    )


def _classify_harmless(series: Series, changes: Sequence[ChangePoint]) -> tuple[BenchmarkState, ChangePoint]:
    """Return the state and the change to report for a benchmark without a lasting change for the worse."""

    def compute_worsening(change: ChangePoint) -> float:
        return series.compute_worsening(change.shift.estimate)

    largest = max(changes, key=lambda c: abs(compute_worsening(c)))
    if abs(compute_worsening(largest)) <= series.threshold:
        return "no change", largest
    if series.compute_worsening(math.prod(c.shift.estimate for c in changes)) < -series.threshold:
        return "improvement", min(changes, key=compute_worsening)
    worse = [c for c in changes if compute_worsening(c) > series.threshold]
    return "reverted", max(worse, key=compute_worsening, default=largest)


def _find_worst_lasting_change(series: Series, changes: Sequence[ChangePoint]) -> ChangePoint | None:
    """Return the largest change for the worse above the threshold that later changes have not reverted, or None."""
    lasting = []
    for k, change in enumerate(changes):
        with_later = math.prod(c.shift.estimate for c in changes[k:])
        if (
            min(series.compute_worsening(change.shift.estimate), series.compute_worsening(with_later))
            > series.threshold
        ):
            lasting.append(change)
    return max(lasting, key=lambda c: series.compute_worsening(c.shift.estimate), default=None)


def _find_break(series: Series) -> Commit | None:
    """Return the first commit of the current run of failures, or None if the last commit does not fail."""
    if not series.failed[-1]:
        return None
    first = len(series.failed) - 1
    while series.failed[first - 1]:
        first -= 1
    return series.commits[first]


def _drop_incomplete(values: Floats) -> tuple[Floats, list[int]]:
    """Return the values of the commits with measurements, in rounds that contain all of them, and their indices."""
    measured = [int(k) for k in np.flatnonzero(np.isfinite(np.atleast_2d(values)).any(axis=0))]
    block = values[..., measured]
    return (block if block.ndim == 1 else block[np.isfinite(block).all(axis=1)]), measured


def _compare_ends(values: Floats, alpha: float) -> tuple[TwoSampleEstimate[float], float]:
    """Return the ratio of the last commit to the first, and the largest distance from 1 of an end of its interval.

    With one value per commit, the later half of the commits is compared with the earlier half. With rounds, each value
    is divided by the median of its round, which removes the drift of the machine.
    """
    if values.ndim == 1:
        half = len(values) // 2
        before, after = values[:half], values[half:]
    elif values.size:
        level = values / np.median(values, axis=1, keepdims=True)
        before, after = level[:, 0], level[:, -1]
    else:
        before = after = values.ravel()
    overall = estimate_ratio(before, after, confidence=1 - alpha)
    min_detectable_change = max(abs(overall.high - 1), abs(1 - overall.low))
    return overall, float(min_detectable_change) if math.isfinite(min_detectable_change) else math.inf


def _compute_min_p(values: Floats) -> float:
    """Return the lowest p value that a change could reach; if it exceeds alpha, no change can be detected."""
    n = values.shape[-1]
    if n < 2:
        return 1.0
    return 2 / math.comb(n, n // 2) if values.ndim == 1 else 2.0 * n ** -float(len(values))
