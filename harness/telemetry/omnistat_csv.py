"""What `omnistat-query --export` writes: CSV files whose first rows are label levels, then times and values.

    metric,rocm_utilization_percentage,rocm_average_socket_power_watts
    instance,node1,node1
    card,0,0
    timestamp,,
    2026-11-22 10:33:17,60.0,200.0

Times are UTC without saying so. Values are on a grid: a blank is no sample, and one figure of merit may fill two rows.
A file takes memory as it is long times wide; the raw export is the way for large jobs.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from harness.protocol.text import sanitize_line
from harness.telemetry.metrics import FIGURE_OF_MERIT, host_of, name_of, quantity_of
from harness.telemetry.prometheus_export import ABOUT_JOB, LONGEST, UNREADABLE
from harness.telemetry.timeseries import Faults, Floats, Series, timed

PATTERN = "omnistat-*.csv"
FIRST, LAST = "metric", "timestamp"
LEVELS = 20


@dataclass(frozen=True)
class Sheet:
    """One file: labels of each column, times in Unix seconds [n], values [n, columns]."""

    labels: list[dict[str, str]]
    times: Floats
    values: Floats


class CsvExport:
    """The CSV files of one export, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.faults = Faults()

    @cached_property
    def sheets(self) -> list[Sheet]:
        """Those of the files that have labels; the others (process inventories) are flat."""
        found = []
        for path in sorted(self.path.glob(PATTERN)):
            try:
                sheet = self._sheet(path)
            except (OSError, ValueError, OverflowError) as error:  # what pandas cannot read is a ValueError
                self.faults.add(UNREADABLE, f"{path.name}: {sanitize_line(str(error))[:200]}")
                continue
            found += [sheet] if sheet is not None else []
        return found

    def job_series(self) -> Iterator[Series]:
        """Those that tell of the job."""
        yield from (s for s in self._every() if s.labels.get("__name__") in ABOUT_JOB)

    def series(self) -> Iterator[Series]:
        """Those that the harness has a use for."""
        for one in self._every():
            if one.labels.get("__name__") == FIGURE_OF_MERIT:
                new = np.ones(len(one.values), dtype=bool)
                new[1:] = one.values[1:] != one.values[:-1]
                yield Series(one.labels, one.times[new], one.values[new])
            elif quantity_of(one.labels) is not None:
                yield one

    def spans(self) -> Mapping[str, tuple[float, float]]:
        """Node -> times of its first and last sample."""
        found: dict[str, tuple[float, float]] = {}
        for one in self._every():
            if len(one.times):
                host, (first, last) = host_of(one.labels), (float(one.times[0]), float(one.times[-1]))
                low, high = found.get(host, (first, last))
                found[host] = (min(low, first), max(high, last))
        return found

    def _every(self) -> Iterator[Series]:
        for sheet in self.sheets:
            for k, labels in enumerate(sheet.labels):
                there = ~np.isnan(sheet.values[:, k])
                known = timed(sheet.times[there], sheet.values[there, k], self.faults, name_of(labels))
                yield Series(labels, *known)

    def _sheet(self, path: Path) -> Sheet | None:
        with path.open(encoding="utf-8", errors="replace", newline="") as handle:
            levels: list[list[str]] = []
            while line := handle.readline(LONGEST):
                cells = _split(line)
                if cells[0] == LAST or len(levels) == LEVELS:
                    break
                levels.append(cells)
        if not levels or levels[0][0] != FIRST or len(levels) == LEVELS:
            return None
        if _has_long_line(path):
            self.faults.add("files with lines of more than 32 MiB", path.name)
            return None
        width = len(levels[0])
        if any(len(cells) != width for cells in levels):
            self.faults.add("files with label rows of unequal length", path.name)
            return None
        return self._read(path, labels_of(levels), len(levels) + 1)

    def _read(self, path: Path, labels: list[dict[str, str]], skipped: int) -> Sheet:
        table = pd.read_csv(
            path, header=None, skiprows=skipped, names=range(len(labels) + 1), dtype=str, engine="c",
            on_bad_lines="skip", skip_blank_lines=True, encoding_errors="replace", quoting=csv.QUOTE_NONE,
        )  # fmt: skip
        if table.empty:
            self.faults.add("files without samples", path.name)
        with path.open("rb") as handle:
            too_long = sum(line.count(b",") > len(labels) for line in handle)
        self.faults.counts["rows that are too long"] += too_long
        times = pd.to_datetime(table[0], format="ISO8601", utc=True, errors="coerce")
        known = times.notna().to_numpy()
        values = table.iloc[:, 1:].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
        wrong = int((~known).sum())
        self.faults.counts["rows without a time"] += wrong
        written = table.iloc[:, 1:].notna().to_numpy(dtype=bool)
        self.faults.counts["values that are no numbers"] += int((written & np.isnan(values)).sum())
        seconds = (times[known] - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
        return Sheet(labels, np.asarray(seconds, dtype=np.float64), values[known])


def _split(line: str) -> list[str]:
    """The cells of a line of labels; a comma within quotes is part of a cell."""
    try:
        cells = next(csv.reader([line.rstrip("\r\n")], skipinitialspace=True), [""])
    except csv.Error:
        cells = line.rstrip("\r\n").split(",")
    return [cell.strip() for cell in cells] or [""]


def _has_long_line(path: Path) -> bool:
    with path.open("rb") as handle:
        while line := handle.readline(LONGEST):
            if len(line) == LONGEST:
                return True
    return False


def labels_of(levels: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """The labels of each column; a label that a metric does not have is blank in the file, and left out."""
    names = ["__name__", *(cells[0] for cells in levels[1:])]
    columns = zip(*(cells[1:] for cells in levels), strict=True)
    return [{name: cell for name, cell in zip(names, column, strict=True) if cell} for column in columns]
