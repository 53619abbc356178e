"""The scorecard, with the verdict and the evidence for each claim, and messages on values that were not measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.claims.model import Basis, Verdict
from harness.results.runs import RunRecord


@dataclass(frozen=True)
class Score:
    """One row of the scorecard.

    Attributes:
        paper: the name of the file of claims.
        citation: the citation of the paper.
        measured_value: the measured value; None if nothing was measured.
        ci_low: the lower end of the interval; None if the value has no interval, such as a count.
        ci_high: the upper end of the interval.
        basis: the kind of evidence for the value.
        evidence: the paths of the event logs.
        program: the program whose cases are evidence.
        suites: the suites that produce the evidence.
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
    """Mark the claims that an earlier report reproduced.

    Args:
        scores: The scores.
        path: The scorecard of the earlier report; claims stay unmarked if it cannot be read.
    """
    try:
        previous = json.loads(path.read_text(encoding="utf-8"))
        reproduced = {
            (r.get("paper"), r["id"]) for r in previous if r["verdict"] == "reproduced" or r.get("reproduced_before")
        }
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        reproduced = set()
    # Scorecards of earlier versions do not name the paper, since there was only one.
    return [replace(s, reproduced_before=not reproduced.isdisjoint([(s.paper, s.id), (None, s.id)])) for s in scores]


def counts_as_failure(score: Score) -> bool:
    """Return whether the measurement contradicts a claim, or no longer reproduces one that was reproduced before."""
    return score.verdict in ("deviates", "incorrect") or (score.reproduced_before and score.verdict != "reproduced")


FAILED_STATES = ("failed", "lost", "unreadable")


def describe_unmeasured(records: Sequence[RunRecord], scores: Sequence[Score]) -> Iterator[str]:
    """Yield a line for each figure of merit and claim without a value, with the case that failed and the reason.

    A case that has not run yet is not a failure, and neither is a failed case without figures of merit if other cases
    have measured its claims.
    """
    failed = [r for r in records if r.state in FAILED_STATES]
    for record in failed:
        figures = [row["name"] for row in record.case.get("performance", ())]
        if figures or record.state == "unreadable":
            subject = ", ".join(figures) or "the whole case"
            yield f"{format_case_name(record)}: {subject} is not measured: the case is {describe_state(record)}"
    for record in records:
        for merit in record.figures_of_merit:
            if merit.verdict == "not measured":
                samples = f"only {merit.samples} of its events have a number" if merit.samples else "it has no sample"
                yield f"{format_case_name(record)}: {merit.name} is not measured: {samples}"
    for score in scores:
        case = next((r for r in failed if r.case.get("program") == score.program), None)
        if score.verdict == "not run" and case is not None:
            yield f"{score.id}: the claim is not measured: {format_case_name(case)} is {describe_state(case)}"


def format_case_name(record: RunRecord) -> str:
    """Return the names of campaign and case, `campaign/case`."""
    return f"{record.folder.parent.name}/{record.case.get('name') or record.folder.name}"


def describe_state(record: RunRecord) -> str:
    """Return the state of a case with its reason."""
    return f"{record.state} ({record.error})" if record.error else record.state
