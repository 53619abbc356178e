"""Exports of `omnistat-query --export`: CSV files that begin with rows of labels, followed by times and values.

    metric,rocm_utilization_percentage,rocm_average_socket_power_watts
    instance,node1,node1
    card,0,0
    timestamp,,
    2026-11-22 10:33:17,60.0,200.0

Times are in UTC without a marker. Values are on a grid: an empty cell means no sample, and the same figure of merit may
be in two rows. The memory needed grows with rows times columns; use the raw export for large jobs.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd

from harness.protocol.text import sanitize_line
from harness.telemetry.metrics import FIGURE_OF_MERIT, format_name, get_host, identify_quantity
from harness.telemetry.prometheus_export import JOB_METRICS, MAX_LINE_BYTES, TOO_LONG, UNREADABLE
from harness.telemetry.timeseries import Faults, Floats, Series, drop_untimed

PATTERN = "omnistat-*.csv"
# The first cells of the first and of the last row of labels, and the maximum number of these rows (pandas: levels).
FIRST_LEVEL, LAST_LEVEL = "metric", "timestamp"
MAX_LEVELS = 20


@dataclass(frozen=True)
class CsvTable:
    """One file: labels of each column, ascending Unix times in seconds (n,), values (n, columns)."""

    labels: list[dict[str, str]]
    times: Floats
    values: Floats


class CsvExport:
    """The CSV files of one export, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.faults = Faults()

    @cached_property
    def tables(self) -> list[CsvTable]:
        """The tables of the files that have labels; other files, such as lists of processes, are ignored."""
        tables = []
        for path in sorted(self.path.glob(PATTERN)):
            try:
                table = self._read_file(path)
            except (OSError, ValueError, OverflowError) as error:  # pandas raises ValueError for invalid files
                self.faults.add(UNREADABLE, f"{path.name}: {sanitize_line(str(error))[:200]}")
                continue
            tables += [table] if table is not None else []
        return tables

    def iter_job_series(self) -> Iterator[Series]:
        """Yield the series about the job."""
        yield from (s for s in self._iter_series() if s.labels.get("__name__") in JOB_METRICS)

    def iter_series(self) -> Iterator[Series]:
        """Yield the series that the harness uses."""
        for series in self._iter_series():
            if series.labels.get("__name__") == FIGURE_OF_MERIT:
                is_new = np.ones(len(series.values), dtype=bool)
                is_new[1:] = series.values[1:] != series.values[:-1]
                yield Series(series.labels, series.times[is_new], series.values[is_new])
            elif identify_quantity(series.labels) is not None:
                yield series

    def get_spans(self) -> Mapping[str, tuple[float, float]]:
        """Return the Unix times of the first and the last sample of each node."""
        spans: dict[str, tuple[float, float]] = {}
        for series in self._iter_series():
            if len(series.times):
                host, (first, last) = get_host(series.labels), (float(series.times[0]), float(series.times[-1]))
                low, high = spans.get(host, (first, last))
                spans[host] = (min(low, first), max(high, last))
        return spans

    def _iter_series(self) -> Iterator[Series]:
        for table in self.tables:
            for k, labels in enumerate(table.labels):
                is_sample = ~np.isnan(table.values[:, k])
                times, values = table.times[is_sample], table.values[is_sample, k]
                yield Series(labels, *drop_untimed(times, values, self.faults, format_name(labels)))

    def _read_file(self, path: Path) -> CsvTable | None:
        with path.open("rb") as handle:
            lines = iter(partial(handle.readline, MAX_LINE_BYTES), b"")
            levels, is_complete = _read_levels(lines)
            if not levels or levels[0][0] != FIRST_LEVEL:
                return None
            width = len(levels[0])
            if any(len(cells) != width for cells in levels):
                self.faults.add("files with label rows of unequal length", path.name)
                return None
            if not is_complete:
                self.faults.add(f"files without a row `{LAST_LEVEL}`", path.name)
                return None
            if any(len(line) == MAX_LINE_BYTES for line in lines):
                self.faults.add(f"files with {TOO_LONG}", path.name)
                return None
        return self._read_samples(path, _get_column_labels(levels), len(levels) + 1)

    def _read_samples(self, path: Path, labels: list[dict[str, str]], n_skipped: int) -> CsvTable:
        n_columns = len(labels) + 1
        # without an index, pandas cuts long rows after the last name, which is that of surplus cells
        with warnings.catch_warnings(action="ignore", category=pd.errors.ParserWarning):
            table = pd.read_csv(
                path, header=None, skiprows=n_skipped, names=range(n_columns + 1), index_col=False, dtype=str,
                engine="c", skip_blank_lines=True, encoding_errors="replace", quoting=csv.QUOTE_NONE,
            )  # fmt: skip
        is_too_long = table[n_columns].notna()
        self.faults.counts["rows that are too long"] += int(is_too_long.sum())
        table = table.loc[~is_too_long, : n_columns - 1]
        if table.empty:
            self.faults.add("files without samples", path.name)
        times = pd.to_datetime(table[0], format="ISO8601", utc=True, errors="coerce")
        has_time = times.notna().to_numpy()
        values = table.iloc[:, 1:].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
        values = np.where(np.isinf(values), np.nan, values)
        self.faults.counts["rows without a time"] += int((~has_time).sum())
        # without a data column, pandas returns the type object, for which `&` raises an error
        is_filled = table.iloc[:, 1:].notna().to_numpy(dtype=bool)
        self.faults.counts["values that are not numbers"] += int((is_filled & np.isnan(values)).sum())
        since_epoch = times[has_time] - pd.Timestamp(0, tz="UTC")
        seconds = np.asarray(since_epoch / pd.Timedelta(seconds=1), dtype=np.float64)
        order = np.argsort(seconds, kind="stable")
        return CsvTable(labels, seconds[order], values[has_time][order])


def _read_levels(lines: Iterable[bytes]) -> tuple[list[list[str]], bool]:
    """Return the cells of the rows of labels, and whether the row that ends them follows; both are consumed."""
    levels: list[list[str]] = []
    for line in lines:
        cells = _split_cells(line.decode("utf-8-sig", errors="replace"))
        if cells[0] == LAST_LEVEL:
            return levels, True
        levels.append(cells)
        if levels[0][0] != FIRST_LEVEL or len(levels) == MAX_LEVELS:
            break
    return levels, False


def _split_cells(line: str) -> list[str]:
    """Split a line of labels; a comma within quotes is part of a cell."""
    try:
        cells = next(csv.reader([line.rstrip("\r\n")], skipinitialspace=True), [""])
    except csv.Error:
        cells = line.rstrip("\r\n").split(",")
    return [cell.strip() for cell in cells] or [""]


def _get_column_labels(levels: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Return the labels of each column; an empty cell means that the metric does not have the label."""
    names = ["__name__", *(cells[0] for cells in levels[1:])]
    columns = zip(*(cells[1:] for cells in levels), strict=True)
    return [{name: cell for name, cell in zip(names, column, strict=True) if cell} for column in columns]
