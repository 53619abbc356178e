"""The first page of the report: a verdict on every claim, what has run, and what did not end well."""

from __future__ import annotations

from pathlib import Path

from harness.document.blocks import DASH, Cell, Link, Section, View, interval, number, quantity
from harness.document.paper import Paper
from harness.report.scorecard import Score
from harness.results.runs import Record

EVIDENCE = 3


def scorecard_section(scores: list[Score], paper: Paper) -> Section:
    """The paper's claims, our values, the verdicts and why."""
    rows = [
        [
            s.statement,
            quantity(s.paper_value, s.unit),
            measured(s),
            s.verdict,
            s.basis or DASH,
            s.reason,
            s.how,
            evidence(s),
        ]
        for s in scores
    ]
    columns = ["claim", "paper", "here [95%]", "verdict", "basis", "why", "how it is measured", "raw samples"]
    said = [
        f"Claims of {paper.source}. Reproduced: the value reaches the paper's, or the smallest that it prints;"
        " deviates: it does not; inconclusive: its interval holds the paper's value, or what it rests on cannot"
        " decide; wrong: fast, but not with the right numbers; out of reach here: a fact of the paper's"
        " size, beside what was run.",
        "Not run: there is nothing to judge yet; projected: computed from a rate that was measured.",
        "Basis: what the value rests on. Stand-in: data, sizes or processors that stand for the paper's, and of which"
        " alone the verdict is true; emulated: nodes that share a machine. Neither reproduces a claim about a"
        " supercomputer.",
    ]
    return Section("Scorecard", "scorecard", said, views=[View("Claims", columns, rows)])


def evidence(score: Score) -> Cell:
    """Links to the first event logs that a verdict rests on."""
    first = score.evidence[:EVIDENCE]
    shown = [Link("log" if len(first) == 1 else f"log {k}", path) for k, path in enumerate(first, start=1)]
    more = len(score.evidence) - EVIDENCE
    if more > 0:
        shown.append(Link(f"and {more} more", "scorecard.json"))
    return tuple(shown) or DASH


def runs_section(records: list[Record], pages: dict[str, tuple[str, str]]) -> Section:
    """What has run, by campaign, and the page that tells of it; pages: program -> name and title."""
    rows: list[list[Cell]] = []
    for folder in dict.fromkeys(r.folder.parent for r in records):
        own = [r for r in records if r.folder.parent == folder]
        program = own[0].case.get("program", "")
        states = [r.state for r in own]
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        page: Cell = Link(pages[program][1], f"{pages[program][0]}.html") if program in pages else "nothing to show"
        rows.append([folder.name, page, str(own[0].case.get("system", DASH)), counts])
    return Section("What has run", "runs", views=[View("Campaigns", ["campaign", "page", "system", "cases"], rows)])


def measured(score: Score) -> str:
    """`26.5 [25.7, 28.9] x`; what was counted has no interval."""
    if score.measured_value is None:
        return DASH
    if score.ci_low is None:
        return quantity(score.measured_value, score.unit)
    return f"{interval(score.measured_value, score.ci_low, score.ci_high)} {score.unit}"


def merits_section(records: list[Record]) -> Section | None:
    """Figures of merit beside the references that the suites give."""
    rows = [
        [
            *(r.case.get("name", ""), m.name, f"{number(m.measured)} {m.unit}"),
            *(f"{m.reference:g}", f"{m.tolerance:.0%}", m.verdict),
        ]
        for r in records
        for m in r.merits
    ]
    if not rows:
        return None
    columns = ["case", "figure", "measured", "reference", "tolerance", "verdict"]
    return Section("Figures of merit", "merits", views=[View("Beside their references", columns, rows)])


def unfinished_section(records: list[Record], out: Path) -> Section | None:
    """Cases that did not end well, with what is known of why."""
    rows = [
        [r.case.get("name", r.folder.name), r.state, r.error or "no message; see stderr", folder_of(r, out)]
        for r in records
        if r.state != "done"
    ]
    if not rows:
        return None
    return Section("Not complete", "unfinished", views=[View("Cases", ["case", "state", "message", "folder"], rows)])


def folder_of(record: Record, out: Path) -> Cell:
    """The case's folder, as a link where it lies below the report."""
    if not record.folder.is_relative_to(out):
        return str(record.folder)
    return Link(record.folder.name, f"{record.folder.relative_to(out)}/")
