"""Write the report of a results folder: index.html and its pages, report.md, tables/, figures/, scorecard.json."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
import pandas as pd

from harness import __version__
from harness.claims.evaluate import NO_RUNS, SCORECARD, Judgement, judge_folder
from harness.claims.model import Paper
from harness.claims.papers import find_table, load_papers
from harness.claims.scorecard import Score
from harness.config import resources
from harness.document.blocks import Cell, Link
from harness.document.paper import Paper as PrintedPaper
from harness.experiments.metrics import run_metrics
from harness.host.files import make_folder_below, remove_below, write_below
from harness.protocol.errors import UsageError
from harness.protocol.text import sanitize_line
from harness.report import site
from harness.report.regressions import RegressionHistory, load_history
from harness.results.runs import RunRecord, readable
from harness.tracking import history
from harness.tracking import history as run_history


@dataclass(frozen=True)
class Report:
    """What a report is made of: the judgement of the runs, and the history of commits.

    Attributes:
        faults: why pages cannot be shown, by their names.
    """

    judgement: Judgement
    past: RegressionHistory
    faults: Mapping[str, str]

    @property
    def scores(self) -> list[Score]:
        """Return the verdicts on claims."""
        return self.judgement.scores

    @property
    def records(self) -> list[RunRecord]:
        """Return the records of all cases, including those that cannot be read."""
        return self.judgement.tables.records


def write_report(out: Path, claims: Sequence[Path] = ()) -> Report:
    """Judge the runs below out/runs, record them in the history of commits, and write every file of the report.

    Args:
        out: the results folder.
        claims: files of claims, in addition to the shipped ones and those in ./claims.

    Raises:
        UsageError: there are neither runs nor a history of commits, or a file of claims has a mistake.
    """
    papers = load_papers(claims)
    judgement = judge_folder(out, papers)
    tables, scores = judgement.tables, judgement.scores
    history.append_measurements(
        out / history.FILE_NAME,
        run_history.run_measurements(readable(tables.records), run_metrics, resources.REPO_ROOT),
    )
    past = load_history(out)
    if not tables.records and not past.verdicts:
        raise UsageError(f"{out / 'runs'}: {NO_RUNS}")
    _write_tables(tables.tables() | {"regression": past.table()}, out)
    write_below(out, SCORECARD, json.dumps([asdict(s) for s in scores], indent=2) + "\n")
    pages = site.pages(tables, past, scores, _find_printed_ladder(papers), out)
    _write_pages(pages, out, has_runs=bool(tables.records), source="; ".join(p.source for p in papers.values()))
    faults = {page.name: " ".join(s.paragraphs) for page in pages for s in page.sections if s.is_fault}
    return Report(judgement, past, faults)


def _write_pages(pages: Sequence[site.Page], out: Path, *, has_runs: bool, source: str) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resources.resource_dir("reports")),
        undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape(["html", "html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": format_markdown, "escaped": escape_markdown}
    context = {
        "pages": pages,
        "ran": has_runs,
        "links": lambda cell: cell if isinstance(cell, tuple) else (cell,),
        "version": __version__,
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "source": source,
    }
    for page in pages:
        text = environment.get_template("page.html.j2").render(context, page=page)
        write_below(out, f"{page.name}.html", text)
    for stale in {f"{name}.html" for name in site.TITLES} - {f"{page.name}.html" for page in pages}:
        remove_below(out, stale)
    write_below(out, "report.md", environment.get_template("report.md.j2").render(context))


def _write_tables(tables: Mapping[str, pd.DataFrame], out: Path) -> None:
    for name in ("tables", "figures"):
        make_folder_below(out, name)
    for name, table in tables.items():
        path = f"tables/{name}.csv"
        if len(table):
            write_below(out, path, relative_folders(table, out).to_csv(index=False))
        else:
            remove_below(out, path)


def _find_printed_ladder(papers: Mapping[str, Paper]) -> PrintedPaper:
    paper, table = find_table(papers, "table_xv")
    return PrintedPaper(source=paper.source, table_xv=table)


def relative_folders(table: pd.DataFrame, out: Path) -> pd.DataFrame:
    """Return the table with its folders relative to the results folder, which may be moved."""
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
    """Return the text on one line, with everything escaped that HTML or Markdown would interpret."""
    line = sanitize_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)
