"""Write the report on a results folder: index.html and its pages, report.md, tables/, figures/, scorecard.json."""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from harness import __version__
from harness.claims.evaluate import NO_RUNS, SCORECARD, Judgement, judge_folder
from harness.claims.model import Paper
from harness.claims.papers import find_table, load_papers
from harness.claims.scorecard import Score
from harness.config import resources
from harness.document.blocks import Cell, Link, PrintedPaper
from harness.experiments.tables import collect_metrics
from harness.host.files import create_folder_below, remove_below, write_below
from harness.protocol.errors import UsageError
from harness.protocol.text import sanitize_line
from harness.report import site
from harness.report.overview import link_evidence
from harness.report.regressions import RegressionHistory, load_history
from harness.results.runs import RunRecord, select_readable
from harness.tracking.history import HISTORY_FILE, append_measurements, collect_measurements

# Code between backticks in a text.
CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        judgement: the results and the verdicts on claims.
        history: the verdicts on the history of commits.
        errors: the reasons why pages cannot be shown, by the name of the page.
    """

    judgement: Judgement
    history: RegressionHistory
    errors: Mapping[str, str]

    @property
    def scores(self) -> list[Score]:
        """The verdicts on the claims of all papers."""
        return self.judgement.scores

    @property
    def records(self) -> list[RunRecord]:
        """The records of all cases, including unreadable ones."""
        return self.judgement.results.records


def write_report(results_folder: Path, claim_files: Sequence[Path] = (), bundles: Sequence[Path] = ()) -> Report:
    """Judge claims by the runs in results_folder/runs, add the runs to the history of commits, and write the report.

    Args:
        results_folder: the results folder.
        claim_files: files of claims, in addition to the shipped ones and those in ./claims.
        bundles: the bundles from which runs were unpacked, which the report names.

    Raises:
        UsageError: there are neither runs nor a history of commits, or a file of claims has a mistake.
    """
    papers = load_papers(claim_files)
    judgement = judge_folder(results_folder, papers)
    results, scores = judgement.results, judgement.scores
    measurements = collect_measurements(select_readable(results.records), collect_metrics, resources.REPO_ROOT)
    append_measurements(results_folder / HISTORY_FILE, measurements)
    history = load_history(results_folder)
    if not results.records and not history.verdicts:
        raise UsageError(f"{results_folder / 'runs'}: {NO_RUNS}")
    _write_tables(results.tables() | {"regression": history.table()}, results_folder)
    write_below(results_folder, SCORECARD, json.dumps([asdict(s) for s in scores], indent=2) + "\n")
    pages = site.build_pages(judgement, history, papers, _load_printed_ladder(papers), results_folder)
    _write_pages(
        pages,
        results_folder,
        has_runs=bool(results.records),
        source="; ".join(p.source for p in papers.values()),
        origin=f", unpacked from {', '.join(bundle.name for bundle in bundles)}" if bundles else "",
    )
    errors = {page.name: " ".join(s.paragraphs) for page in pages for s in page.sections if s.is_error}
    return Report(judgement, history, errors)


@functools.cache
def _make_environment() -> jinja2.Environment:
    """Return the environment of the page templates, which are compiled once per process."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resources.get_resource_dir("reports")),
        undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape(["html", "html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cell": format_markdown,
        "escaped": escape_markdown,
        "prose": format_prose,
        "plain": lambda text: text.replace("`", ""),
        "sentence": lambda text: text[:1].upper() + text[1:],
    }
    return environment


def _write_pages(pages: Sequence[site.Page], out: Path, *, has_runs: bool, source: str, origin: str) -> None:
    environment = _make_environment()
    context = {
        "pages": pages,
        "has_runs": has_runs,
        "evidence": link_evidence,
        "links": lambda cell: cell if isinstance(cell, tuple) else (cell,),
        "version": __version__,
        "timestamp": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "source": source,
        "origin": origin,
    }
    for page in pages:
        text = environment.get_template("page.html.j2").render(context, page=page)
        write_below(out, f"{page.name}.html", text)
    for stale in {f"{name}.html" for name in site.TITLES} - {f"{page.name}.html" for page in pages}:
        remove_below(out, stale)
    write_below(out, "report.md", environment.get_template("report.md.j2").render(context))


def _write_tables(tables: Mapping[str, pd.DataFrame], out: Path) -> None:
    for name in ("tables", "figures"):
        create_folder_below(out, name)
    for name, table in tables.items():
        path = f"tables/{name}.csv"
        if len(table):
            write_below(out, path, make_folders_relative(table, out).to_csv(index=False))
        else:
            remove_below(out, path)


def _load_printed_ladder(papers: Mapping[str, Paper]) -> PrintedPaper:
    paper, table = find_table(papers, "table_xv")
    return PrintedPaper(source=paper.source, table_xv=table)


def make_folders_relative(table: pd.DataFrame, out: Path) -> pd.DataFrame:
    """Return the table with folders relative to the results folder, so that this folder can be moved."""
    if "folder" not in table:
        return table
    return table.assign(folder=table["folder"].map(lambda f: str(f).removeprefix(f"{out}/"), na_action="ignore"))


def format_markdown(cell: Cell) -> str:
    """Return a cell of a table as Markdown."""
    if isinstance(cell, Link):
        return f"[{escape_markdown(cell.text)}]({quote(cell.href, safe='/', errors='replace')})"
    if isinstance(cell, tuple):
        return ", ".join(map(format_markdown, cell))
    return escape_markdown(cell)


def escape_markdown(text: str) -> str:
    """Return the text on one line, with the special characters of HTML and Markdown escaped outside of code."""
    parts = CODE.split(sanitize_line(text))
    parts[0::2] = map(_escape_part, parts[0::2])
    parts[1::2] = (f"`{code}`".replace("|", r"\|") for code in parts[1::2])
    return "".join(parts)


def _escape_part(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def format_prose(text: str) -> Markup:
    """Return text as HTML, with code between backticks."""
    escaped = escape(text)
    return Markup(CODE.sub(r"<code>\1</code>", str(escaped))) if "`" in text else escaped
