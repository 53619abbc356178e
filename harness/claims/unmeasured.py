"""List figures of merit and claims that were not measured because a case failed, was lost or is unreadable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.claims.scorecard import Score
from harness.results.runs import RunRecord

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
        for merit in record.merits:
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
