"""Notes on the evidence: text with fields such as `{device}`, `{trials.sum:count trial}` and `{claim.percent:+.0f}`.

A field is the value of a column in the first row, a statistic of the column, or a number of the claim. A format is one
of Python's, or `count trial`, which gives `1 trial` and `2 trials`, or `is a set|are sets`, a choice by the number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from string import Formatter
from typing import Any

import pandas as pd

from harness.protocol.errors import did_you_mean
from harness.protocol.text import pluralize

STATISTICS: Mapping[str, Callable[[pd.Series[Any]], Any]] = {
    "max": lambda column: column.max(),
    "min": lambda column: column.min(),
    "mean": lambda column: column.mean(),
    "median": lambda column: column.median(),
    "sum": lambda column: column.sum(),
    "count": len,
    "distinct": lambda column: column.nunique(),
    "list": lambda column: ", ".join(dict.fromkeys(map(str, column))),
}
CLAIM = "claim"
# Numbers of a claim. percent: relative difference of the value from the bound; times: the bound divided by the value;
# groups: the number of groups.
NUMBERS = ("value", "low", "high", "paper", "bound", "percent", "times", "groups")
SPEC = re.compile(r"[+]?,?(\.\d)?[defg%]?")
_FORMATTER = Formatter()


def format_note(text: str, rows: pd.DataFrame, numbers: Mapping[str, float]) -> str:
    """Return the text with its fields filled in from the rows and from the numbers of the claim."""
    parts = []
    for literal, name, spec, _ in _FORMATTER.parse(text):
        parts.append(literal)
        if name is not None:
            parts.append(_format(_look_up(name, rows, numbers), spec or ""))
    return "".join(parts)


def _look_up(name: str, rows: pd.DataFrame, numbers: Mapping[str, float]) -> Any:
    column, _, statistic = name.partition(".")
    if column == CLAIM:
        return numbers[statistic]
    return STATISTICS[statistic](rows[column]) if statistic else rows[column].iloc[0]


def _format(value: Any, spec: str) -> str:
    singular, _, plural = spec.removeprefix("count ").partition("|")
    if pd.isna(value):
        return f"an unknown number of {plural or singular + 's'}" if spec.startswith("count ") else "unknown"
    if spec.startswith("count "):
        return pluralize(value, singular, plural)
    if "|" in spec:
        return spec.split("|")[0 if value == 1 else 1]
    return format(value, spec)


def check_fields(text: str, columns: Collection[str], numbers: Collection[str] = ()) -> Iterator[str]:
    """Check the fields of a note, and yield a message for each mistake.

    Args:
        text: The text of a note.
        columns: The columns of the rows.
        numbers: The names of the claim's additional measures.
    """
    numbers = [*NUMBERS, *numbers]
    try:
        fields = [
            (name, spec or "", conversion) for _, name, spec, conversion in _FORMATTER.parse(text) if name is not None
        ]
    except ValueError as error:
        yield f"{error} (write {{{{ and }}}} for braces)"
        return
    for name, spec, conversion in fields:
        if conversion or not (SPEC.fullmatch(spec) or spec.startswith("count ") or "|" in spec):
            yield f"unknown format {spec or '!' + str(conversion)!r} (expected for example .2f, +.0f, ',.0f' or .3g)"
        column, dot, statistic = name.partition(".")
        if column == CLAIM:
            if statistic not in numbers:
                yield f"unknown number of the claim {statistic!r}{did_you_mean(statistic, numbers)}"
        elif column not in columns:
            yield f"unknown column {column!r}{did_you_mean(column, columns)}"
        elif dot and statistic not in STATISTICS:
            yield f"unknown statistic {statistic!r}{did_you_mean(statistic, STATISTICS)}"
