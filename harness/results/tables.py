"""Tables with declared columns, and the tables that all experiments share.

An unknown column is an error that names the column and the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import chain
from typing import Any

import pandas as pd

from harness.protocol import checks
from harness.protocol.errors import UsageError, did_you_mean
from harness.results.runs import RunRecord
from harness.stats.intervals import Interval

RUN_COLUMNS = ("suite", "case", "id", "folder")


class ColumnError(UsageError):
    """A row has a column that is not declared for its table."""


class MissingColumn(KeyError):
    """The requested column is not in the table."""

    def __str__(self) -> str:
        return str(self.args[0])


class Table(pd.DataFrame):
    """A data frame with a name, which appears in the error for a missing column."""

    _metadata = ("table_name",)
    table_name = ""

    @property
    def _constructor(self) -> type[Table]:
        return Table

    def __getitem__(self, key: Any) -> Any:
        """Return columns or rows as a data frame does; raise MissingColumn for an unknown column."""
        try:
            return super().__getitem__(key)
        except KeyError as error:
            if not isinstance(key, str) or isinstance(error, MissingColumn):
                raise
            raise MissingColumn(describe_missing(self.table_name, key, map(str, self.columns))) from None


class Row(dict[str, Any]):
    """A row of a table, with None for missing values; the error for an unknown column names the table."""

    table_name = ""

    def __missing__(self, key: str) -> Any:
        raise MissingColumn(describe_missing(self.table_name, key, self))


class Columns:
    """The columns of one table in the order in which they are written, in named groups.

    `Columns("runs", origin="campaign case", rates="rate rate_low", rest="folder")` is a table of five columns, whose
    group `["rates"]` is `("rate", "rate_low")`.
    """

    def __init__(self, table: str, **groups: str | tuple[str, ...]) -> None:
        self.table = table
        self.groups = {k: tuple(names.split()) if isinstance(names, str) else names for k, names in groups.items()}
        self.names = tuple(chain.from_iterable(self.groups.values()))
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"table {table}: duplicate columns in {self.names}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, group: str) -> tuple[str, ...]:
        """Return the columns of a group."""
        if group not in self.groups:
            raise ColumnError(f"table {self.table}: no group of columns {group!r}{did_you_mean(group, self.groups)}")
        return self.groups[group]

    def select(self, row: Mapping[str, Any], *groups: str) -> dict[str, Any]:
        """Return the values of a row in the table's columns, or only in those of the groups."""
        names = chain.from_iterable(self[group] for group in groups) if groups else self.names
        return {name: row[name] for name in names if name in row}

    def build(self, rows: Iterable[Mapping[str, Any]]) -> Table:
        """Return a table of the rows; missing values become NaN. Raise ColumnError if a row has an unknown column."""
        rows = list(rows)
        unknown = set(chain.from_iterable(rows)).difference(self.names)
        if unknown:
            raise ColumnError(describe_missing(self.table, min(unknown), self.names))
        table = Table(rows, columns=pd.Index(self.names))
        table.table_name = self.table
        return table


def describe_missing(table: str, column: str, known: Iterable[str]) -> str:
    """Return `table ladder: no column 'speedp' (did you mean 'speedup'?)`."""
    return f"table {table or 'without a name'}: no column {column!r}{did_you_mean(column, known)}"


def interval_columns(name: str, estimate: Interval) -> dict[str, float]:
    """Return a value and its interval as the columns `name`, `name_low` and `name_high`."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def build_samples_table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row per raw sample, with the suite, case, id and folder of its run."""
    return pd.DataFrame(
        [
            {**columns, **{k: v for k, v in sample.items() if k != "event"}}
            for record in records
            for columns in [_describe_run(record)]
            for sample in record.samples
        ]
    )


def build_merits_table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row per figure of merit, with its reference and verdict."""
    names = [field.name for field in fields(checks.FigureOfMerit)]
    rows = [{**_describe_run(r), **{k: getattr(m, k) for k in names}} for r in records for m in r.figures_of_merit]
    return pd.DataFrame(rows, columns=[*RUN_COLUMNS, *names])


def _describe_run(record: RunRecord) -> dict[str, Any]:
    case = record.case
    return {"suite": case.get("suite"), "case": case.get("name"), "id": case.get("id"), "folder": record.location}
