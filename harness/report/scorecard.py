"""A verdict on each claim of the paper, with the evidence it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from harness.report.paper import Claim

Verdict = Literal["reproduced", "deviates", "inconclusive", "wrong", "not run"]
Basis = Literal["measured"]
CONFIDENCE = 0.95
LAST_STAGE = "torch_compile"


@dataclass(frozen=True)
class Score:
    """One row of the scorecard; measured_value is None where nothing was measured, its interval also for a count."""

    id: str
    statement: str
    source: str
    unit: str
    paper_value: float
    measured_value: float | None
    ci_low: float | None
    ci_high: float | None
    verdict: Verdict
    basis: Basis | None
    reason: str
    evidence: list[str]


def score(
    claims: Sequence[Claim], ladder: pd.DataFrame, root: Path, training: pd.DataFrame | None = None
) -> list[Score]:
    """Judge every claim by the ladder table, or by that of training runs; evidence paths are relative to root."""
    return [_counted(c, training, root) if c.counts else _score(c, ladder, root) for c in claims]


def _counted(claim: Claim, training: pd.DataFrame | None, root: Path) -> Score:
    """A claim on joint training, by the run with most heads; stand-ins leave it open, whatever their number."""
    joint = None if training is None else training[training["task"] == "multi-task"]
    if joint is None or joint.empty:
        return _result(claim, None, "not run", None, "no multi-task training has been run", [])
    best = joint.iloc[int(joint["judged_heads"].astype(int).argmax())]
    value, stand_ins = float(best["judged_heads" if claim.counts == "sets" else "elements"]), int(best["stand_ins"])
    where = f"{best['judged_heads']} heads trained jointly and judged on held-out structures"
    if claim.counts == "elements":
        where = f"elements in the training structures of {best['sets']} datasets"
    reproduced = value >= claim.paper_low and not stand_ins
    return _result(
        claim,
        (value, None, None),
        "reproduced" if reproduced else "inconclusive",
        "measured",
        where + (f"; {stand_ins} of the {best['sets']} datasets are stand-ins for the paper's" if stand_ins else ""),
        [_evidence(best["folder"], root)],
    )


def _evidence(folder: str, root: Path) -> str:
    """The event log of a case, from root where it lies below it."""
    path = Path(folder)
    return f"{path.relative_to(root) if path.is_relative_to(root) else path}/events.jsonl"


def _score(claim: Claim, ladder: pd.DataFrame, root: Path) -> Score:
    rows = ladder[
        (ladder["precision"] == claim.precision) & (ladder["workload"] == "random") & (ladder["stage"] == LAST_STAGE)
    ]
    if (rows["verdict"] == "WRONG").any():
        return _result(claim, None, "wrong", "measured", "the last stage does not give the baseline's numbers", [])
    usable = rows[rows["speedup"].notna() & (rows["case_state"] == "done") & (rows["coverage"] >= CONFIDENCE)]
    if usable.empty:
        why = (
            f"no complete case of six rounds ({'; '.join(rows['verdict'].unique())})"
            if len(rows)
            else f"no {claim.precision} ladder has been run"
        )
        return _result(claim, None, "not run", None, why, [])
    # The widest model is nearest to the paper's.
    best = usable.iloc[int(usable["model"].map(_width).argmax())]
    low = float(best["speedup_low"])
    high = float(best["speedup_high"])
    value = float(best["speedup"])
    where = f"{best['model']}, {best['workload']} workload, {best['device']}, {best['threads']:.0f} thread(s)"
    note = f"measured on {where}; the paper's figure is for one GPU"
    verdict: Verdict = "reproduced" if value >= claim.paper_low else "deviates"
    if value < claim.paper_low <= high:
        verdict = "inconclusive"
    reason = f"{100 * (value / claim.paper_low - 1):+.0f}% against {claim.paper_low:g}x, the paper's smallest; {note}"
    return _result(claim, (value, low, high), verdict, "measured", reason, [_evidence(best["folder"], root)])


def _width(model: str) -> int:
    digits = "".join(ch for ch in model if ch.isdigit())
    return int(digits) if digits else -1


def _result(
    claim: Claim,
    value: tuple[float, float | None, float | None] | None,
    verdict: Verdict,
    basis: Basis | None,
    reason: str,
    evidence: list[str],
) -> Score:
    measured, low, high = value if value is not None else (None, None, None)
    assert measured is None or math.isfinite(measured)
    return Score(
        id=claim.id,
        statement=claim.statement,
        source=claim.source,
        unit=claim.unit,
        paper_value=claim.paper_value,
        measured_value=measured,
        ci_low=low,
        ci_high=high,
        verdict=verdict,
        basis=basis,
        reason=reason,
        evidence=evidence,
    )
