"""The pages of the report, with links to their tables and raw records, and the page on provenance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from harness.claims.evaluate import Judgement
from harness.claims.model import Paper
from harness.document.blocks import EN_DASH, Cell, Link, PrintedPaper, Section, TableBlock, format_number
from harness.experiments.experiment import Experiment, PageContext
from harness.experiments.registry import find_experiment, load_experiments
from harness.protocol.text import pluralize
from harness.report.decisions import build_decisions_section, plan_open_claims
from harness.report.overview import (
    Overview,
    Picture,
    build_merits_section,
    build_overview,
    build_runs_section,
    build_scorecard_section,
    build_unfinished_section,
    describe_commit,
    describe_machine,
    format_time,
)
from harness.report.regressions import RegressionHistory, build_regression_sections
from harness.results.misfits import MISFIT_ERRORS, describe_misfit
from harness.results.runs import RunRecord

FILES = ("events.jsonl", "stdout", "stderr", "job.sh", "case.json")


def build_provenance_section(records: list[RunRecord], out: Path) -> Section:
    """Return the section with the code, the environment and the machine of every case."""
    headers = (
        "case", "raw records", "job started", "commit", "machine", "device", "highest load", "type of weights",
        "packages",
    )  # fmt: skip
    note = (
        "The highest load is the largest one-minute load average at the start of a round. A load well above the number"
        " of threads shows that other processes were running."
    )
    block = TableBlock("Cases", list(headers), [_describe_run(record, out) for record in records], note)
    return Section("Provenance", "provenance", tables=[block])


def _describe_run(record: RunRecord, out: Path) -> list[Cell]:
    provenance, observed = record.provenance, record.facts.get("runtime", {})
    load = max((s["load_1min"] for s in record.samples if "load_1min" in s), default=math.nan)
    threads = pluralize(observed["threads"], "thread") if "threads" in observed else EN_DASH
    return [
        record.case.get("name", ""),
        link_files(record, out),
        f"{format_time(provenance['time_s'])} UTC" if "time_s" in provenance else EN_DASH,
        record.provenance_error or describe_commit(record),
        describe_machine(record),
        f"{observed.get('device', EN_DASH)}, {threads}",
        format_number(load, ".1f"),
        ", ".join(observed.get("parameters", [])) or EN_DASH,
        ", ".join(f"{name} {version}" for name, version in provenance.get("packages", {}).items()),
    ]


def link_files(record: RunRecord, out: Path) -> tuple[Link, ...]:
    """Return links to the files of a case; none if its folder is not below the report."""
    if not record.folder.is_relative_to(out):
        return ()
    folder = record.folder.relative_to(out)
    return tuple(Link(name, f"{folder}/{name}") for name in FILES if (record.folder / name).exists())


# The title of every possible page by name, in reading order.
TITLES = {
    "index": "Overview",
    **{experiment.page: experiment.title for experiment in load_experiments()},
    "regression": "Regression",
    "provenance": "Provenance",
}


@dataclass(frozen=True)
class Page:
    """One page of the report.

    Attributes:
        name: the name of the file of the page, without suffix.
        tables: links to the tables of the page as CSV files.
        raw: links to the campaigns whose runs the page shows.
        overview: what the first page shows above its sections; None on the other pages.
    """

    name: str
    title: str
    sections: list[Section]
    tables: list[Link]
    raw: list[Link]
    overview: Overview | None = None


def build_pages(
    judgement: Judgement, history: RegressionHistory, papers: Mapping[str, Paper], printed: PrintedPaper, out: Path
) -> list[Page]:
    """Return every page with content in reading order, and write the figures to out/figures."""
    results = judgement.results
    records, tables = results.records, results.tables()
    context = PageContext(tables=tables, records=records, figures=out / "figures", paper=printed)
    pages = [
        Page(
            name=experiment.page,
            title=experiment.title,
            sections=build_or_report_error(experiment.page, partial(build_sections, experiment, context)),
            tables=link_tables(tables, results.names_by_page[experiment.page]),
            raw=link_campaigns(records, experiment.programs, out),
        )
        for experiment in load_experiments()
    ]
    regression = build_or_report_error("regression", lambda: build_regression_sections(history, context.figures))
    pages.append(Page("regression", TITLES["regression"], regression, link_tables({"regression": history.table()}), []))
    provenance = build_or_report_error(
        "provenance", lambda: [build_provenance_section(records, out)] if records else []
    )
    pages.append(Page("provenance", TITLES["provenance"], provenance, [], []))
    non_empty = [page for page in pages if page.sections]
    return [build_index(judgement, papers, out, non_empty), *non_empty]


def build_sections(experiment: Experiment, context: PageContext) -> list[Section]:
    """Return the sections of an experiment's page."""
    return experiment.page_module.build_sections(context)


def build_index(judgement: Judgement, papers: Mapping[str, Paper], out: Path, pages: Sequence[Page]) -> Page:
    """Return the first page.

    Args:
        judgement: All runs and tables, and the verdicts on claims.
        papers: The papers with the claims.
        out: The folder of the report.
        pages: The other pages, to which the page links.
    """
    records, scores = judgement.results.records, judgement.scores
    names = {page.name for page in pages}
    programs = dict.fromkeys(record.program for record in records)
    experiments = {program: find_experiment(program) for program in programs}
    targets = {program: (e.page, e.title) for program, e in experiments.items() if e is not None and e.page in names}
    planned = plan_open_claims(scores, papers)
    optional = (
        build_decisions_section(planned),
        build_runs_section(records, targets),
        build_merits_section(records),
        build_unfinished_section(records, out),
    )
    sections = [build_scorecard_section(scores), *filter(None, optional)]
    overview = build_overview(scores, planned, records, list_pictures(pages))
    tables = link_tables({"figures_of_merit": judgement.results.merits})
    return Page("index", TITLES["index"], sections, tables, [], overview)


def list_pictures(pages: Sequence[Page]) -> list[Picture]:
    """Return the first figure of each page that has one."""
    first = ((page, next((s for s in page.sections if s.figures), None)) for page in pages)
    return [Picture(page.name, page.title, s.finding or s.title, s.figures[0]) for page, s in first if s is not None]


def build_or_report_error(page: str, build: Callable[[], list[Section]]) -> list[Section]:
    """Return the sections of a page, or a single section with the reason why they cannot be built."""
    try:
        return build()
    except MISFIT_ERRORS as error:
        text = f"This page cannot be shown: {describe_misfit(error)}. Its tables are available."
        return [Section(TITLES[page], page, [text], is_error=True)]


def link_tables(tables: Mapping[str, pd.DataFrame], names: Sequence[str] | None = None) -> list[Link]:
    """Return links to the CSV files of the non-empty tables, or only of those with these names."""
    selected = [name for name in tables if (names is None or name in names) and len(tables[name])]
    return [Link(f"{name}.csv", f"tables/{name}.csv") for name in selected]


def link_campaigns(records: Sequence[RunRecord], programs: Sequence[str], out: Path) -> list[Link]:
    """Return links to the campaigns below the report that have runs of these programs."""
    folders = sorted({record.folder.parent for record in records if record.program in programs})
    return [Link(f.name, f"{f.relative_to(out)}/") for f in folders if f.is_relative_to(out)]
