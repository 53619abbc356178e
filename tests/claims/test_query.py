"""The filters, statistics and groups of queries agree with plain arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.claims.model import Measure, Query
from harness.claims.notes import check_fields, format_note
from harness.claims.query import Refuted, Unanswered, answer_query, compute_measure, match_rows

ROWS = pd.DataFrame(
    {
        "head": ["a", "a", "b", "b", "c", "c"],
        "model": ["painn", "schnet", "painn", "schnet", "painn", "schnet"],
        "error": [1.0, 2.0, 4.0, 3.0, 5.0, 10.0],
        "low": [0.9, 1.8, 3.6, 2.7, 4.5, 9.0],
        "high": [1.1, 2.2, 4.4, 3.3, 5.5, 11.0],
        "width": ["width 64", "width 337", "width 128", "width 9", "width 64", "unknown"],
        "ranks": [1, 2, 4, 8, 16, 32],
        "data_origin": ["stand-in for a", "official a", None, "sample of b", "stand-in for c", "x"],
        "campaign": "c",
        "case": "case",
    }
)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"head": "a"}, [0, 1]),
        ({"head": ["a", "b"], "model": "painn"}, [0, 2]),
        ({"error": "> 3"}, [2, 4, 5]),
        ({"error": ">= 3", "ranks": "<= 8"}, [2, 3]),
        ({"head": "!= a"}, [2, 3, 4, 5]),
        ({"data_origin": "stand-in*"}, [0, 4]),
        ({"data_origin": "missing"}, [2]),
        ({"data_origin": "present"}, [0, 1, 3, 4, 5]),
        ({"data_origin": ["missing", "official*"]}, [1, 2]),
        ({}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_filter_selects_rows(conditions: dict[str, Any], expected: list[int]) -> None:
    assert np.flatnonzero(match_rows(ROWS, conditions)).tolist() == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"column": "error"}, 1.0),
        ({"statistic": "max", "column": "error"}, 10.0),
        ({"statistic": "min", "column": "error", "matching": {"model": "schnet"}}, 2.0),
        ({"statistic": "mean", "column": "error"}, 25 / 6),
        ({"statistic": "median", "column": "error"}, 3.5),
        ({"statistic": "sum", "column": "ranks"}, 63),
        ({"statistic": "count"}, 6),
        ({"statistic": "count", "matching": {"error": "< 4"}}, 3),
        ({"statistic": "distinct", "column": "head", "matching": {"error": "< 4"}}, 2),
        ({"statistic": "fraction", "matching": {"model": "painn"}}, 0.5),
        ({"statistic": "rank", "column": "head", "matching": {"head": "b"}}, 2),
        ({"statistic": "slope", "column": "ranks", "over": "ranks"}, 1.0),
        ({"statistic": "slope", "column": "ranks", "over": "ranks", "log": True}, 1.0),
        ({"column": 12.0, "per": "error", "matching": {"head": "b"}}, 3.0),
    ],
)
def test_statistic_of_rows_is_computed(options: dict[str, Any], expected: float) -> None:
    assert compute_measure(ROWS, Measure(**options))[0] == pytest.approx(expected)


def test_slope_of_logarithms_is_the_exponent() -> None:
    rows = pd.DataFrame({"ranks": [1, 2, 4, 8], "rate": [3.0 * n**0.9 for n in (1, 2, 4, 8)]})
    value, _, _ = compute_measure(rows, Measure(statistic="slope", column="rate", over="ranks", log=True))
    assert value == pytest.approx(0.9)


def test_interval_of_a_ratio_combines_the_ends_of_both_intervals() -> None:
    ratio = Measure(
        statistic="ratio", column="error", low="low", high="high", matching={"model": "painn"},
        against={"model": "schnet"},
    )  # fmt: skip
    value, low, high = compute_measure(ROWS[:2], ratio)
    assert (value, low, high) == pytest.approx((0.5, 0.9 / 2.2, 1.1 / 1.8))


def test_value_has_the_interval_of_its_row() -> None:
    assert compute_measure(ROWS, Measure(column="error", low="low", high="high")) == (1.0, 0.9, 1.1)


@pytest.mark.parametrize(
    ("groups", "expected", "heads"),
    [
        ({"take": "count", "at_most": 1.0}, 2.0, ["a", "b", "c"]),
        ({"take": "fraction", "at_most": 1.0}, 2 / 3, ["a", "b", "c"]),
        ({"take": "largest"}, 4 / 3, ["b"]),
        ({"take": "smallest"}, 0.5, ["a"]),
        ({"take": "smallest", "ties": True}, 0.5, ["a", "c"]),
        ({"take": "smallest", "at_least": 0.6}, 4 / 3, ["b"]),
    ],
)
def test_groups_are_counted_or_selected_by_their_measure(
    groups: dict[str, Any], expected: float, heads: list[str]
) -> None:
    query = Query.model_validate(
        {
            "table": "t",
            "groups": {"by": ["head"], **groups},
            "measure": {
                "statistic": "ratio", "column": "error", "matching": {"model": "painn"}, "against": {"model": "schnet"},
            },
        }
    )  # fmt: skip
    result = answer_query(query, {"t": ROWS})
    assert result.value == pytest.approx(expected)
    assert list(dict.fromkeys(result.rows["head"])) == heads
    assert result.groups == 3


def test_group_without_a_number_is_left_out() -> None:
    query = Query.model_validate(
        {
            "table": "t",
            "groups": {"by": ["head"], "take": "fraction", "at_most": 1.0},
            "measure": {
                "statistic": "ratio", "column": "error", "matching": {"model": "painn"}, "against": {"model": "schnet"},
            },
        }
    )  # fmt: skip
    result = answer_query(query, {"t": ROWS[:5]})
    assert (result.value, result.groups) == (0.5, 2)


@pytest.mark.parametrize(
    ("pick", "expected"),
    [
        ({"largest": "error"}, [5]),
        ({"smallest": "error"}, [0]),
        ({"largest": "width"}, [1]),
        ({"largest": "error", "of_each": ["head"]}, [1, 2, 5]),
    ],
)
def test_pick_selects_the_row_of_the_largest_or_smallest_number(pick: dict[str, Any], expected: list[int]) -> None:
    query = Query.model_validate({"table": "t", "pick": pick, "measure": {"statistic": "count"}})
    assert answer_query(query, {"t": ROWS}).rows.index.tolist() == expected


def test_join_adds_columns_of_another_table() -> None:
    other = pd.DataFrame({"head": ["a", "c", "c"], "label": [1, 2, 3]})
    query = Query.model_validate(
        {
            "table": "t",
            "join": [{"table": "o", "on": ["head"], "columns": ["label"]}],
            "measure": {"statistic": "sum", "column": "label"},
        }
    )
    assert answer_query(query, {"t": ROWS, "o": other}).value == 1 + 1 + 2 + 2


def test_only_preferred_rows_are_used_if_there_are_any() -> None:
    for head, expected in (("b", 7.0), ("none", 25.0)):
        query = Query.model_validate(
            {"table": "t", "prefer": {"head": head}, "measure": {"statistic": "sum", "column": "error"}}
        )
        assert answer_query(query, {"t": ROWS}).value == expected


def test_reason_names_the_filter_that_leaves_no_row() -> None:
    def reason(**parts: Any) -> str:
        query = {
            "table": "t",
            "missing_reason": "no row",
            "incomplete_reason": "only {model.list}",
            "measure": {"column": "error"},
        }
        with pytest.raises(Unanswered) as caught:
            answer_query(Query.model_validate(query | parts), {"t": ROWS})
        return str(caught.value)

    assert reason(where={"head": "z"}) == "no row"
    assert reason(where={"head": "a"}, complete={"error": "> 5"}) == "only painn, schnet"
    assert reason(measure={"column": "error", "matching": {"head": "z"}}) == "no row has head z"


def test_incorrect_row_refutes_the_claim() -> None:
    parts = {"table": "t", "incorrect": {"where": {"error": "> 9"}, "note": "too large"}}
    with pytest.raises(Refuted, match="too large"):
        answer_query(Query.model_validate(parts | {"measure": {"column": "error"}}), {"t": ROWS})
    query = Query.model_validate(parts | {"where": {"head": "a"}, "measure": {"column": "error"}})
    assert answer_query(query, {"t": ROWS}).value == 1.0


def test_note_is_formatted_from_rows_and_numbers() -> None:
    text = "{head}, {ranks.sum:count rank}, {model.list}, {error:.2f}, {ranks:is|are}, {claim.percent:+.0f}%, {{}}"
    assert format_note(text, ROWS, {"percent": 12.4}) == "a, 63 ranks, painn, schnet, 1.00, is, +12%, {}"
    assert format_note("{ranks:count rank}", ROWS[1:], {}) == "2 ranks"
    assert format_note("{ranks:count search|searches}", ROWS[1:], {}) == "2 searches"
    assert (
        format_note("{ranks:count rank}, {ranks}", ROWS.assign(ranks=None), {}) == "an unknown number of ranks, unknown"
    )


def test_unknown_fields_of_a_note_are_named() -> None:
    columns = list(ROWS.columns)
    (message,) = check_fields("{modle}", columns)
    assert message == "unknown column 'modle' (did you mean 'model'?)"
    (message,) = check_fields("{claim.percnt}", columns)
    assert "did you mean 'percent'?" in message
    (message,) = check_fields("{error.summ}", columns)
    assert "did you mean 'sum'?" in message
    (message,) = check_fields("{error", columns)
    assert "write {{ and }} for braces" in message
    assert not list(check_fields("{claim.better}", columns, ["better"]))


def test_non_finite_measure_is_unanswered() -> None:
    with pytest.raises(Unanswered):
        compute_measure(ROWS.assign(error=math.nan), Measure(column="error"))
