"""What a report is made of: sections of paragraphs, figures and tables, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from harness.document.figures import Figure
from harness.protocol.text import count

DASH = "\N{EN DASH}"
MINUTE = 60.0
PERIODS = ((365.25 * 86400, "year"), (86400.0, "day"), (3600.0, "hour"), (MINUTE, "minute"))
COUNTED = {"datasets", "structures", "elements", "campaigns", "nodes", "machines", "precisions", "tasks"}


@dataclass(frozen=True)
class Link:
    """Text that leads to a file of the report."""

    text: str
    href: str

    def __str__(self) -> str:
        return self.text


def raw_records(folder: str, deep: int = 3) -> Link:
    """To a case's folder, which lies three deep in the results, or another that lies deeper."""
    place = "/".join(Path(folder).parts[-deep:])
    return Link(place.rsplit("/", 1)[-1], f"{place}/")


Cell = str | Link | tuple[Link, ...]


def as_cell(value: Any) -> Cell:
    """A value as a cell: text and links as they are, a dash for None."""
    return value if isinstance(value, (str, Link, tuple)) else DASH if value is None else str(value)


@dataclass(frozen=True)
class View:
    """A table to print: a title, column heads, rows of text and links, and a note under it."""

    title: str
    columns: list[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def __post_init__(self) -> None:
        """Show a dash where a record leaves a value open."""
        object.__setattr__(self, "rows", [[as_cell(cell) for cell in row] for row in self.rows])


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, figures and tables."""

    title: str
    anchor: str
    paragraphs: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    views: list[View] = field(default_factory=list)


def lines(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, None where there is no value."""
    return [{str(k): None if pd.isna(v) else v for k, v in row.items()} for row in table.to_dict("records")]


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """`12.3 [11.9, 12.8]`."""
    if value is None or math.isnan(value) or low is None or high is None:
        return DASH
    return f"{number(value)} [{number(low)}, {number(high)}]"


def number(value: Any, spec: str = ".3g") -> str:
    """A number as text, a dash where there is none; three digits without an exponent by default."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return DASH
    if spec == ".3g" and abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:{spec}}"


def quantity(value: float, unit: str) -> str:
    """A number with its unit as people write them: `3rd place`, `1 node`, `14 days`, `33 x`."""
    if unit == "place":
        return f"{ordinal(round(value))} place"
    if unit == "s" and abs(value) >= 2 * MINUTE:
        size, one = next((size, one) for size, one in PERIODS if abs(value) >= 2 * size)
        return count_of(value / size, one)
    if unit.endswith("s") and unit != "s" and value == 1:
        return f"1 {unit[:-1]}"
    return f"{number(value) if unit not in COUNTED else f'{value:,.10g}'} {unit}".rstrip()


def count_of(value: float, one: str) -> str:
    """`14.1 days`, with three digits."""
    text = number(value)
    return f"{text} {one}" if text == "1" else f"{text} {one}s"


def ordinal(place: int) -> str:
    """`1st`, `2nd`, `3rd`, `11th`."""
    ending = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place:,}{ending}"


def threads_of(threads: Any) -> str:
    """`1 thread`, or a dash where their number is not known."""
    return DASH if threads is None or math.isnan(threads) else count(threads, "thread")
