"""The first page of the report: verdicts, pictures of experiments, campaigns, figures of merit, incomplete cases."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from harness.claims.model import Verdict
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
from harness.document.figures import Figure
from harness.protocol.text import pluralize
from harness.report.claim_axis import ClaimAxis, build_axis
from harness.report.decisions import PlannedRun
from harness.results.runs import RunRecord

MAX_LINKS = 3
# The most rows of tables that have a row for each case.
MAX_ROWS = 100


@dataclass(frozen=True)
class ClaimRow:
    """A claim on the overview, with the axis of its values and the runs that would decide it."""

    score: Score
    paper: str
    measured: str
    axis: ClaimAxis | None
    runs: Sequence[PlannedRun]


@dataclass(frozen=True)
class Picture:
    """The first figure of a page, with the heading of the section that it belongs to."""

    page: str
    title: str
    finding: str
    figure: Figure


@dataclass(frozen=True)
class Overview:
    """What the first page shows above its tables.

    Attributes:
        verdicts: each verdict and the number of claims that have it.
        claims: the claims of each paper, by its citation.
        runs: one line on what ran, on what, when, and at which commit.
    """

    verdicts: Mapping[Verdict, int]
    claims: Mapping[str, list[ClaimRow]]
    pictures: Sequence[Picture]
    runs: str


def build_overview(
    scores: Sequence[Score],
    planned: Mapping[tuple[str, str], list[PlannedRun]],
    records: Sequence[RunRecord],
    pictures: Sequence[Picture],
) -> Overview:
    """Return what the first page shows.

    Args:
        scores: The verdicts on claims.
        planned: The runs that would decide the open claims, by paper and id of the claim.
        records: All runs.
        pictures: A picture for each page.
    """
    claims: dict[str, list[ClaimRow]] = {}
    for score in scores:
        row = ClaimRow(
            score,
            format_quantity(score.paper_value, score.unit),
            format_measured(score),
            build_axis(score),
            planned.get((score.paper, score.id), ()),
        )
        claims.setdefault(score.citation, []).append(row)
    verdicts = [score.verdict for score in scores]
    counts = {verdict: n for verdict in get_args(Verdict) if (n := verdicts.count(verdict))}
    return Overview(counts, claims, pictures, describe_runs(records))


def describe_runs(records: Sequence[RunRecord]) -> str:
    """Return one line on what ran, on what, when, and at which commit."""
    readable = [record for record in records if record.provenance]
    n_done = sum(record.state == "done" for record in records)
    campaigns = len({record.campaign for record in records})
    machines = dict.fromkeys(describe_machine(record) for record in readable)
    commits = dict.fromkeys(describe_commit(record) for record in readable)
    starts = [record.start_time_s for record in records if record.start_time_s is not None]
    ends = [record.end_time_s for record in records if record.end_time_s is not None]
    parts = [f"{n_done:,} of {pluralize(len(records), 'case')} done in {pluralize(campaigns, 'campaign')}"]
    parts += [join_few(machines)] if machines else []
    if starts and ends:
        first, last = format_time(min(starts)), format_time(max(ends))
        parts.append(f"{first} to {last.removeprefix(first[: len('2026-01-01 ')])} UTC")
    parts += [f"commit {join_few(commits)}"] if commits else []
    return "; ".join(parts)


def describe_machine(record: RunRecord) -> str:
    """Return the processor, the cores and the memory of the machine of a run."""
    provenance = record.provenance
    cores = pluralize(provenance["cores"], "core") if provenance.get("cores") else EN_DASH
    memory = f"{provenance['memory_bytes'] / 2**30:.0f} GiB" if provenance.get("memory_bytes") else EN_DASH
    return f"{provenance.get('cpu', EN_DASH)}, {cores}, {memory}"


def describe_commit(record: RunRecord) -> str:
    """Return the commit of the code of a run, and whether its files had been changed."""
    changed = " + changes" if record.provenance.get("changed_since_commit") else ""
    return (record.provenance.get("commit") or "not a clone")[:12] + changed


def format_time(time_s: float) -> str:
    """Return a time in UTC to the minute, `2026-11-29 16:20`."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(time_s))


def join_few(names: Mapping[str, None]) -> str:
    """Return the first name and the number of the others."""
    first, *others = names
    return first + (f" and {len(others)} more" if others else "")


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
    """Return the section with the figures of merit and their references, the worse ones first; None without any."""
    merits = [(r.case.get("name", ""), m) for r in records for m in r.figures_of_merit]
    merits.sort(key=lambda pair: pair[1].verdict in ("ok", "better"))
    rows = [
        [
            *(name, m.name, " ".join([format_number(m.measured), m.unit])),
            *(f"{m.reference:g}", f"{m.tolerance:.0%}", m.verdict),
        ]
        for name, m in merits[:MAX_ROWS]
    ]
    if not rows:
        return None
    columns = ["case", "figure of merit", "measured", "reference", "tolerance", "verdict"]
    text = f"The table shows {len(rows)} of {len(merits):,} figures of merit; all are in tables/figures_of_merit.csv."
    note = text if len(merits) > len(rows) else ""
    block = TableBlock("Measured values and references", columns, rows, note)
    return Section("Figures of merit", "figures_of_merit", tables=[block])


def build_unfinished_section(records: list[RunRecord], out: Path) -> Section | None:
    """Return the section with the cases that are not done, and their messages; None if all are done."""
    unfinished = [record for record in records if record.state != "done"]
    rows = [
        [r.case.get("name", r.folder.name), r.state, r.error or "no message; see stderr", link_folder(r, out)]
        for r in unfinished[:MAX_ROWS]
    ]
    if not rows:
        return None
    n_more = len(unfinished) - len(rows)
    note = f"`harness status` lists {n_more:,} more." if n_more else ""
    block = TableBlock("Cases", ["case", "state", "message", "folder"], rows, note)
    return Section("Incomplete cases", "unfinished", tables=[block])


def link_folder(record: RunRecord, out: Path) -> Cell:
    """Return the folder of a case, as a link if it is below the report."""
    if not record.folder.is_relative_to(out):
        return record.location
    return Link(record.folder.name, f"{record.folder.relative_to(out)}/")
