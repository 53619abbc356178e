"""Pages say how many rounds a case has, why they ended, and how wide the widest interval is."""

from __future__ import annotations

from harness.experiments.rounds import describe_rounds
from harness.results.runs import RunRecord


def make_record(folder: str, **event: object) -> RunRecord:
    events = [{"event": "rounds_ended", **event}] if event else []
    return RunRecord(folder, {"name": folder}, "done", events_by_kind={"rounds_ended": events})


def test_rounds_of_the_selected_cases_are_described() -> None:
    records = [
        make_record("a", rounds=9, reason="narrow", series="baseline", half_width=0.0181),
        make_record("b", rounds=3, reason="fixed", series=None, half_width=None),
        make_record("c", rounds=6, reason="fixed", series=None, half_width=None),
        make_record("old"),
    ]
    assert describe_rounds(records, ["a", "b", "old"]) == [
        "a has 9 rounds, as all intervals were narrow; the widest interval, that of baseline, is the median ± 1.8%."
        " b has 3 rounds."
    ]
    assert describe_rounds(records, ["old"]) == []
