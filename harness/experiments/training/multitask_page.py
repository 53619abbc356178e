"""The sections of the report on multi-task against single-task training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness.document.blocks import DASH, Section, View, lines, number
from harness.experiments.training.figures import ablation_ratios
from harness.experiments.training.metrics import QUANTITIES, TrainingTables
from harness.experiments.training.multitask import TOLERANCE, AblationTables
from harness.experiments.training.page import (
    MEV,
    TITLES,
    UNITS,
    dataset,
    listed,
    model,
    remarks,
    scaled,
    setting,
    span,
    spread,
)
from harness.protocol.text import count


def ablation_sections(training: TrainingTables, ablation: AblationTables, figures: Path) -> list[Section]:
    """A section for each multi-task experiment that has single-task twins; draws the figures."""
    return [ablation_section(e, training, ablation, figures) for e in ablation.heads["experiment"].unique()]


def ablation_section(experiment: str, training: TrainingTables, ablation: AblationTables, figures: Path) -> Section:
    """Each head of a model trained on all sets beside a model that learnt it alone."""
    rows, overall = (t[t["experiment"] == experiment] for t in (ablation.heads, ablation.overall))
    runs = training.runs
    joint = runs[runs["experiment"] == experiment]
    twins = runs[(runs["recipe"] == joint["recipe"].iloc[0]) & (runs["task"] == "single-task")]
    both = pd.concat([joint, twins])
    errors = training.errors[training.errors["experiment"] == experiment]
    paragraphs = [setting(joint, errors), budget(both), *verdicts(rows, overall), *remarks(both)]
    name = f"ablation-{experiment}"
    drawn = [ablation_ratios(rows, figures, name)]
    views = [ablation_view(errors, rows), tasks_view(joint, twins)]
    return Section(f"Multi-task against single-task: {model(joint)}", name, paragraphs, drawn, views)


def budget(runs: pd.DataFrame) -> str:
    """Whether all runs were allowed the same number of structures, or of structures of each set."""
    found = sorted(set(runs["budget"]))
    if len(found) == 1:
        return f"Equal budgets: {found[0]:,} structures drawn in training by every run, of one set or of all."
    each = sorted(set(runs["budget"] // runs["sets"]))
    if len(each) == 1:
        return (
            f"Equal budgets: {each[0]:,} structures of each set drawn in training, by the model that learns it alone or"
            f" by that of all; the models of one set together cost what the other costs ({found[-1]:,})."
        )
    return f"WRONG: budgets differ, from {found[0]:,} to {found[-1]:,} structures drawn in training by a run."


def verdicts(rows: pd.DataFrame, overall: pd.DataFrame) -> list[str]:
    """The geometric mean over heads of each quantity, and the heads that fare worse."""
    said = []
    for r in lines(overall):
        own = rows[rows["quantity"] == r["quantity"]]
        off = lines(own[own["verdict"] != "ok"])
        names = [f"{o['head']} ({number(o['ratio'], '.2f') + 'x' if o['ratio'] else 'not finite'})" for o in off]
        said.append(
            f"{TITLES[r['quantity']]}: the multi-task error is {spread(r, 'ratio', 1.0, '.2f')} times the single-task"
            f" one, geometric mean over {r['heads']} heads and {count(r['seeds'], 'seed')}. Worse by more than"
            f" {TOLERANCE - 1:.0%}: {', '.join(names) or 'none'}."
        )
    return said


def ablation_view(errors: pd.DataFrame, rows: pd.DataFrame) -> View:
    """Both errors of each head and their ratio."""
    columns = ["data", "level of theory", "test structures"]
    for q in QUANTITIES:
        columns += [f"{q.name}, multi-task ({UNITS[q.name]})", "single-task", "ratio [95%]", "verdict"]
    found = {(r["head"], r["quantity"]): r for r in lines(rows)}
    body = []
    for about in lines(errors.drop_duplicates("head")):
        line = [dataset(about), about["level"] or DASH, number(about["structures"], ",.0f")]
        for q in QUANTITIES:
            r = found.get((about["head"], q.name))
            line += [DASH] * 4 if r is None else compared(r)
        body.append(line)
    note = (
        "MAE on the same held-out structures, means over the seeds that both have. Ratios: geometric means of pairs of"
        f" one seed with Student's 95% interval of their logarithms. Worse: larger by more than {TOLERANCE - 1:.0%}. A"
        " dash: no force labels, or no pair of runs."
    )
    return View("Held-out errors", columns, body, note)


def compared(row: Mapping[Any, Any]) -> list[str]:
    """Both errors, their ratio, the verdict."""
    errors = [scaled(row[k], MEV) for k in ("multi_task", "single_task")]
    return [*errors, spread(row, "ratio", 1.0, ".2f"), row["verdict"]]


def tasks_view(joint: pd.DataFrame, twins: pd.DataFrame) -> View:
    """What runs of either kind took, in short."""
    columns = [
        "training", "runs", "seeds", "asked for", "found", "compiled", "steps", "time (s)", "graphs/s",
        "waiting for data", "parameters",
    ]  # fmt: skip
    body = [
        [
            task, str(len(own)), listed(own["seed"]),
            listed(own["precision"]).upper(),
            listed(own["found"]), f"{own['compiled'].astype(bool).sum()} runs",
            span(own["steps"], ",.0f"), span(own["train_s"]), span(own["graphs_per_s"]),
            span(own["waiting"], ".1%"), span(own["parameters"], ",.0f"),
        ]
        for task, own in (("multi-task", joint), ("single-task, all heads", twins))
    ]  # fmt: skip
    return View("Runs", columns, body, "From the least to the most of all runs; each one in tables/training_runs.csv.")
