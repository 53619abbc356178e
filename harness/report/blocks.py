"""What a report is made of: sections of paragraphs, figures and tables, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from harness.report.figures import Figure

DASH = "\N{EN DASH}"


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


@dataclass(frozen=True)
class View:
    """A table to print: a title, column heads, rows of text and links, and a note under it."""

    title: str
    columns: list[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


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


def count(number: float, one: str, more: str = "") -> str:
    """`1 node`, `2 nodes`."""
    return f"{number:,.0f} {one if number == 1 else more or one + 's'}"
