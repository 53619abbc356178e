"""The scorecard: one row per claim, with the verdict and the evidence that it rests on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.claims.model import Basis, Verdict


@dataclass(frozen=True)
class Score:
    """One row of the scorecard; measured_value is None where nothing was measured, its interval also for a count.

    Attributes:
        paper: the name of the file of claims.
        citation: the citation of the paper.
        basis: the kind of evidence that the value rests on.
        evidence: the paths of event logs.
        program: the program whose cases decide.
        suites: the suites to run for a decision.
        reproduced_before: whether an earlier report on these runs, or on some of them, reproduced the claim.
    """

    id: str
    paper: str
    citation: str
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
    program: str
    suites: list[str]
    reproduced_before: bool = False


def mark_previously_reproduced(scores: Sequence[Score], path: Path) -> list[Score]:
    """Return the scores, marked where the scorecard at the path, of an earlier report, has the claim as reproduced."""
    try:
        previous = json.loads(path.read_text(encoding="utf-8"))
        reproduced = {
            (r.get("paper"), r["id"]) for r in previous if r["verdict"] == "reproduced" or r.get("reproduced_before")
        }
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        reproduced = set()
    # Scorecards of earlier versions, which knew only one paper, do not name it.
    return [replace(s, reproduced_before=not reproduced.isdisjoint([(s.paper, s.id), (None, s.id)])) for s in scores]


def counts_as_failure(score: Score) -> bool:
    """Return whether the measurement contradicts a claim, or no longer reproduces one that was reproduced before."""
    return score.verdict in ("deviates", "incorrect") or (score.reproduced_before and score.verdict != "reproduced")
