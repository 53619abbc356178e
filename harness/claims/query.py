"""Queries over result tables: filters, joins, and statistics of the selected rows."""

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
CASE_COLUMNS = (
    "campaign", "suite", "system", "case", "id", "program", "state", "nodes", "ranks", "hosts", "emulated", "backbone",
    "hidden_dim", "parameters", "folder",
)  # fmt: skip
# A value with the ends of its interval, which are None if there is no interval.
Estimate = tuple[float, float | None, float | None]


class Unanswered(Exception):
    """No row can answer a query; the message is the reason."""


class Refuted(Exception):
    """A row shows that the measured results are wrong; the message describes the error."""


@dataclass(frozen=True)
class Answer:
    """The value of a query with its interval, the rows that are evidence for it, and the number of groups."""

    value: float
    low: float | None
    high: float | None
    rows: pd.DataFrame
    groups: int = 0


def build_cases_table(records: list[RunRecord]) -> pd.DataFrame:
    """Return one row per readable case.

    The columns `ranks` and `hosts` are 0 if the case does not report its ranks. `emulated` means that the case ran on
    fewer hosts than nodes. `parameters` is the number of parameters of the model.
    """
    return pd.DataFrame([_describe_case(r) for r in records if r.state != "unreadable"], columns=CASE_COLUMNS)


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
        "folder": record.location,
    }


def answer_query(query: Query, tables: Mapping[str, pd.DataFrame]) -> Answer:
    """Evaluate a query.

    Raises:
        Unanswered: no row is selected, or the value is not finite.
        Refuted: a row matches the query's `incorrect`.
    """
    rows = tables[query.table]
    for join in query.join:
        rows = _join_table(rows, tables[join.table], join)
    rows = rows[match_rows(rows, query.where)]
    if rows.empty:
        raise Unanswered(query.missing_reason)
    if query.incorrect is not None and match_rows(rows, query.incorrect.where).any():
        raise Refuted(query.incorrect.note)
    complete = rows[match_rows(rows, query.complete)]
    if complete.empty:
        raise Unanswered(format_note(query.incomplete_reason, rows, {}))
    preferred = match_rows(complete, query.prefer)
    rows = complete[preferred] if preferred.any() else complete
    if query.descending is not None:
        rows = rows.sort_values(query.descending, ascending=False, kind="stable")
    if query.pick is not None:
        rows = _pick_rows(rows, query.pick)
    if query.groups is not None:
        return _answer_by_groups(rows, query.groups, query.measure)
    return _answer_from_rows(rows, query.measure)


def match_rows(rows: pd.DataFrame, conditions: Filter) -> pd.Series[bool]:
    """Return for each row whether its columns satisfy all conditions of the filter."""
    mask = pd.Series(True, index=rows.index)
    for column, condition in conditions.items():
        alternatives = condition if isinstance(condition, list) else [condition]
        mask &= np.logical_or.reduce([_match_column(rows[column], alternative) for alternative in alternatives])
    return mask


def _match_column(column: pd.Series[Any], condition: Scalar) -> pd.Series[bool]:
    if not isinstance(condition, str):
        return column == condition
    if condition in ("present", "missing"):
        return column.notna() if condition == "present" else column.isna()
    symbol, operand = split_comparison(condition)
    if symbol == "!=":
        return column.astype(str) != operand
    if symbol:
        return OPERATORS[symbol](pd.to_numeric(column), float(operand))
    if "*" in condition:
        return column.map(lambda value: fnmatch.fnmatchcase(str(value), condition)).astype(bool)
    return column == condition


def split_comparison(condition: Scalar) -> tuple[str, str]:
    """Return operator and operand of a condition such as `>= 3`; the operator is empty if the condition is a value."""
    comparison = COMPARISON.fullmatch(condition) if isinstance(condition, str) else None
    return (comparison[1], comparison[2]) if comparison else ("", str(condition))


def compute_measure(rows: pd.DataFrame, spec: Measure) -> Estimate:
    """Return a statistic of the rows, with its interval if the measure names the columns of the interval.

    Raises:
        Unanswered: the value is not finite, for example a ratio without rows.
    """
    value, low, high = _compute_statistic(rows, spec)
    if not np.isfinite(value):
        for conditions in (spec.matching, spec.against):
            if conditions and not match_rows(rows, conditions).any():
                raise Unanswered(f"no row has {', '.join(f'{name} {value}' for name, value in conditions.items())}")
        raise Unanswered(f"the {spec.statistic} of the selected rows is not a number")
    return value, low, high


def _compute_statistic(rows: pd.DataFrame, spec: Measure) -> Estimate:
    matching = match_rows(rows, spec.matching)
    if spec.statistic == "ratio":
        return _compute_ratio(rows, matching, spec)
    if spec.statistic in STATISTICS:
        return STATISTICS[spec.statistic](rows, matching, spec), None, None
    values = _select_values(rows, spec)[matching]
    if values.empty:
        return np.nan, None, None
    if spec.statistic == "value":
        first = rows[matching].iloc[0]
        low, high = (None if name is None else float(first[name]) for name in (spec.low, spec.high))
        return float(values.iloc[0]), low, high
    return float(getattr(values, spec.statistic)()), None, None


def _compute_ratio(rows: pd.DataFrame, matching: pd.Series[bool], spec: Measure) -> Estimate:
    """Return the ratio of two medians; each end of its interval is the ratio of opposite ends of their intervals."""
    against, values = match_rows(rows, spec.against), _select_values(rows, spec)
    ratio = float(values[matching].median() / values[against].median())
    if spec.low is None or spec.high is None:
        return ratio, None, None
    low, high = rows[spec.low].astype(float), rows[spec.high].astype(float)
    return (
        ratio,
        float(low[matching].median() / high[against].median()),
        float(high[matching].median() / low[against].median()),
    )


def _select_values(rows: pd.DataFrame, spec: Measure) -> pd.Series[float]:
    column = spec.column
    values = rows[column] if isinstance(column, str) else pd.Series(column, index=rows.index)
    return values.astype(float) if spec.per is None else values.astype(float) / rows[spec.per].astype(float)


def _compute_rank(rows: pd.DataFrame, matching: pd.Series[bool], spec: Measure) -> float:
    order = list(dict.fromkeys(rows[spec.column]))
    if not matching.any():
        raise Unanswered(f"the value that the claim ranks is not among {', '.join(map(str, order))}")
    return float(order.index(rows[matching][spec.column].iloc[0]) + 1)


def _fit_slope(rows: pd.DataFrame, matching: pd.Series[bool], spec: Measure) -> float:
    x = rows[matching][spec.over].to_numpy(dtype=float)
    y = _select_values(rows, spec)[matching].to_numpy(dtype=float)
    x, y = (np.log(x), np.log(y)) if spec.log else (x, y)
    return float(np.polyfit(x, y, 1)[0])


# The statistics that are not methods of a pandas series.
STATISTICS: Mapping[str, Callable[[pd.DataFrame, pd.Series[bool], Measure], float]] = {
    "count": lambda _rows, matching, _spec: float(matching.sum()),
    "fraction": lambda _rows, matching, _spec: float(matching.mean()),
    "distinct": lambda rows, matching, spec: float(rows[matching][spec.column].nunique()),
    "rank": _compute_rank,
    "slope": _fit_slope,
}


def _join_table(rows: pd.DataFrame, other: pd.DataFrame, join: Join) -> pd.DataFrame:
    """Return the rows with the joined columns, which replace columns of the same name."""
    first = other.drop_duplicates(join.on)[[*join.on, *join.columns]]
    replaced = [name for name in join.columns if name in rows]
    return rows.drop(columns=replaced).merge(first, on=join.on, how="inner")


def _pick_rows(rows: pd.DataFrame, pick: Pick) -> pd.DataFrame:
    column = rows[pick.largest or pick.smallest]
    if not pd.api.types.is_numeric_dtype(column):
        column = pd.to_numeric(column.astype(str).str.extract(FIRST_NUMBER)[0]).fillna(-1.0)
    column = column if pick.largest else -column
    if not pick.of_each:
        return rows.iloc[[int(column.to_numpy().argmax())]]
    keys = [rows[name] for name in pick.of_each]
    return rows.loc[column.groupby(keys, sort=False, dropna=False).idxmax()]


def _answer_from_rows(rows: pd.DataFrame, spec: Measure) -> Answer:
    value, low, high = compute_measure(rows, spec)
    counted = rows[match_rows(rows, spec.matching)] if spec.statistic in ("count", "distinct") else rows
    return Answer(value, low, high, rows if counted.empty else counted)


def _answer_by_groups(rows: pd.DataFrame, groups: Groups, spec: Measure) -> Answer:
    values = []
    for _, group in rows.groupby(groups.by, dropna=False):
        with contextlib.suppress(Unanswered):  # a group without a value is no evidence
            values.append((compute_measure(group, groups.measure or spec)[0], group))
    accepted = [(value, group) for value, group in values if groups.is_met(value)]
    if not values or (not accepted and groups.take in ("largest", "smallest")):
        raise Unanswered(groups.missing_reason)
    if groups.take in ("count", "fraction"):
        count = len(accepted) / (len(values) if groups.take == "fraction" else 1)
        return Answer(count, None, None, pd.concat([group for _, group in values]), len(values))
    best = (max if groups.take == "largest" else min)(value for value, _ in accepted)
    selected = [group for value, group in accepted if value == best]
    first = _answer_from_rows(selected[0], spec)
    return Answer(first.value, first.low, first.high, pd.concat(selected) if groups.ties else first.rows, len(values))
