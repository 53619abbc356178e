"""Figures of merit and claims that were to be measured and were not, as a case failed, was lost or is unreadable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.document.paper import Paper
from harness.report.judges import PROGRAM_OF
from harness.report.scorecard import Score
from harness.results.runs import Record

ENDED_BADLY = ("failed", "lost", "unreadable")


def find_unmeasured(records: Sequence[Record], scores: Sequence[Score], paper: Paper) -> Iterator[str]:
    """Say of each figure and claim that a case did not give, which case it was and why.

    A case that was not run yet is no failure, nor is one without figures whose claims others have measured.
    """
    bad = [r for r in records if r.state in ENDED_BADLY]
    for record in bad:
        figures = [row["name"] for row in record.case.get("performance", ())]
        if figures or record.state == "unreadable":
            what = ", ".join(figures) or "the whole case"
            yield f"{name_of(record)}: {what} is not measured: the case is {describe_end(record)}"
    for record in records:
        for merit in record.merits:
            if merit.verdict == "not measured":
                yield f"{name_of(record)}: {merit.name} is not measured: the case has no sample of it"
    judges = {claim.id: claim.judge for claim in paper.claims}
    for score in scores:
        own = [r for r in bad if r.case.get("program") == PROGRAM_OF[judges[score.id]]]
        if score.measured_value is None and own:
            yield f"{score.id}: the claim is not measured: {name_of(own[0])} is {describe_end(own[0])}"


def name_of(record: Record) -> str:
    """Campaign and case."""
    return f"{record.folder.parent.name}/{record.case.get('name') or record.folder.name}"


def describe_end(record: Record) -> str:
    """The state with its reason."""
    return f"{record.state} ({record.error})" if record.error else record.state
