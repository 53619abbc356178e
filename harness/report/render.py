"""Run folders -> <out>/index.html and its pages, report.md, tables/, figures/, scorecard.json."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
import pandas as pd

from harness import __version__
from harness.config import resources
from harness.document import paper
from harness.document.blocks import Cell, Link
from harness.experiments.metrics import metrics_of
from harness.experiments.tables import results
from harness.host.atomic_files import make_folder_below, remove_below, write_below
from harness.protocol.errors import UsageError
from harness.protocol.text import sanitize_line
from harness.report import site
from harness.report.judges import score
from harness.report.regressions import Tracked, tracked
from harness.report.scorecard import Score, remembered
from harness.results.runs import Record, load, readable
from harness.tracking import history, run_history


@dataclass(frozen=True)
class Made:
    """What the report says in short: verdicts on claims, figures of merit beside their references, and on commits.

    records: of all cases, also those that cannot be read.
    """

    scores: list[Score]
    merits: pd.DataFrame
    past: Tracked
    records: list[Record]


def report(out: Path) -> Made:
    """Rebuild every product from out/runs and the history of commits; raises UsageError if there is neither."""
    records = load(out / "runs")
    found = results(records)
    sound = readable(found.records)
    history.append(out / history.FILE_NAME, run_history.entries(sound, metrics_of, resources.CLONE))
    past = tracked(out)
    if not records and not past.verdicts:
        raise UsageError(f"{out / 'runs'}: no run folders; run a suite first, for example `harness run ladder`")
    quoted = paper.load()
    scores = remembered(score(quoted.claims, found, out), out / "scorecard.json")
    for name in ("tables", "figures"):
        make_folder_below(out, name)
    for name, table in (found.tables() | {"regression": past.table()}).items():
        path = f"tables/{name}.csv"
        if len(table):
            write_below(out, path, within(table, out).to_csv(index=False))
        else:
            remove_below(out, path)
    write_below(out, "scorecard.json", json.dumps([asdict(s) for s in scores], indent=2) + "\n")
    made = site.pages(found, past, scores, quoted, out)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resources.folder("reports")),
        undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape(["html", "html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": markdown, "escaped": escape}
    known = {
        "pages": made,
        "ran": bool(records),
        "links": lambda cell: cell if isinstance(cell, tuple) else (cell,),
        "version": __version__,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "source": quoted.source,
    }
    for page in made:
        text = environment.get_template("page.html.j2").render(known, page=page)
        write_below(out, f"{page.name}.html", text)
    for stale in {f"{name}.html" for name in site.TITLES} - {f"{page.name}.html" for page in made}:
        remove_below(out, stale)
    write_below(out, "report.md", environment.get_template("report.md.j2").render(known))
    return Made(scores, found.merits, past, found.records)


def within(table: pd.DataFrame, out: Path) -> pd.DataFrame:
    """The table with folders as they lie in the results, which may be moved."""
    if "folder" not in table:
        return table
    return table.assign(folder=table["folder"].map(lambda f: str(f).removeprefix(f"{out}/"), na_action="ignore"))


def markdown(cell: Cell) -> str:
    """A cell of a table in Markdown."""
    if isinstance(cell, Link):
        return f"[{escape(cell.text)}]({quote(cell.href, safe='/', errors='replace')})"
    if isinstance(cell, tuple):
        return ", ".join(map(markdown, cell))
    return escape(cell)


def escape(text: str) -> str:
    """Text on one line in which nothing is HTML or Markdown."""
    line = sanitize_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)
