"""Queries over result tables: filters, joins, and the statistics of the rows that are left."""

from __future__ import annotations

import contextlib
import fnmatch
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from harness.claims.model import Filter, Groups, Join, Measure, Pick, Query, Scalar
from harness.claims.notes import format_note
from harness.results.runs import RunRecord

COMPARISON = re.compile(r"(!=|<=|>=|<|>)\s*(.+)")
OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
FIRST_NUMBER = r"(\d+(?:\.\d+)?)"
CASES = (
    "campaign", "suite", "system", "case", "id", "program", "state", "nodes", "ranks", "hosts", "emulated", "backbone",
    "hidden_dim", "parameters", "folder",
)  # fmt: skip
Interval = tuple[float, float | None, float | None]


class Unanswered(Exception):
    """No row is left that could answer a query; the message says why."""


class Refuted(Exception):
    """A row shows that the evidence itself is incorrect; the message says how."""


@dataclass(frozen=True)
class Answer:
    """The value of a query with its interval, the rows it rests on, and the number of groups that it was taken over."""

    value: float
    low: float | None
    high: float | None
    rows: pd.DataFrame
    groups: int = 0


def build_cases_table(records: list[RunRecord]) -> pd.DataFrame:
    """Return a row a readable case; ranks and hosts are 0 where the case does not name them.

    emulated: whether fewer hosts than nodes took part, of those that are known. parameters: of the model.
    """
    return pd.DataFrame([_describe_case(r) for r in records if r.state != "unreadable"], columns=CASES)


def _describe_case(record: RunRecord) -> dict[str, Any]:
    ranks = record.facts.get("ranks", ())
    nodes, hosts = int(record.case.get("nodes", 1)), len({rank["host"] for rank in ranks})
    model = record.facts.get("model") or {}
    return {
        "campaign": record.folder.parent.name,
        "case": record.case.get("name"),
        **{key: record.case.get(key) for key in ("suite", "system", "id", "program")},
        "state": record.state,
        "nodes": nodes,
        "ranks": len(ranks),
        "hosts": hosts,
        "emulated": 0 < hosts < nodes,
        **{key: model.get("config", {}).get(key) for key in ("backbone", "hidden_dim")},
        "parameters": model.get("parameters"),
        "folder": str(record.folder),
    }


def answer(query: Query, tables: Mapping[str, pd.DataFrame]) -> Answer:
    """Evaluate a query.

    Raises:
        Unanswered: no row is left.
        Refuted: a row matches the query's `incorrect`.
    """
    rows = tables[query.table]
    for join in query.join:
        rows = _join(rows, tables[join.table], join)
    rows = rows[matches(rows, query.where)]
    if rows.empty:
        raise Unanswered(query.missing)
    if query.incorrect is not None and matches(rows, query.incorrect.where).any():
        raise Refuted(query.incorrect.note)
    about, rows = rows, rows[matches(rows, query.complete)]
    if rows.empty:
        raise Unanswered(format_note(query.incomplete, about, {}))
    preferred = matches(rows, query.prefer)
    rows = rows[preferred] if preferred.any() else rows
    if query.descending is not None:
        rows = rows.sort_values(query.descending, ascending=False, kind="stable")
    if query.pick is not None:
        rows = _pick(rows, query.pick)
    if query.groups is not None:
        return _answer_by_groups(rows, query.groups, query.measure)
    return _answer(rows, query.measure)


def matches(rows: pd.DataFrame, wanted: Filter) -> pd.Series[bool]:
    """Return for each row whether all its columns are as the filter wants them."""
    mask = pd.Series(True, index=rows.index)
    for column, value in wanted.items():
        values = value if isinstance(value, list) else [value]
        mask &= np.logical_or.reduce([_matches(rows[column], v) for v in values])
    return mask


def _matches(column: pd.Series[Any], wanted: Scalar) -> pd.Series[bool]:
    if not isinstance(wanted, str):
        return column == wanted
    if wanted in ("present", "missing"):
        return column.notna() if wanted == "present" else column.isna()
    sign, text = split_comparison(wanted)
    if sign == "!=":
        return column.astype(str) != text
    if sign:
        return OPERATORS[sign](pd.to_numeric(column), float(text))
    if "*" in wanted:
        return column.map(lambda value: fnmatch.fnmatchcase(str(value), wanted)).astype(bool)
    return column == wanted


def split_comparison(wanted: Scalar) -> tuple[str, str]:
    """Return the sign and the other side of text such as `>= 3`; no sign where it is none."""
    comparison = COMPARISON.fullmatch(wanted) if isinstance(wanted, str) else None
    return (comparison[1], comparison[2]) if comparison else ("", str(wanted))


def measure(rows: pd.DataFrame, wanted: Measure) -> Interval:
    """Return a statistic of the rows, with its interval where the measure names its columns.

    Raises Unanswered where it is not a number, as a ratio without rows is.
    """
    value, low, high = _measure(rows, wanted)
    if not np.isfinite(value):
        raise Unanswered(f"the {wanted.statistic} of the selected rows is not a number")
    return value, low, high


def _measure(rows: pd.DataFrame, wanted: Measure) -> Interval:
    matching = matches(rows, wanted.matching)
    if wanted.statistic == "ratio":
        return _measure_ratio(rows, matching, wanted)
    if wanted.statistic in SPECIAL:
        return SPECIAL[wanted.statistic](rows, matching, wanted), None, None
    values = _values(rows, wanted)[matching]
    if values.empty:
        return np.nan, None, None
    if wanted.statistic == "value":
        first = rows[matching].iloc[0]
        low, high = (None if name is None else float(first[name]) for name in (wanted.low, wanted.high))
        return float(values.iloc[0]), low, high
    return float(getattr(values, wanted.statistic)()), None, None


def _measure_ratio(rows: pd.DataFrame, matching: pd.Series[bool], wanted: Measure) -> Interval:
    """Return the ratio of two medians; its interval is at most as wide as that from the ends of theirs."""
    against, values = matches(rows, wanted.against), _values(rows, wanted)
    ratio = float(values[matching].median() / values[against].median())
    if wanted.low is None or wanted.high is None:
        return ratio, None, None
    low, high = rows[wanted.low].astype(float), rows[wanted.high].astype(float)
    return (
        ratio,
        float(low[matching].median() / high[against].median()),
        float(high[matching].median() / low[against].median()),
    )


def _values(rows: pd.DataFrame, wanted: Measure) -> pd.Series[float]:
    column = wanted.column
    values = rows[column] if isinstance(column, str) else pd.Series(column, index=rows.index)
    return values.astype(float) if wanted.per is None else values.astype(float) / rows[wanted.per].astype(float)


def _rank(rows: pd.DataFrame, matching: pd.Series[bool], wanted: Measure) -> float:
    order = list(dict.fromkeys(rows[wanted.column]))
    if not matching.any():
        raise Unanswered(f"none of {', '.join(map(str, order))} is the one that the claim ranks")
    return float(order.index(rows[matching][wanted.column].iloc[0]) + 1)


def _slope(rows: pd.DataFrame, matching: pd.Series[bool], wanted: Measure) -> float:
    x = rows[matching][wanted.over].to_numpy(dtype=float)
    y = _values(rows, wanted)[matching].to_numpy(dtype=float)
    x, y = (np.log(x), np.log(y)) if wanted.log else (x, y)
    return float(np.polyfit(x, y, 1)[0])


SPECIAL: Mapping[str, Callable[[pd.DataFrame, pd.Series[bool], Measure], float]] = {
    "count": lambda _rows, matching, _wanted: float(matching.sum()),
    "share": lambda _rows, matching, _wanted: float(matching.mean()),
    "distinct": lambda rows, matching, wanted: float(rows[matching][wanted.column].nunique()),
    "rank": _rank,
    "slope": _slope,
}


def _join(rows: pd.DataFrame, other: pd.DataFrame, join: Join) -> pd.DataFrame:
    first = other.drop_duplicates(join.on)[[*join.on, *join.columns]]
    clear = rows.drop(columns=[name for name in join.columns if name in rows])
    return clear.merge(first, on=join.on, how="inner")


def _pick(rows: pd.DataFrame, pick: Pick) -> pd.DataFrame:
    column = rows[pick.largest or pick.smallest]
    if not pd.api.types.is_numeric_dtype(column):
        column = pd.to_numeric(column.astype(str).str.extract(FIRST_NUMBER)[0]).fillna(-1.0)
    column = column if pick.largest else -column
    if not pick.of_each:
        return rows.iloc[[int(column.to_numpy().argmax())]]
    keys = [rows[name] for name in pick.of_each]
    return rows.loc[column.groupby(keys, sort=False, dropna=False).idxmax()]


def _answer(rows: pd.DataFrame, wanted: Measure) -> Answer:
    value, low, high = measure(rows, wanted)
    counted = rows[matches(rows, wanted.matching)] if wanted.statistic in ("count", "distinct") else rows
    return Answer(value, low, high, rows if counted.empty else counted)


def _answer_by_groups(rows: pd.DataFrame, groups: Groups, wanted: Measure) -> Answer:
    values = []
    for _, group in rows.groupby(groups.by, dropna=False):
        with contextlib.suppress(Unanswered):  # a group without a number says nothing about the claim
            values.append((measure(group, groups.measure or wanted)[0], group))
    within = [(value, group) for value, group in values if groups.is_met(value)]
    if not values or (not within and groups.take in ("largest", "smallest")):
        raise Unanswered(groups.missing)
    if groups.take in ("count", "share"):
        count = len(within) / (len(values) if groups.take == "share" else 1)
        return Answer(count, None, None, pd.concat([group for _, group in values]), len(values))
    best = (max if groups.take == "largest" else min)(value for value, _ in within)
    chosen = [group for value, group in within if value == best]
    first = _answer(chosen[0], wanted)
    return Answer(first.value, first.low, first.high, pd.concat(chosen) if groups.ties else first.rows, len(values))
