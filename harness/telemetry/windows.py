"""Windows: the times and nodes of a case and of its trials, epochs, stages and precisions, from its record.

Some windows of a case (stages of a ladder, precisions) alternate faster than the sampling interval. Their energies are
estimated by a regression over all samples of the case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.protocol.types import Scope
from harness.results.runs import RunRecord
from harness.telemetry.cumulative import CumulativeSeries
from harness.telemetry.metrics import shorten_hostname
from harness.telemetry.timeseries import Floats

Nodes = tuple[frozenset[str], ...]
NODE_FILE = "nodes"
MIN_SPARE_INTERVALS = 5  # a regression needs this many sampling intervals more than it has coefficients
MIN_IDLE_SHARE = 1e-3  # if the time outside all windows has a larger share, its power is a separate coefficient


@dataclass(frozen=True)
class Window:
    """The time and the nodes of a case or of a part of it.

    Attributes:
        folder: Run folder of the case.
        scope: The case, or a kind of part of it: trial, epoch, stage or precision.
        name: The name of the part; empty for the case.
        intervals: Unix times of start and end in seconds; one pair, or several if parts alternate.
        nodes: The aliases of each node; None if the record lists no nodes, which means all nodes of the source.
    """

    folder: str
    scope: Scope
    name: str
    intervals: tuple[tuple[float, float], ...]
    nodes: Nodes | None = None

    @property
    def seconds(self) -> float:
        """The duration of all intervals."""
        return sum(end - start for start, end in self.intervals)


def list_windows(record: RunRecord) -> Iterator[Window]:
    """Yield the window of a case, then those of its parts; none for a case that has not begun."""
    if record.start_time_s is None or record.end_time_s is None or record.end_time_s <= record.start_time_s:
        return
    folder, nodes = record.location, read_nodes(record.folder)
    by_alias = {alias: node for node in nodes or () for alias in node}
    yield Window(folder, "case", "", ((record.start_time_s, record.end_time_s),), nodes)
    for event in record.events_by_kind.get("trial", []):
        if event.get("start_time_s") and event.get("end_time_s"):
            trial_nodes = _find_nodes(event["nodes"], by_alias) if event.get("nodes") else nodes
            yield Window(
                folder, "trial", str(event["trial"]), ((event["start_time_s"], event["end_time_s"]),), trial_nodes
            )
    yield from (Window(folder, "epoch", name, (interval,), nodes) for name, interval in _list_epochs(record))
    yield from (
        Window(folder, scope, name, intervals, nodes) for scope, name, intervals in _list_alternating_parts(record)
    )


def read_nodes(folder: Path) -> Nodes | None:
    """Return the aliases of each node from the file that the job of a case wrote, with one line per node.

    A line contains the name of the node and, optionally, the name of its host.
    """
    try:
        lines = (folder / NODE_FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return tuple(frozenset(map(shorten_hostname, line.split())) for line in lines if line.split()) or None


def _find_nodes(names: Sequence[str], by_alias: Mapping[str, frozenset[str]]) -> Nodes:
    """Return the nodes with these names, each with all the aliases that the list of the case's nodes contains."""
    return tuple(by_alias.get(alias, frozenset([alias])) for alias in map(shorten_hostname, names))


def _list_epochs(record: RunRecord) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield name and interval of each epoch; an epoch of unknown duration starts at the end of the previous one."""
    previous_end = record.start_time_s
    for event in record.events_by_kind.get("epoch", []):
        end, duration = event.get("time_s"), event.get("train_s")
        if end is None:
            continue
        start = end - duration if duration is not None else previous_end
        if start is not None and end > start:
            yield str(event["epoch"]), (start, end)
        previous_end = end


def _list_alternating_parts(record: RunRecord) -> Iterator[tuple[Scope, str, tuple[tuple[float, float], ...]]]:
    """Yield scope, name and intervals of each stage of a ladder and each precision of a study; these alternate."""
    intervals: dict[tuple[Scope, str], list[tuple[float, float]]] = {}
    for sample in record.samples:
        stage = sample.get("stage") or sample.get("model")
        if stage is not None and sample.get("end_time_s"):
            interval = (sample["end_time_s"] - sample["device_s"], sample["end_time_s"])
            intervals.setdefault(("stage", stage), []).append(interval)
        elif "precision" in sample and not sample.get("is_warmup") and sample.get("duration_s") and "time_s" in sample:
            interval = (sample["time_s"] - sample["duration_s"], sample["time_s"])
            name = f"{sample.get('phase', 'all')} {sample['precision']}"
            intervals.setdefault(("precision", name), []).append(interval)
    yield from ((scope, name, tuple(part)) for (scope, name), part in intervals.items())


@dataclass(frozen=True)
class AlternatingWindows:
    """Windows of one case that alternate, such as the stages of a ladder.

    Attributes:
        indices: The indices of these windows in the list of all windows, (n,).
        occupied: For each window, the Unix times of the edges of its intervals and its seconds up to each edge.
        seconds: The duration of each window, (n,).
    """

    indices: NDArray[np.int64]
    occupied: list[tuple[Floats, Floats]]
    seconds: Floats

    def regress_energy(self, energy: CumulativeSeries) -> tuple[Floats, Floats]:
        """Estimate the energy (J) of each window and its variance (J^2) by least squares; NaN without enough samples.

        The energy of each sampling interval and the seconds of each window in it are known; the powers of the windows
        are the coefficients (ordinary least squares; Seber and Lee, Linear Regression Analysis, 2nd ed., 2003, section
        3.2).
        Windows with the same share of every interval cannot be distinguished and give NaN; with nearly equal shares the
        variance is large.
        """
        start = min(edges[0] for edges, _ in self.occupied)
        end = max(edges[-1] for edges, _ in self.occupied)
        unknown = np.full(len(self.seconds), np.nan)
        steps = np.diff(energy.times)
        usable = (energy.times[:-1] >= start) & (energy.times[1:] <= end) & (np.diff(energy.covered) > 0)
        if usable.sum() < len(self.seconds) + 1 + MIN_SPARE_INTERVALS:
            return unknown, unknown
        shares = np.stack([np.diff(np.interp(energy.times, *edges)) for edges in self.occupied], axis=1)[usable]
        idle = steps[usable] - shares.sum(axis=1)
        design = np.column_stack([shares, idle]) if (idle > MIN_IDLE_SHARE * steps[usable]).any() else shares
        joules = np.diff(energy.total)[usable]
        if np.linalg.matrix_rank(design) < design.shape[1]:
            return unknown, unknown
        power, *_ = np.linalg.lstsq(design, joules, rcond=None)
        residual_variance = float(((joules - design @ power) ** 2).sum()) / (len(joules) - design.shape[1])
        variance = residual_variance * np.diag(np.linalg.inv(design.T @ design))
        n = len(self.seconds)  # the last coefficient may be that of the idle time
        return power[:n] * self.seconds, variance[:n] * self.seconds**2


def group_alternating(windows: Sequence[Window]) -> Iterator[AlternatingWindows]:
    """Yield the groups of windows with several intervals, one group for each case and scope."""
    groups: dict[tuple[str, str], list[int]] = {}
    for k, window in enumerate(windows):
        if len(window.intervals) > 1:
            groups.setdefault((window.folder, window.scope), []).append(k)
    for indices in groups.values():
        group = [windows[k] for k in indices]
        yield AlternatingWindows(
            np.array(indices), [_accumulate_seconds(w) for w in group], np.array([w.seconds for w in group])
        )


def _accumulate_seconds(window: Window) -> tuple[Floats, Floats]:
    """Return the edges of a window's intervals, and the seconds of the window up to each edge."""
    intervals = np.array(sorted(window.intervals))
    lengths = np.maximum(intervals[:, 1] - intervals[:, 0], 0.0)
    total = np.concatenate([[0.0], np.cumsum(lengths)])
    return intervals.reshape(-1), np.column_stack([total[:-1], total[1:]]).reshape(-1)
