"""The description of how the timed rounds of cases ended."""

from __future__ import annotations

from collections.abc import Iterable

from harness.protocol.rounds import RoundsEndReason
from harness.protocol.text import pluralize
from harness.results.runs import RunRecord

REASONS: dict[RoundsEndReason, str] = {
    "fixed": "",
    "narrow": ", as all intervals were narrow",
    "max_rounds": ", the maximum",
    "time_limit": ", at the time limit",
}


def describe_rounds(records: Iterable[RunRecord], folders: Iterable[str]) -> list[str]:
    """Return a paragraph on the rounds of cases and their widest intervals; none if no case logged their end.

    Args:
        records: all runs.
        folders: the locations of the runs of the cases.
    """
    sentences, selected = [], set(folders)
    for record in (record for record in records if record.location in selected):
        for event in record.events("rounds_ended"):
            width = ""
            if event.get("half_width") is not None and event.get("series") is not None:
                series, half_width = event["series"].replace("_", " "), f"{100 * event['half_width']:.1f}%"
                width = f"; the widest interval, that of {series}, is the median \N{PLUS-MINUS SIGN} {half_width}"
            rounds = pluralize(event["rounds"], "round")
            sentences.append(f"{record.case['name']} has {rounds}{REASONS[event['reason']]}{width}.")
    return [" ".join(sentences)] if sentences else []
