"""History -> one matrix of rounds x commits for each benchmark on each machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from harness.tracking.git_commits import Commit
from harness.tracking.history import Better, Entry


@dataclass(frozen=True)
class Series:
    """What one machine measured of one benchmark.

    values: [rounds, commits] for asv, one number a round; [commits] for campaigns, whose runs share no round; NaN where
    nothing was measured. failed: for each commit, whether the benchmark was tried on it and never ran.
    """

    machine: str
    source: str
    session: str
    name: str
    unit: str
    better: Better
    threshold: float
    commits: tuple[Commit, ...]
    values: NDArray[np.float64]
    failed: tuple[bool, ...]

    @property
    def rounds(self) -> int:
        """How often each commit was measured, at most."""
        return len(np.atleast_2d(self.values))


def series(entries: Sequence[Entry]) -> list[Series]:
    """A series for each machine, source, session and benchmark; of asv's sessions on a machine, only the last.

    Machines are never joined, nor sessions of asv: what was not measured in turns differs by the machine's drift too.
    """
    groups: dict[tuple[str, str, str, str], list[Entry]] = defaultdict(list)
    together: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    last = {e.machine: e.session for e in entries if e.source == "asv"}
    for entry in entries:
        if entry.source == "campaign":
            groups[entry.machine, entry.source, "", entry.name].append(entry)
        elif entry.session == last[entry.machine]:
            groups[entry.machine, entry.source, entry.session, entry.name].append(entry)
            together[entry.machine, entry.session].append(entry)
    return [_series(key, own, together.get((key[0], key[2]), own)) for key, own in sorted(groups.items())]


def _series(key: tuple[str, str, str, str], own: Sequence[Entry], beside: Sequence[Entry]) -> Series:
    machine, source, session, name = key
    order = sorted({e.commit: (e.place, e.committed_s, e.commit) for e in beside}.items(), key=lambda item: item[1])
    column = {commit: k for k, (commit, _) in enumerate(order)}
    told = {e.commit: Commit(e.commit, e.committed_s, e.subject) for e in beside}
    newest = own[-1]
    rows = sorted({e.round or 0 for e in own})  # campaigns have no rounds: one row
    found: dict[tuple[int, int], list[float]] = defaultdict(list)
    # Of times measured one after another, the least: others at work on the machine only add.
    # Chen and Revels, Robust benchmarking in noisy environments (2016), arXiv:1608.04295.
    one_of: Callable[[Sequence[float]], float] = min if source == "asv" else median
    for e in own:
        if e.values:
            found[rows.index(e.round or 0), column[e.commit]].append(one_of(e.values))
    values = np.full((len(rows), len(column)), np.nan)
    for place, measured in found.items():
        values[place] = median(measured)
    ran = {commit for commit, k in column.items() if np.isfinite(values[:, k]).any()}
    tried = {e.commit for e in own}
    failed = tuple(commit in tried - ran for commit in column)
    return Series(
        machine, source, session, name, newest.unit, newest.better, newest.threshold, tuple(told[c] for c in column),
        values if source == "asv" else values[0], failed,
    )  # fmt: skip
