"""The scorecard: one row per claim with its verdict and evidence, and what was not measured because a case failed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.claims.model import Basis, Verdict
from harness.results.runs import RunRecord


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
    measurement: str
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


FAILED_STATES = ("failed", "lost", "unreadable")


def find_unmeasured(records: Sequence[RunRecord], scores: Sequence[Score]) -> Iterator[str]:
    """Yield a line for each figure of merit and claim without a value, with the case at fault and the reason.

    A case that has not run yet is not a failure, and neither is a failed case without figures of merit if other cases
    have measured its claims.
    """
    failed = [r for r in records if r.state in FAILED_STATES]
    for record in failed:
        figures = [row["name"] for row in record.case.get("performance", ())]
        if figures or record.state == "unreadable":
            subject = ", ".join(figures) or "the whole case"
            yield f"{name_case(record)}: {subject} is not measured: the case is {describe_state(record)}"
    for record in records:
        for merit in record.figures_of_merit:
            if merit.verdict == "not measured":
                yield f"{name_case(record)}: {merit.name} is not measured: the case has no sample of it"
    for score in scores:
        case = next((r for r in failed if r.case.get("program") == score.program), None)
        if score.verdict == "not run" and case is not None:
            yield f"{score.id}: the claim is not measured: {name_case(case)} is {describe_state(case)}"


def name_case(record: RunRecord) -> str:
    """Return the names of campaign and case, `campaign/case`."""
    return f"{record.folder.parent.name}/{record.case.get('name') or record.folder.name}"


def describe_state(record: RunRecord) -> str:
    """Return the state of a case with its reason."""
    return f"{record.state} ({record.error})" if record.error else record.state
