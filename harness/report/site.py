"""The report as pages: which sections stand on which, with the tables and raw records that they rest on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from harness.document.blocks import Link, Section
from harness.document.paper import Paper
from harness.experiments.cost.page import cost_sections
from harness.experiments.data.page import data_section
from harness.experiments.hpo.page import search_sections
from harness.experiments.hydragnn.page import original_sections
from harness.experiments.ladder.page import ladder_section, model_section
from harness.experiments.precision.page import precision_sections
from harness.experiments.scaling.page import scaling_section
from harness.experiments.screening.page import screening_sections
from harness.experiments.tables import Results
from harness.experiments.training.metrics import TrainingTables
from harness.experiments.training.multitask_page import ablation_sections
from harness.experiments.training.page import training_sections
from harness.experiments.training_steps.page import steps_sections
from harness.experiments.transfer.page import transfer_sections
from harness.report.overview import merits_section, runs_section, scorecard_section, unfinished_section
from harness.report.provenance import provenance_section
from harness.report.regressions import Tracked, regression_sections
from harness.report.scorecard import Score
from harness.results.containment import MISFITS, describe_misfit
from harness.results.runs import Record

# Program -> the page on its runs.
PAGE_OF = {
    "data": "data", "train": "training", "hpo": "search", "data_parallel": "scaling", "precision": "precision",
    "ladder": "ladder", "training_steps": "ladder", "transfer": "transfer", "screening": "screening",
    "hydragnn": "original", "omnistat": "cost",
}  # fmt: skip
TITLES = {
    "index": "Overview", "data": "Data", "training": "Training", "search": "Hyperparameter search",
    "scaling": "Scaling", "precision": "Precision", "ladder": "Inference ladder",
    "transfer": "Transfer", "screening": "Screening", "cost": "Cost", "original": "Original runs",
    "regression": "Regression", "provenance": "Provenance",
}  # fmt: skip
# Page -> how the names of its tables begin.
TABLES = {
    "index": ("merits",), "data": ("datasets", "elements", "distributions", "reading"),
    "training": (*(f"training_{t.name}" for t in fields(TrainingTables)), "ablation_"),
    "search": ("hpo_",), "scaling": ("scaling", "projection"),
    "precision": ("precision_",), "transfer": ("transfer_",), "screening": ("screening_",),
    "ladder": ("ladder", "training_steps", "samples"), "cost": ("cost_",),
    "original": ("original_",), "regression": ("regression",), "provenance": (),
}  # fmt: skip


@dataclass(frozen=True)
class Page:
    """One page: its file's name without ending, title, sections, and links to CSV tables and folders of raw records."""

    name: str
    title: str
    sections: list[Section]
    tables: list[Link]
    raw: list[Link]


def pages(found: Results, tracked: Tracked, scores: list[Score], paper: Paper, out: Path) -> list[Page]:
    """Every page with anything on it, in reading order; draws the figures into out/figures."""
    figures, records = out / "figures", found.records
    makers: dict[str, Callable[[], list[Section]]] = {
        "data": lambda: data_section(found.data, figures),
        "training": lambda: [
            *training_sections(found.training, found.ablation, figures),
            *ablation_sections(found.training, found.ablation, figures),
        ],
        "search": lambda: search_sections(found.searches, figures),
        "scaling": lambda: [
            scaling_section(rows, found.projection, figures)
            for _, rows in found.scaling.groupby("campaign", sort=False)
        ],
        "precision": lambda: precision_sections(found.precision, figures),
        "ladder": lambda: [
            *ladder_sections(found, paper, figures),
            *steps_sections(found.training_steps),
            *present(model_section(records)),
        ],
        "transfer": lambda: transfer_sections(found.transfer, figures),
        "screening": lambda: screening_sections(found.screening, figures),
        "cost": lambda: cost_sections(found.cost, figures),
        "original": lambda: original_sections(found.original, figures),
        "regression": lambda: regression_sections(tracked, figures),
        "provenance": lambda: [provenance_section(records, out)] if records else [],
    }
    sections = {name: attempt(name, make) for name, make in makers.items()}
    tables = found.tables() | {"regression": tracked.table()}
    there = {name for name, own in sections.items() if own}
    first = [
        scorecard_section(scores, paper),
        runs_section(records, {p: (page, TITLES[page]) for p, page in PAGE_OF.items() if page in there}),
        *present(merits_section(records), unfinished_section(records, out)),
    ]
    return [
        Page(name, TITLES[name], own, tables_of(name, tables), raw_of(name, records, out))
        for name, own in {"index": first, **sections}.items()
        if own
    ]


def attempt(name: str, make: Callable[[], list[Section]]) -> list[Section]:
    """The sections of a page, or one that says why they cannot be shown: the other pages do not depend on it."""
    try:
        return make()
    except MISFITS as error:
        said = f"This page cannot be shown, which is a fault of the report: {describe_misfit(error)}. Its tables can."
        return [Section(TITLES[name], name, [said])]


def ladder_sections(found: Results, paper: Paper, figures: Path) -> list[Section]:
    """A section for each experiment of the inference ladder."""
    sections = []
    for _, rows in found.ladder.groupby("experiment", sort=False):
        own = [r for r in found.records if str(r.folder) in set(rows["folder"])]
        sections.append(ladder_section(rows, own, paper, figures))
    return sections


def present(*sections: Section | None) -> list[Section]:
    """Those that there are."""
    return [s for s in sections if s is not None]


def tables_of(page: str, tables: Mapping[str, pd.DataFrame]) -> list[Link]:
    """The CSV tables that a page prints from; those without a row are left out."""
    own = [name for name, table in tables.items() if name.startswith(TABLES[page]) and len(table)]
    return [Link(f"{name}.csv", f"tables/{name}.csv") for name in own] if TABLES[page] else []


def raw_of(page: str, records: Sequence[Record], out: Path) -> list[Link]:
    """The campaigns whose runs a page tells of."""
    campaigns = {r.folder.parent for r in records if PAGE_OF.get(r.case.get("program", "")) == page}
    return [Link(place.name, f"{place.relative_to(out)}/") for place in sorted(campaigns) if place.is_relative_to(out)]
