"""The scorecard: a row a claim, with its verdict and the evidence that it rests on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.claims.model import Basis, Verdict


@dataclass(frozen=True)
class Score:
    """One row of the scorecard; measured_value is None where nothing was measured, its interval also for a count.

    paper: the name of the file of claims. citation: of the paper. basis: what the value rests on. evidence: event logs.
    program, suites: whose cases decide, and what to run for them. reproduced_before: whether these runs, or fewer of
    them, once reproduced the claim.
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


def remember(scores: Sequence[Score], path: Path) -> list[Score]:
    """Return the rows, with what the scorecard written before says of claims that were reproduced."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        reproduced = {
            (r.get("paper"), r["id"]) for r in before if r["verdict"] == "reproduced" or r.get("reproduced_before")
        }
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        reproduced = set()
    # Scorecards of one paper alone do not name it.
    return [replace(s, reproduced_before=not reproduced.isdisjoint([(s.paper, s.id), (None, s.id)])) for s in scores]


def is_off(score: Score) -> bool:
    """Return whether a claim was measured and is not borne out, or once was and no longer is."""
    return score.verdict in ("deviates", "incorrect") or (score.reproduced_before and score.verdict != "reproduced")
