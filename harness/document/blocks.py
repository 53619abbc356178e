"""The building blocks of the report: sections, tables, links, formats of numbers, and the printed tables of papers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import Field

from harness.protocol.text import pluralize
from harness.protocol.types import StrictModel
from harness.results.tables import Row

if TYPE_CHECKING:
    from harness.document.figures import Figure


class Table(StrictModel):
    """A table that a paper prints.

    Attributes:
        columns: The names of the columns.
        rows: The values of each row in the order of the columns, by name of the row.
        printed_speedup: The speed-up in each column, if the paper prints it.
    """

    title: str
    source: str
    columns: list[str]
    rows: dict[str, list[float]]
    printed_speedup: list[float] = Field(default=[])


class PrintedPaper(StrictModel):
    """The source and the table of the paper with which the page on the inference ladder compares."""

    source: str
    table_xv: Table


EN_DASH = "\N{EN DASH}"
MINUTE = 60.0
# The seconds in a period, and its name.
PERIODS = ((365.25 * 86400, "year"), (86400.0, "day"), (3600.0, "hour"), (MINUTE, "minute"))
# Units of counts, which are shown with all digits.
COUNT_UNITS = {"datasets", "structures", "elements", "campaigns", "nodes", "machines", "precisions", "tasks"}


@dataclass(frozen=True)
class Link:
    """Text that links to a file of the report."""

    text: str
    href: str

    def __str__(self) -> str:
        return self.text


def link_run_folder(folder: str, depth: int = 3) -> Link:
    """Return a link to a folder that is `depth` levels below the results folder, by default that of a case."""
    path = "/".join(Path(folder).parts[-depth:])
    return Link(path.rsplit("/", 1)[-1], f"{path}/")


Cell = str | Link | tuple[Link, ...]
# The header of a displayed column, and its cells: the name of a column of the table, or a function of the row.
Column = tuple[str, str | Callable[[Row], Any]]


def to_cell(value: Any) -> Cell:
    """Convert a value to a cell: text and links are unchanged, and None becomes a dash."""
    return value if isinstance(value, (str, Link, tuple)) else EN_DASH if value is None else str(value)


@dataclass(frozen=True)
class TableBlock:
    """A table of a page: its title, column headers, rows of text and links, and a note below it."""

    title: str
    columns: list[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def __post_init__(self) -> None:
        """Convert the values of all rows to cells."""
        object.__setattr__(self, "rows", [[to_cell(cell) for cell in row] for row in self.rows])


def build_block(title: str, rows: Iterable[Row], columns: Sequence[Column], note: str = "") -> TableBlock:
    """Return a table with one line per row.

    Args:
        title: The title.
        rows: The rows of a result table.
        columns: The header and the cells of each displayed column.
        note: The text below the table.
    """
    body = [[row[cell] if isinstance(cell, str) else cell(row) for _, cell in columns] for row in rows]
    return TableBlock(title, [header for header, _ in columns], body, note)


def number_cell(column: str, spec: str = ".3g", scale: float = 1.0) -> Callable[[Row], str]:
    """Return a function that formats the number of a column, multiplied by a scale."""

    def format_cell(row: Row) -> str:
        value = row[column]
        return format_number(value if value is None or scale == 1 else scale * value, spec)

    return format_cell


def duration_cell(column: str, seconds: float = 1.0) -> Callable[[Row], str]:
    """Return a function that formats a duration with its unit, such as `80 s` or `2.3 hours`.

    Args:
        column: The column.
        seconds: The seconds in a unit of the column.
    """
    return lambda row: EN_DASH if row[column] is None else format_quantity(seconds * row[column], "s")


def interval_cell(column: str, low: str = "", high: str = "") -> Callable[[Row], str]:
    """Return a function that formats a column with its interval, by default `<column>_low` and `<column>_high`."""
    ends = (low or f"{column}_low", high or f"{column}_high")
    return lambda row: format_interval(row[column], *(row[end] for end in ends))


def text_cell(column: str, default: str = EN_DASH) -> Callable[[Row], str]:
    """Return a function that formats a column as text, or as the default if it is missing, empty or 0."""
    return lambda row: str(row[column] or default)


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, figures and tables.

    Attributes:
        finding: what the section has found, in one sentence without a period, which is its heading; may be empty.
        is_error: whether the section only contains the reason why a page cannot be shown.
    """

    title: str
    anchor: str
    paragraphs: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[TableBlock] = field(default_factory=list)
    is_error: bool = False
    finding: str = ""


def list_rows(table: pd.DataFrame) -> list[Row]:
    """Return the rows of a table, with None for missing values.

    Looking up an unknown column in a row raises MissingColumn, which names the table.
    """
    columns = {
        str(name): [
            None if is_missing else value for value, is_missing in zip(values.tolist(), values.isna(), strict=True)
        ]
        for name, values in table.items()
    }
    rows = [Row(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for row in rows:
        row.table_name = getattr(table, "table_name", "")
    return rows


def select_campaign(table: pd.DataFrame, campaign: str) -> pd.DataFrame:
    """Return the rows of one campaign."""
    return table[table["campaign"] == campaign]


def label_cases(cases: Iterable[str], titles: Iterable[str]) -> dict[str, str]:
    """Return a label for each case: its title, followed by its name in brackets if cases share the title."""
    by_case = dict(zip(cases, titles, strict=True))
    counts = Counter(by_case.values())
    return {case: title if counts[title] == 1 else f"{title} ({case})" for case, title in by_case.items()}


def describe_reasons(table: pd.DataFrame, column: str, text: str, noun: str) -> list[str]:
    """Return a sentence for each reason in a column, with its number of rows: `Not compiled, 2 runs: no compiler.`."""
    groups = table[table[column].notna()].groupby(column)
    return [f"{text}, {pluralize(len(rows), noun)}: {reason}." for reason, rows in groups]


def format_interval(value: float | None, low: float | None, high: float | None) -> str:
    """Return `12.3 [11.9, 12.8]`, or a dash if a number is missing."""
    if value is None or math.isnan(value) or low is None or high is None:
        return EN_DASH
    return f"{format_number(value)} [{format_number(low)}, {format_number(high)}]"


def format_number(value: Any, spec: str = ".3g") -> str:
    """Return a number as text, by default with three digits and no exponent, or a dash if it is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return EN_DASH
    if spec == ".3g" and abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:{spec}}"


def format_range(values: pd.Series[Any], spec: str = ".3g") -> str:
    """Return the range of values as text: `0.91 to 0.94`, or one number or dash if both ends read the same."""
    low, high = format_number(float(values.min()), spec), format_number(float(values.max()), spec)
    return low if low == high else f"{low} to {high}"


def format_quantity(value: float, unit: str) -> str:
    """Return a number with its unit: `rank 3`, `1 node`, `14 days`, `33 x`."""
    if unit == "rank":
        return f"rank {value:g}"
    if unit == "s" and abs(value) >= 2 * MINUTE:
        size, name = next((size, name) for size, name in PERIODS if abs(value) >= 2 * size)
        return f"{format_number(value / size)} {name}s"
    if unit.endswith("s") and unit != "s" and value == 1:
        return f"1 {unit[:-1]}"
    return f"{format_number(value) if unit not in COUNT_UNITS else f'{value:,.10g}'} {unit}".rstrip()


def format_threads(threads: Any) -> str:
    """Return `1 thread`, or a dash if the number is unknown."""
    return EN_DASH if threads is None or math.isnan(threads) else pluralize(threads, "thread")
