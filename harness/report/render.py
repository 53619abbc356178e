"""Run folders -> <out>/index.html, report.md, tables/, figures/, scorecard.json."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2
import pandas as pd

from harness import __version__, shipped
from harness.analysis.ablation import ablation_tables
from harness.analysis.data import data_tables
from harness.analysis.hpo import search_tables
from harness.analysis.ladder import ladder_table
from harness.analysis.scaling import scaling_table
from harness.analysis.training import training_tables
from harness.collect.runs import load, merits_table, samples_table
from harness.errors import UsageError
from harness.jobs.files import write_text
from harness.report import content, paper
from harness.report.scorecard import Score, score


@dataclass(frozen=True)
class Found:
    """What the report says in short: verdicts on claims, and figures of merit beside their references."""

    scores: list[Score]
    merits: pd.DataFrame


def report(out: Path) -> Found:
    """Rebuild every product from out/runs; raises UsageError if there are no runs."""
    records = load(out / "runs")
    if not records:
        raise UsageError(f"{out / 'runs'}: no run folders; run a suite first, for example `harness run ladder`")
    ladder, scaling, data = ladder_table(records), scaling_table(records), data_tables(records)
    training = training_tables(records)
    ablation = ablation_tables(training.held_out)
    searches = search_tables(records)
    quoted = paper.load()
    scores = score(quoted.claims, ladder, out, training.runs)
    for name in ("tables", "figures"):
        (out / name).mkdir(parents=True, exist_ok=True)
    write_text(out / "tables" / "ladder.csv", ladder.to_csv(index=False))
    write_text(out / "tables" / "samples.csv", samples_table(records).to_csv(index=False))
    write_text(out / "tables" / "scaling.csv", scaling.to_csv(index=False))
    for name in ("datasets", "elements", "distributions", "reading"):
        write_text(out / "tables" / f"{name}.csv", getattr(data, name).to_csv(index=False))
    for name in ("runs", "held_out", "epochs", "heads", "errors"):
        write_text(out / "tables" / f"training_{name}.csv", getattr(training, name).to_csv(index=False))
    for name in ("pairs", "heads", "overall"):
        write_text(out / "tables" / f"ablation_{name}.csv", getattr(ablation, name).to_csv(index=False))
    for name in ("searches", "trials", "best", "points", "importance"):
        write_text(out / "tables" / f"hpo_{name}.csv", getattr(searches, name).to_csv(index=False))
    merits = merits_table(records)
    write_text(out / "tables" / "merits.csv", merits.to_csv(index=False))
    write_text(out / "scorecard.json", json.dumps([asdict(s) for s in scores], indent=2) + "\n")
    sections = content.build(
        records, ladder, scaling, data, training, ablation, searches, scores, quoted, out / "figures"
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(shipped.folder("reports")),
        undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape(["html", "html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|")
    known = {
        "sections": sections,
        "version": __version__,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "source": quoted.source,
    }
    for template, name in (("report.html.j2", "index.html"), ("report.md.j2", "report.md")):
        write_text(out / name, environment.get_template(template).render(known))
    return Found(scores, merits)
