"""Verdicts follow from the bound, the interval and the conditions of a claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.claims.evaluate import judge_claim
from harness.claims.model import Bound, Claim
from harness.claims.query import CASE_COLUMNS
from harness.claims.scorecard import Score

CLAIM: dict[str, Any] = {
    "id": "fast", "statement": "It is fast.", "source": "Table 1", "unit": "x", "value": 10, "at_least": 8,
    "measurement": "rate over rate", "program": "ladder", "suites": ["ladder"],
    "query": {"table": "t", "measure": {"column": "rate", "low": "low", "high": "high"}},
}  # fmt: skip


def judge(rate: float, low: float, high: float, **changes: Any) -> Score:
    row = {"rate": rate, "low": low, "high": high, "stand_ins": 2, "nodes": 1, "folder": "/out/runs/c/a"}
    tables = {"t": pd.DataFrame([row]), "cases": pd.DataFrame(columns=list(CASE_COLUMNS))}
    return judge_claim(Claim.model_validate(CLAIM | changes), tables, root=Path("/out"))


@pytest.mark.parametrize(
    ("values", "bound", "verdict"),
    [
        ((9, 8.5, 9.5), {"at_least": 8}, "reproduced"),
        ((9, 7, 11), {"at_least": 8}, "reproduced"),
        ((7, 6, 8), {"at_least": 8}, "inconclusive"),
        ((7, 6, 7.9), {"at_least": 8}, "deviates"),
        ((12, 11, 13), {"at_most": 10}, "deviates"),
        ((12, 9, 13), {"at_most": 10}, "inconclusive"),
        ((9, 8, 12), {"at_most": 10}, "reproduced"),
        ((10.5, 10.4, 10.6), {"within": 0.1}, "reproduced"),
        ((12, 11.5, 13), {"within": 0.1}, "deviates"),
        ((12, 10.9, 13), {"within": 0.1}, "inconclusive"),
        ((8, 7, 9.5), {"within": 0.1}, "inconclusive"),
    ],
)
def test_bound_and_interval_decide(values: tuple[float, float, float], bound: dict[str, float], verdict: str) -> None:
    score = judge(*values, **({"at_least": None} | bound))
    assert score.verdict == verdict
    assert (score.measured_value, score.ci_low, score.ci_high) == values
    assert (score.paper_value, score.basis, score.evidence) == (10, "measured", ["runs/c/a/events.jsonl"])


def test_first_unmet_condition_that_names_a_verdict_decides() -> None:
    conditions = [
        {"where": {"nodes": 1}, "otherwise": {"verdict": "deviates"}},
        {"where": {"nodes": "> 1"}, "otherwise": {"basis": "emulated", "note": "; one node"}},
        {"where": {"stand_ins": 0}, "otherwise": {"verdict": "inconclusive", "basis": "stand-in",
                                                 "note": "; {stand_ins}"}},
        {"measure": {"column": "nodes"}, "at_least": 64, "otherwise": {"verdict": "not applicable"}},
    ]  # fmt: skip
    score = judge(9, 8.5, 9.5, conditions=conditions, note="{claim.percent:+.0f}%")
    assert (score.verdict, score.basis, score.reason) == ("inconclusive", "emulated", "+12%; one node; 2")


def test_unmet_condition_without_a_verdict_changes_only_the_basis() -> None:
    score = judge(9, 8.5, 9.5, conditions=[{"where": {"stand_ins": 0}, "otherwise": {"basis": "stand-in"}}])
    assert (score.verdict, score.basis) == ("reproduced", "stand-in")


def test_value_out_of_bounds_has_the_verdict_and_note_of_the_claim() -> None:
    otherwise = {"verdict": "not applicable", "note": "; needs {claim.bound:.0f}"}
    score = judge(7, 6, 7.5, otherwise=otherwise, note="{rate:.1f}")
    assert (score.verdict, score.reason) == ("not applicable", "7.0; needs 8")
    assert judge(9, 8, 9.5, otherwise=otherwise, note="{rate:.1f}").reason == "9.0"


def test_measure_of_a_text_column_is_not_judged() -> None:
    score = judge(9, 8, 10, query={"table": "t", "measure": {"column": "folder"}})
    assert score.verdict == "not run"
    assert score.reason.startswith("cannot be judged: ")


def test_empty_bound_is_always_met() -> None:
    assert Bound().is_met(-1e300)
    assert Bound(within=0.0).get_threshold(3.0) == 3.0


def test_evidence_of_rows_without_a_folder_is_that_of_their_cases() -> None:
    cases = pd.DataFrame([{"campaign": "c", "case": "a", "folder": "/out/runs/c/1"}], columns=list(CASE_COLUMNS))
    rows = pd.DataFrame([{"campaign": "c", "case": "a", "rate": 9.0, "low": 9.0, "high": 9.0}])
    score = judge_claim(Claim.model_validate(CLAIM), {"t": rows, "cases": cases}, root=Path("/out"))
    assert score.evidence == ["runs/c/1/events.jsonl"]
