"""A verdict on each claim of the paper, with the evidence it rests on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from harness.document.paper import Claim

# inconclusive: measured, and neither borne out nor refuted; wrong: fast, but not with the right numbers
Verdict = Literal["reproduced", "deviates", "inconclusive", "wrong", "projected", "out of reach here", "not run"]
Basis = Literal["measured", "stand-in", "emulated", "projected"]
Value = tuple[float, float | None, float | None]


@dataclass(frozen=True)
class Score:
    """One row of the scorecard; measured_value is None where nothing was measured, its interval also for a count.

    basis: what the value rests on. reproduced_before: whether these runs, or fewer of them, once reproduced the claim.
    """

    id: str
    statement: str
    source: str
    how: str
    unit: str
    paper_value: float
    measured_value: float | None
    ci_low: float | None
    ci_high: float | None
    verdict: Verdict
    basis: Basis | None
    reason: str
    evidence: list[str]
    reproduced_before: bool = False


@dataclass(frozen=True)
class Found:
    """What a judge found: the value with its interval, if there is one, and the folders of the cases it rests on."""

    verdict: Verdict
    reason: str
    value: Value | None = None
    basis: Basis | None = None
    folders: Sequence[str] = ()


def scored(claim: Claim, found: Found, root: Path) -> Score:
    """The row of a claim; evidence paths are relative to root where they lie below it."""
    measured, low, high = found.value if found.value is not None else (None, None, None)
    assert measured is None or math.isfinite(measured)
    return Score(
        id=claim.id,
        statement=claim.statement,
        source=claim.source,
        how=claim.how,
        unit=claim.unit,
        paper_value=claim.paper_value,
        measured_value=measured,
        ci_low=low,
        ci_high=high,
        verdict=found.verdict,
        basis=found.basis,
        reason=found.reason,
        evidence=[_evidence(folder, root) for folder in found.folders],
    )


def remembered(scores: Sequence[Score], path: Path) -> list[Score]:
    """The rows, with what the scorecard written before says of claims that were reproduced."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        held = {r["id"] for r in before if r["verdict"] == "reproduced" or r.get("reproduced_before")}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        held = set()
    return [replace(s, reproduced_before=s.id in held) for s in scores]


def is_off(score: Score) -> bool:
    """Whether a claim was measured and is not borne out, or once was and no longer is."""
    return score.verdict in ("deviates", "wrong") or (score.reproduced_before and score.verdict != "reproduced")


def _evidence(folder: str, root: Path) -> str:
    """The event log of a case."""
    path = Path(folder)
    return f"{path.relative_to(root) if path.is_relative_to(root) else path}/events.jsonl"
