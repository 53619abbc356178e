"""Tables have declared columns in named groups, and errors name the table and the column."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from harness.document.blocks import build_block, list_rows, number_cell
from harness.results.tables import ColumnError, Columns, MissingColumn, interval_columns
from harness.stats.intervals import compute_median_interval

RUNS = Columns("runs", origin="campaign case", rate="rate rate_low rate_high", states=("done", "not finite"))


def test_columns_keep_order_and_groups() -> None:
    assert list(RUNS) == ["campaign", "case", "rate", "rate_low", "rate_high", "done", "not finite"]
    assert RUNS["rate"] == ("rate", "rate_low", "rate_high")
    assert RUNS.select({"case": "a", "rate": 1.0, "other": 2}) == {"case": "a", "rate": 1.0}
    assert RUNS.select({"case": "a", "rate": 1.0}, "origin") == {"case": "a"}


def test_duplicate_column_is_refused() -> None:
    with pytest.raises(ValueError, match="table runs: duplicate columns"):
        Columns("runs", first="case rate", second="rate")


def test_build_fills_missing_values_and_refuses_other_columns() -> None:
    table = RUNS.build([{"case": "a", "rate": 1.0}, {"case": "b"}])
    assert list(table.columns) == list(RUNS)
    assert math.isnan(table["rate"].iloc[1])
    with pytest.raises(ColumnError, match=r"^table runs: no column 'raet' \(did you mean 'rate'\?\)$"):
        RUNS.build([{"case": "a"}, {"raet": 1.0}])


def test_misspelt_group_is_named() -> None:
    with pytest.raises(ColumnError, match=r"^table runs: no group of columns 'rates' \(did you mean 'rate'\?\)$"):
        RUNS["rates"]


@pytest.mark.parametrize("derive", ["filter", "group", "assign", "sort"])
def test_misspelt_column_of_derived_table_is_named(derive: str) -> None:
    table = RUNS.build([{"campaign": "x", "case": "a", "rate": 1.0}, {"campaign": "x", "case": "b", "rate": 2.0}])
    derived: pd.DataFrame = {
        "filter": table[table["rate"] > 1],
        "group": next(group for _, group in table.groupby("campaign")),
        "assign": table.assign(note=""),
        "sort": table.sort_values("rate"),
    }[derive]
    with pytest.raises(MissingColumn, match=r"^table runs: no column 'raet' \(did you mean 'rate'\?\)$"):
        derived["raet"]
    with pytest.raises(MissingColumn, match="table runs: no column 'raet'"):
        build_block("Runs", list_rows(derived), [("rate", number_cell("raet"))])


def test_rows_have_none_for_missing_values() -> None:
    (row,) = list_rows(RUNS.build([{"case": "a", "rate": math.nan}]))
    assert row["case"] == "a"
    assert row["rate"] is None
    assert row["campaign"] is None


def test_interval_columns_contain_the_value_and_both_ends() -> None:
    columns = interval_columns("rate", compute_median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert columns == {"rate": 3.5, "rate_low": 1.0, "rate_high": 6.0}
