"""The first page of the report: the scorecard, the campaigns, the figures of merit, and the incomplete cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.claims.scorecard import Score
from harness.document.blocks import (
    EN_DASH,
    Cell,
    Link,
    Section,
    TableBlock,
    format_interval,
    format_number,
    format_quantity,
)
from harness.results.runs import RunRecord

MAX_LINKS = 3


def build_scorecard_section(scores: Sequence[Score]) -> Section:
    """Return the section with the claims of every paper, the measured values, the verdicts and the reasons."""
    columns = ["claim", "paper's value", "measured [95%]", "verdict", "basis", "reason", "measurement", "event logs"]
    blocks = []
    for citation in dict.fromkeys(s.citation for s in scores):
        rows = [_build_scorecard_row(s) for s in scores if s.citation == citation]
        blocks.append(TableBlock(f"Claims of {citation}", columns, rows))
    paragraphs = [
        "Verdicts. Reproduced: the measured value reaches the paper's value, or the smallest of several printed values."
        " Deviates: the measured value does not reach it. Inconclusive: the interval contains the paper's value, or the"
        " evidence cannot decide. Incorrect: the run was fast, but its numbers are wrong. Not applicable: no run has"
        " the size or kind that the claim is about. Not run: there are no results to judge yet. Extrapolated: the value"
        " is computed from a measured rate.",
        "The basis is the kind of evidence for the value. Stand-in: data, sizes or processors that replace those of the"
        " paper, so that the verdict is limited to them. Emulated: several nodes that share a machine. Neither"
        " kind reproduces a claim about a supercomputer.",
    ]
    return Section("Scorecard", "scorecard", paragraphs, tables=blocks)


def _build_scorecard_row(score: Score) -> list[Cell]:
    return [
        score.statement,
        format_quantity(score.paper_value, score.unit),
        format_measured(score),
        score.verdict,
        score.basis or EN_DASH,
        score.reason,
        score.measurement,
        link_evidence(score),
    ]


def link_evidence(score: Score) -> Cell:
    """Return links to the first event logs that are evidence for a verdict."""
    first = score.evidence[:MAX_LINKS]
    links = [Link("log" if len(first) == 1 else f"log {k}", path) for k, path in enumerate(first, start=1)]
    n_more = len(score.evidence) - MAX_LINKS
    if n_more > 0:
        links.append(Link(f"and {n_more} more", "scorecard.json"))
    return tuple(links) or EN_DASH


def build_runs_section(records: list[RunRecord], pages: dict[str, tuple[str, str]]) -> Section:
    """Return the section with the campaigns, a link to the page of each, and the states of its cases.

    Args:
        records: The records of all cases.
        pages: The name and the title of the page of each program.
    """
    rows: list[list[Cell]] = []
    for folder in dict.fromkeys(r.folder.parent for r in records):
        cases = [r for r in records if r.folder.parent == folder]
        program = cases[0].case.get("program", "")
        states = [r.state for r in cases]
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        page: Cell = Link(pages[program][1], f"{pages[program][0]}.html") if program in pages else "no page"
        rows.append([folder.name, page, str(cases[0].case.get("system", EN_DASH)), counts])
    return Section("Runs", "runs", tables=[TableBlock("Campaigns", ["campaign", "page", "system", "cases"], rows)])


def format_measured(score: Score) -> str:
    """Return `26.5 [25.7, 28.9] x`; a count has no interval."""
    if score.measured_value is None:
        return EN_DASH
    if score.ci_low is None:
        return format_quantity(score.measured_value, score.unit)
    return " ".join([format_interval(score.measured_value, score.ci_low, score.ci_high), score.unit])


def build_merits_section(records: list[RunRecord]) -> Section | None:
    """Return the section with the figures of merit and their references; None if there are none."""
    rows = [
        [
            *(r.case.get("name", ""), m.name, " ".join([format_number(m.measured), m.unit])),
            *(f"{m.reference:g}", f"{m.tolerance:.0%}", m.verdict),
        ]
        for r in records
        for m in r.figures_of_merit
    ]
    if not rows:
        return None
    columns = ["case", "figure of merit", "measured", "reference", "tolerance", "verdict"]
    return Section(
        "Figures of merit", "figures_of_merit", tables=[TableBlock("Measured values and references", columns, rows)]
    )


def build_unfinished_section(records: list[RunRecord], out: Path) -> Section | None:
    """Return the section with the cases that are not done, and their messages; None if all are done."""
    rows = [
        [r.case.get("name", r.folder.name), r.state, r.error or "no message; see stderr", link_folder(r, out)]
        for r in records
        if r.state != "done"
    ]
    if not rows:
        return None
    return Section(
        "Incomplete cases", "unfinished", tables=[TableBlock("Cases", ["case", "state", "message", "folder"], rows)]
    )


def link_folder(record: RunRecord, out: Path) -> Cell:
    """Return the folder of a case, as a link if it is below the report."""
    if not record.folder.is_relative_to(out):
        return record.location
    return Link(record.folder.name, f"{record.folder.relative_to(out)}/")
