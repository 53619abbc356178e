"""Judge claims by result tables, without writing files or drawing figures.

The basis of a verdict is the kind of its evidence: measured, stand-in, emulated or extrapolated. If the evidence cannot
decide a claim, the verdict is the one that the claim's `conditions` name, and the measured value is reported anyway.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from harness.claims.model import Basis, Claim, Condition, Paper, Verdict
from harness.claims.notes import format_note
from harness.claims.query import (
    Answer,
    Estimate,
    Refuted,
    Unanswered,
    answer_query,
    build_cases_table,
    compute_measure,
    match_rows,
)
from harness.claims.scorecard import Score, mark_previously_reproduced
from harness.experiments.tables import Results, build_results
from harness.protocol.text import sanitize_line
from harness.results.misfits import MISFIT_ERRORS, describe_misfit
from harness.results.runs import load_runs

SCORECARD = "scorecard.json"
NO_RUNS = "no run folders; run a suite first, for example `harness run ladder`"


@dataclass(frozen=True)
class Judgement:
    """The results of a folder of runs, and the verdict on every claim."""

    results: Results
    scores: list[Score]


@dataclass(frozen=True)
class _Finding:
    """The verdict on a claim, the measured value with its interval, and the folders of the runs that are evidence."""

    verdict: Verdict
    reason: str
    value: Estimate | tuple[None, None, None] = (None, None, None)
    basis: Basis | None = None
    folders: Sequence[str] = ()


def judge_folder(out: Path, papers: Mapping[str, Paper]) -> Judgement:
    """Judge every claim by the runs below out/runs, and mark the claims that an earlier report in `out` reproduced."""
    results = build_results(load_runs(out / "runs"))
    return Judgement(results, mark_previously_reproduced(judge_papers(papers, results, out), out / SCORECARD))


def collect_tables(results: Results) -> dict[str, pd.DataFrame]:
    """Return the tables that a query can read: the tables of the report, and a table of all cases."""
    return results.tables() | {"cases": build_cases_table(results.records)}


def judge_papers(papers: Mapping[str, Paper], results: Results, root: Path) -> list[Score]:
    """Return one score per claim, from the tables of the runs below root."""
    tables = collect_tables(results)
    return [
        judge_claim(claim, tables, root=root, paper=name, citation=paper.source)
        for name, paper in papers.items()
        for claim in paper.claims
    ]


def judge_claim(
    claim: Claim, tables: Mapping[str, pd.DataFrame], *, root: Path, paper: str = "", citation: str = ""
) -> Score:
    """Return the score of one claim; evidence paths are relative to root if they are below it."""
    finding = _find_verdict(claim, tables)
    value, *ends = finding.value
    has_interval = all(end is not None and math.isfinite(end) for end in ends)  # unlike the mean of a single value
    low, high = ends if has_interval else (None, None)
    return Score(
        **claim.model_dump(include={"id", "statement", "source", "measurement", "unit", "program", "suites"}),
        paper=paper,
        citation=citation,
        paper_value=claim.value,
        measured_value=value,
        ci_low=low,
        ci_high=high,
        verdict=finding.verdict,
        basis=finding.basis,
        reason=sanitize_line(finding.reason),
        evidence=[_get_log_path(folder, root) for folder in finding.folders],
    )


def _find_verdict(claim: Claim, tables: Mapping[str, pd.DataFrame]) -> _Finding:
    """Return the verdict on a claim; "not run" with the reason if the tables contain no evidence."""
    if claim.query is None:
        return _Finding("not applicable", claim.not_applicable or "")
    try:
        return _judge_answer(claim, answer_query(claim.query, tables), tables["cases"])
    except Refuted as error:
        return _Finding("incorrect", str(error), basis="measured")
    except Unanswered as error:
        hint = f"; `harness run {' '.join(claim.suites)}` decides it" if claim.suites else ""
        return _Finding("not run", f"{error}{hint}")
    except MISFIT_ERRORS as error:
        return _Finding("not run", f"cannot be judged: {describe_misfit(error)}")


def _judge_answer(claim: Claim, answer: Answer, cases: pd.DataFrame) -> _Finding:
    """Return the verdict on a claim with a measured value.

    The first unmet condition that names a verdict decides; without one, the bound of the claim decides.
    """
    consequences = [
        condition.otherwise for condition in claim.conditions if not _is_satisfied(condition, answer.rows, claim.value)
    ]
    verdict = next((consequence.verdict for consequence in consequences if consequence.verdict is not None), None)
    if verdict is None:
        if claim.is_met(answer.value, claim.value):
            verdict = "reproduced"
        elif _is_undecided(claim, answer):
            verdict = "inconclusive"
        else:
            verdict = claim.otherwise.verdict or "deviates"
            consequences = [*consequences, claim.otherwise]
    basis = next((consequence.basis for consequence in consequences if consequence.basis is not None), claim.basis)
    note = claim.note + "".join(consequence.note for consequence in consequences)
    reason = format_note(note, answer.rows, _build_note_values(claim, answer))
    return _Finding(verdict, reason, (answer.value, answer.low, answer.high), basis, _list_folders(answer.rows, cases))


def _is_satisfied(condition: Condition, rows: pd.DataFrame, paper_value: float) -> bool:
    is_within = condition.measure is None or condition.is_met(compute_measure(rows, condition.measure)[0], paper_value)
    return bool(match_rows(rows, condition.where).all()) and is_within


def _is_undecided(claim: Claim, answer: Answer) -> bool:
    return (
        answer.low is not None and answer.high is not None and claim.is_undecided(answer.low, answer.high, claim.value)
    )


def _build_note_values(claim: Claim, answer: Answer) -> dict[str, float]:
    bound = claim.get_threshold(claim.value)
    return {
        "value": answer.value,
        "low": answer.value if answer.low is None else answer.low,
        "high": answer.value if answer.high is None else answer.high,
        "paper": claim.value,
        "bound": bound,
        "percent": 100 * (answer.value / bound - 1) if bound else float("nan"),
        "times": bound / answer.value if answer.value else float("inf"),
        "groups": answer.groups,
        **{name: compute_measure(answer.rows, spec)[0] for name, spec in claim.measures.items()},
    }


def _list_folders(rows: pd.DataFrame, cases: pd.DataFrame) -> list[str]:
    """Return the folders of the runs that the rows come from, without duplicates."""
    if "folder" not in rows:
        rows = rows.merge(cases[["campaign", "case", "folder"]], on=["campaign", "case"], how="inner")
    return list(dict.fromkeys(rows["folder"].dropna()))


def _get_log_path(folder: str, root: Path) -> str:
    path = Path(folder)
    return f"{path.relative_to(root) if path.is_relative_to(root) else path}/events.jsonl"
